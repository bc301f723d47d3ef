"""One transformer, the union of the families' knobs, as functions of a dictionary of tensors.

    hidden_BTD = Decoder(shape).hidden(params, tokens_BT)
    logits_BTV = hidden_BTD @ unembedding(params).T

B sequences, T positions, D width, H heads, G key heads, K head width, M hidden size of the MLP, V
vocabulary.

Taps hand out detached tensors of the very forward and backward that train: nothing is computed for
them here, and what watches cannot change a bit. Norms and rotations have a fused form for training
and a plain form, which can be differentiated twice and is what `plain=True` uses; so does the
compiler, which fuses by itself and cannot trace `out=`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from forensics.model.families.registry import Shape, parameter_shapes

Params = dict[str, Tensor]


class Site(NamedTuple):
    """Where a tapped tensor comes from."""

    kind: str  # one of SITES
    layer: int = -1


# q (B, H, T, K) and k (B, G, T, K) after RoPE and QK-norm · residual stream into and out of a block
# (B, T, D) · what attention and MLP add to it (B, T, D) · the MLP's hidden activation (B, T, M) ·
# the loss's gradient at the block's output (B, T, D) · where attention stays inside documents,
# their numbers (B, T), before the first block `advance` adds one, "launched": all of a step's work
# but the update was handed to the device, nothing was read yet
SITES = (
    "documents",
    "q",
    "k",
    "resid_in",
    "resid_out",
    "attn_out",
    "mlp_out",
    "mlp_act",
    "resid_grad",
)


class Taps(Protocol):
    wants: frozenset[str]

    def tap(self, site: Site, x: Tensor) -> None: ...


class Untapped:
    wants: frozenset[str] = frozenset()

    def tap(self, site: Site, x: Tensor) -> None:
        raise AssertionError("nothing was wanted")


UNTAPPED = Untapped()


class BlockOut(NamedTuple):
    """Always all of it, recorded or not, so that a compiled block is one graph."""

    resid: Tensor
    q: Tensor
    k: Tensor
    attn_out: Tensor
    mlp_out: Tensor
    mlp_act: Tensor


class Decoder:
    """The forward of one `Shape`; holds RoPE's angles, no parameters."""

    def __init__(
        self,
        shape: Shape,
        device: str = "cpu",
        *,
        compiled: bool = False,
        plain: bool = False,
        recompute: bool = False,
    ) -> None:
        self.shape = shape
        self.device = device
        self.plain = plain
        self.recompute = recompute
        self.names = tuple(parameter_shapes(shape))
        self._angles: tuple[Tensor, Tensor] | None = None
        block = _compiled(self.block) if compiled else self.block
        self._block = _recomputed(block) if recompute else block

    def hidden(
        self,
        params: Params,
        tokens_BT: Tensor,
        watch: Taps = UNTAPPED,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """The final, normed residual stream (B, T, D); `documents_BT` ids keep attention inside
        documents.
        """
        s, T = self.shape, tokens_BT.shape[1]
        x = F.embedding(tokens_BT, params["embed.weight"])
        if s.position == "learned":
            x = x + params["positions.weight"][:T]
        angles = self._rope(T) if s.position == "rope" else None
        mask = None
        if s.document_mask and documents_BT is not None:
            same = documents_BT[:, None, :, None] == documents_BT[:, None, None, :]
            if "documents" in watch.wants:
                watch.tap(Site("documents"), documents_BT)
            mask = same & torch.ones(T, T, dtype=torch.bool, device=x.device).tril()  # (B, 1, T, T)
        for i in range(s.layers):
            prefix = f"layers.{i}."
            weights = {name.removeprefix(prefix): params[name] for name in self._layer_names(i)}
            out = self._block(x, weights, angles, mask)
            if watch.wants:
                self._tap(watch, i, x, out)
            x = out.resid
        return self.read_out(x, params)

    def read_out(self, x: Tensor, params: Params) -> Tensor:
        """The final norm, after which the unembedding reads logits."""
        return self._norm(x, params, "norm", self.shape.norm_kind)

    def block(
        self, x: Tensor, w: Params, angles: tuple[Tensor, Tensor] | None, mask: Tensor | None
    ) -> BlockOut:
        """One decoder block; `w` names its tensors without the layer."""
        s = self.shape
        pre = s.norm == "pre"
        attn_in = self._norm(x, w, "attn.norm", s.norm_kind) if pre else x
        attn_out, q, k = self._attention(attn_in, w, angles, mask)
        if not pre:
            attn_out = self._norm(attn_out, w, "attn.norm", s.norm_kind)
        mlp_read = x if s.parallel else x + attn_out
        mlp_in = self._norm(mlp_read, w, "mlp.norm", s.norm_kind) if pre else mlp_read
        mlp_out, act = self._mlp(mlp_in, w)
        if not pre:
            mlp_out = self._norm(mlp_out, w, "mlp.norm", s.norm_kind)
        resid = x + attn_out + mlp_out if s.parallel else mlp_read + mlp_out
        # Only `resid` is differentiated. Were the others not detached here, a compiled backward
        # would be handed a gradient of zeros for each of them, and add it.
        return BlockOut(resid, *(x.detach() for x in (q, k, attn_out, mlp_out, act)))

    def _attention(
        self, x: Tensor, w: Params, angles: tuple[Tensor, Tensor] | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        s, (B, T, _) = self.shape, x.shape
        q = F.linear(x, w["attn.q_proj.weight"], w.get("attn.q_proj.bias"))
        k = F.linear(x, w["attn.k_proj.weight"], w.get("attn.k_proj.bias"))
        v = F.linear(x, w["attn.v_proj.weight"], w.get("attn.v_proj.bias")).view(
            B, T, s.kv_heads, s.head_width
        )
        if s.qk_norm == "whole":
            q, k = self._norm(q, w, "attn.q_norm", "rms"), self._norm(k, w, "attn.k_norm", "rms")
        q, k = q.view(B, T, s.heads, s.head_width), k.view(B, T, s.kv_heads, s.head_width)
        if s.qk_norm == "head":
            q, k = self._norm(q, w, "attn.q_norm", "rms"), self._norm(k, w, "attn.k_norm", "rms")
        if angles is not None:
            q, k = self._rotate(q, angles), self._rotate(k, angles)
        q, k = (
            q.to(v.dtype),
            k.to(v.dtype),
        )  # under autocast the angles widen them; attention, and who taps it, reads bf16
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        mixed = self._mix(q, k, v, mask).transpose(1, 2).reshape(B, T, -1)
        return F.linear(mixed, w["attn.o_proj.weight"], w.get("attn.o_proj.bias")), q, k

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        if self.plain:
            with sdpa_kernel(SDPBackend.MATH):
                return F.scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, is_causal=mask is None
                )
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)

    def _mlp(self, x: Tensor, w: Params) -> tuple[Tensor, Tensor]:
        up = F.linear(x, w["mlp.up.weight"], w.get("mlp.up.bias"))
        act = self._activation(
            F.linear(x, w["mlp.gate.weight"], w.get("mlp.gate.bias")) if self.shape.gated else None,
            up,
        )
        return F.linear(act, w["mlp.down.weight"], w.get("mlp.down.bias")), act

    def _activation(self, gate: Tensor | None, up: Tensor) -> Tensor:
        tanh = self.shape.activation == "gelu_tanh"
        if up.is_cuda or self._written_plainly():
            return (
                F.silu(gate) * up
                if gate is not None
                else F.gelu(up, approximate="tanh" if tanh else "none")
            )
        # On CPU torch's own go by vectors, and by another exp at the end of each thread's share:
        # bits that change with the number of threads. What these two are made of does not.
        return SwiGLU.apply(gate, up) if gate is not None else GELU.apply(up, tanh)

    def _norm(self, x: Tensor, w: Params, name: str, kind: str) -> Tensor:
        if kind == "rms":
            gain = w[f"{name}.weight"]
            if self._written_plainly():
                wide = _wide(x)
                return (
                    wide
                    * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.shape.norm_eps)
                    * gain
                ).to(x.dtype)
            return RMSNorm.apply(x, gain, self.shape.norm_eps)
        # The gain and bias stay outside: their fused gradient changes with the number of CPU
        # threads.
        y = F.layer_norm(x, (x.shape[-1],), eps=self.shape.norm_eps)
        return y if kind == "layer_no_parameters" else y * w[f"{name}.weight"] + w[f"{name}.bias"]

    def _rotate(self, x_BTHK: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        cos, sin = angles
        if self._written_plainly():
            half = cos.shape[-1]
            a, b, rest = x_BTHK[..., :half], x_BTHK[..., half : 2 * half], x_BTHK[..., 2 * half :]
            return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)
        return Rotate.apply(x_BTHK, cos, sin)

    def _written_plainly(self) -> bool:
        return self.plain or torch.compiler.is_compiling()

    def _rope(self, T: int) -> tuple[Tensor, Tensor]:
        """cos and sin (T, 1, rotated/2) of every position and wavelength; pair j is (x_j,
        x_{j+rotated/2}).
        """
        if self._angles is None or self._angles[0].shape[0] < T:
            pairs = (
                torch.arange(0, self.shape.rotated, 2, dtype=torch.int64).float()
                / self.shape.rotated
            )
            frequency = 1.0 / self.shape.rope_theta**pairs
            angle = torch.outer(torch.arange(T, dtype=torch.int64).float(), frequency)[:, None, :]
            self._angles = (angle.cos().to(self.device), angle.sin().to(self.device))
        return self._angles[0][:T], self._angles[1][:T]

    def _layer_names(self, i: int) -> list[str]:
        return [name for name in self.names if name.startswith(f"layers.{i}.")]

    @staticmethod
    def _tap(watch: Taps, layer: int, resid_in: Tensor, out: BlockOut) -> None:
        values = {"resid_in": resid_in, "resid_out": out.resid, **out._asdict()}
        for kind in SITES:
            if kind in watch.wants and kind in values:
                watch.tap(Site(kind, layer), values[kind].detach())
        if "resid_grad" in watch.wants and out.resid.requires_grad:
            out.resid.register_hook(lambda g: watch.tap(Site("resid_grad", layer), g.detach()))


def _compiled(block: Callable[..., BlockOut]) -> Callable[..., BlockOut]:
    """One graph for each shape and mode; where that cannot be, an error: falling back to eager
    would change bits.
    """
    import torch._dynamo

    # Training, held-out loss, frozen tensors and every open run's shapes each need their own.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    return torch.compile(block, dynamic=False, fullgraph=True, options={"deterministic": True})


def _recomputed(block: Callable[..., BlockOut]) -> Callable[..., BlockOut]:
    """Activation checkpointing: the backward runs the block again, to the same bits, rather than
    keep what it made.
    """
    from torch.utils.checkpoint import checkpoint

    def run(*inputs: object) -> BlockOut:
        # nothing in a block is random; what it returns is kept by whoever taps it, not by the graph
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]

    return run


def unembedding(params: Params) -> Tensor:
    """The (V, D) matrix that reads logits out of the final stream."""
    return params["unembed.weight"] if "unembed.weight" in params else params["embed.weight"]


class RMSNorm(torch.autograd.Function):
    """x / √(mean x² + ε) · g over the last axis, in fp32 or wider; ten times faster on CPU than the
    composite form.
    """

    @staticmethod
    def forward(ctx, x: Tensor, gain: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        wide = _wide(x)
        scale = (
            torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
            .square_()
            .div_(x.shape[-1])
            .add_(eps)
            .rsqrt_()
        )
        normed = wide * scale
        ctx.save_for_backward(normed, scale, gain)
        ctx.dtype = x.dtype
        return (normed * gain).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        normed, scale, gain = ctx.saved_tensors
        width = normed.shape[-1]
        grad = _wide(grad)
        grad_gain = (grad * normed).reshape(-1, width).sum(0)
        grad_normed = grad * gain
        along = (grad_normed * normed).sum(-1, keepdim=True).div_(width)
        return (
            grad_normed.addcmul_(normed, along, value=-1).mul_(scale).to(ctx.dtype),
            grad_gain,
            None,
        )


class Rotate(torch.autograd.Function):
    """RoPE on the first 2·half numbers of each head; its backward is the rotation by the negative
    angle.
    """

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, sin, -1), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    half = cos.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    a, b = x[..., :half], x[..., half : 2 * half]
    torch.mul(a, cos, out=out[..., :half]).addcmul_(b, sin, value=-direction)
    torch.mul(b, cos, out=out[..., half : 2 * half]).addcmul_(a, sin, value=direction)
    if 2 * half < x.shape[-1]:
        out[..., 2 * half :] = x[..., 2 * half :]
    return out


class SwiGLU(torch.autograd.Function):
    """silu(gate) · up."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:  # type: ignore[override]
        opened, act = torch.empty_like(gate), torch.empty_like(gate)  # sigmoid(gate)
        for g, u, s, a in _stretches(gate, up, opened, act):
            torch.neg(g, out=s).exp_().add_(1).reciprocal_()
            torch.mul(g, s, out=a).mul_(u)
        ctx.save_for_backward(gate, up, opened)
        return act

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        gate, up, opened = ctx.saved_tensors
        grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(gate)
        for d, g, u, s, dg, du in _stretches(
            grad.contiguous(), gate, up, opened, grad_gate, grad_up
        ):
            torch.mul(g, s, out=du).mul_(d)
            torch.neg(s, out=dg).add_(1).mul_(g).add_(1).mul_(s).mul_(u).mul_(d)
        return grad_gate, grad_up


class GELU(torch.autograd.Function):
    """x·Φ(x), Φ the normal distribution or its approximation ½(1 + tanh(√(2/π)(x + 0.044715x³)))
    (arXiv 1606.08415).
    """

    @staticmethod
    def forward(ctx, x: Tensor, tanh: bool) -> Tensor:  # type: ignore[override]
        share, act = torch.empty_like(x), torch.empty_like(x)  # Φ(x)
        for x_, p, a in _stretches(x, share, act):
            if tanh:
                torch.mul(x_, x_, out=p).mul_(CUBE).add_(1).mul_(x_).mul_(
                    math.sqrt(2 / math.pi)
                ).tanh_()
            else:
                torch.mul(x_, math.sqrt(0.5), out=p).erf_()
            torch.mul(x_, p.add_(1).mul_(0.5), out=a)
        ctx.save_for_backward(x, share)
        ctx.tanh = tanh
        return act

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        x, share = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        for d, x_, p, dx in _stretches(grad.contiguous(), x, share, grad_x):
            torch.mul(x_, x_, out=dx)
            if ctx.tanh:  # Φ′ = 2Φ(1−Φ)·√(2/π)(1 + 3·0.044715x²)
                dx.mul_(3 * CUBE).add_(1).mul_(math.sqrt(8 / math.pi)).mul_(p).mul_(1 - p)
            else:
                dx.mul_(-0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))
            dx.mul_(x_).add_(p).mul_(d)
        return grad_x, None


CUBE = 0.044715


def _stretches(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same elements of each contiguous tensor, few enough that several passes stay in the
    cache.
    """
    flat, length = [x.view(-1) for x in tensors], (1 << 17) * torch.get_num_threads()
    for first in range(0, flat[0].numel(), length):
        yield tuple(x[first : first + length] for x in flat)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
