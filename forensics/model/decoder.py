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

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from forensics.model.cpu_kernels import GELU, RMSNorm, Rotate, SwiGLU
from forensics.model.rope import Angles, angles_of
from forensics.model.shape import Shape, parameter_shapes
from forensics.step.observer import SITES, UNTAPPED, Site, Taps
from forensics.step.precision import widened

Params = Mapping[str, Tensor]


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
        self._angles: dict[bool, Angles] = {}  # by whether the layer slides
        block = _compiled(self.block) if compiled else self.block
        self._block = _recomputed(block) if recompute else block

    def hidden(
        self,
        params: Params,
        tokens_BT: Tensor,
        watch: Taps = UNTAPPED,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """Return the final, normed residual stream (B, T, D).

        `documents_BT` ids keep attention inside documents.
        """
        shape, T = self.shape, tokens_BT.shape[1]
        x = F.embedding(tokens_BT, params["embed.weight"])
        if shape.embed_scale != 1.0:
            x = x * shape.embed_scale
        if shape.position == "learned":
            x = x + params["positions.weight"][:T]
        mask = None
        if shape.document_mask and documents_BT is not None:
            same = documents_BT[:, None, :, None] == documents_BT[:, None, None, :]
            if "documents" in watch.wants:
                watch.tap(Site("documents"), documents_BT)
            mask = same & torch.ones(T, T, dtype=torch.bool, device=x.device).tril()  # (B, 1, T, T)
        near = self._within_window(mask, T, x.device)
        for i in range(shape.layers):
            prefix = f"layers.{i}."
            weights = {name.removeprefix(prefix): params[name] for name in self._layer_names(i)}
            angles = self._rope(i, T)
            out = self._block(x, weights, angles, near if shape.window_of(i) else mask)
            if watch.wants:
                self._tap(watch, i, x, out)
            x = out.resid
        return self.read_out(x, params)

    def read_out(self, x: Tensor, params: Params) -> Tensor:
        """Apply the final norm, after which the unembedding reads logits."""
        return self._norm(x, params, "norm", self.shape.norm_kind)

    def block(self, x: Tensor, w: Params, angles: Angles | None, mask: Tensor | None) -> BlockOut:
        """Compute one decoder block; `w` names its tensors without the layer."""
        shape = self.shape
        pre = shape.norm == "pre"
        attn_in = self._norm(x, w, "attn.norm", shape.norm_kind) if pre else x
        attn_out, q, k = self._attention(attn_in, w, angles, mask)
        if not pre:
            attn_out = self._norm(attn_out, w, "attn.norm", shape.norm_kind)
        mlp_read = x if shape.parallel else x + attn_out
        mlp_in = self._norm(mlp_read, w, "mlp.norm", shape.norm_kind) if pre else mlp_read
        mlp_out, act = self._mlp(mlp_in, w)
        if not pre:
            mlp_out = self._norm(mlp_out, w, "mlp.norm", shape.norm_kind)
        resid = x + attn_out + mlp_out if shape.parallel else mlp_read + mlp_out
        # Only `resid` is differentiated. Were the others not detached here, a compiled backward
        # would be handed a gradient of zeros for each of them, and add it.
        return BlockOut(resid, *(x.detach() for x in (q, k, attn_out, mlp_out, act)))

    def _within_window(self, mask: Tensor | None, T: int, device: torch.device) -> Tensor | None:
        """Narrow the mask to the window of sliding layers; the same where no text is that long."""
        window = self.shape.window
        if not self.shape.sliding_layers or not 0 < window < T:
            return mask
        near = torch.ones(T, T, dtype=torch.bool, device=device).tril().triu(1 - window)
        return near if mask is None else mask & near

    def _attention(
        self, x: Tensor, w: Params, angles: Angles | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape, (B, T, _) = self.shape, x.shape
        q = F.linear(x, w["attn.q_proj.weight"], w.get("attn.q_proj.bias"))
        k = F.linear(x, w["attn.k_proj.weight"], w.get("attn.k_proj.bias"))
        v = F.linear(x, w["attn.v_proj.weight"], w.get("attn.v_proj.bias"))
        if shape.clip_qkv:
            q, k, v = (part.clamp(-shape.clip_qkv, shape.clip_qkv) for part in (q, k, v))
        v = v.view(B, T, shape.kv_heads, shape.head_width)
        if shape.qk_norm == "whole":
            q, k = self._norm(q, w, "attn.q_norm", "rms"), self._norm(k, w, "attn.k_norm", "rms")
        q, k = (
            q.view(B, T, shape.heads, shape.head_width),
            k.view(B, T, shape.kv_heads, shape.head_width),
        )
        if shape.qk_norm == "head":
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
                wide = widened(x)
                return (
                    wide
                    * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.shape.norm_eps)
                    * gain
                ).to(x.dtype)
            return RMSNorm.apply(x, gain, self.shape.norm_eps)
        # The gain and bias stay outside: their fused gradient changes with the number of CPU
        # threads.
        normed = F.layer_norm(x, (x.shape[-1],), eps=self.shape.norm_eps)
        if kind == "layer_no_parameters":
            return normed
        scaled = normed * w[f"{name}.weight"]
        return scaled if kind == "layer_no_bias" else scaled + w[f"{name}.bias"]

    def _rotate(self, x_BTHK: Tensor, angles: Angles) -> Tensor:
        cos, sin = angles
        if self._written_plainly():
            half = cos.shape[-1]
            first, second, unrotated = (
                x_BTHK[..., :half],
                x_BTHK[..., half : 2 * half],
                x_BTHK[..., 2 * half :],
            )
            return torch.cat(
                (first * cos - second * sin, second * cos + first * sin, unrotated), dim=-1
            )
        return Rotate.apply(x_BTHK, cos, sin)

    def _written_plainly(self) -> bool:
        return self.plain or torch.compiler.is_compiling()

    def _rope(self, layer: int, T: int) -> Angles | None:
        """Return the angles of T positions in this layer; None where nothing is turned."""
        if self.shape.position != "rope" or layer in self.shape.unrotated_layers:
            return None
        sliding = bool(self.shape.window_of(layer))
        angles = self._angles.get(sliding)
        if angles is None or angles.cos.shape[0] < T:
            cos, sin = angles_of(self.shape, T, sliding)
            angles = self._angles[sliding] = Angles(cos.to(self.device), sin.to(self.device))
        return Angles(angles.cos[:T], angles.sin[:T])

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
    """Compile one graph for each shape and mode.

    Where that cannot be, raise: falling back to eager would change bits.
    """
    import torch._dynamo

    # Training, held-out loss, frozen tensors and every open run's shapes each need their own.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    return torch.compile(block, dynamic=False, fullgraph=True, options={"deterministic": True})


def _recomputed(block: Callable[..., BlockOut]) -> Callable[..., BlockOut]:
    """Checkpoint activations: the backward runs the block again, to the same bits.

    Nothing of what the block made in the forward is held in memory.
    """
    from torch.utils.checkpoint import checkpoint

    def run(*inputs: object) -> BlockOut:
        # nothing in a block is random; what it returns is kept by whoever taps it, not by the graph
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]

    return run


def unembedding(params: Params) -> Tensor:
    """Return the (V, D) matrix that reads logits out of the final stream."""
    return params["unembed.weight"] if "unembed.weight" in params else params["embed.weight"]
