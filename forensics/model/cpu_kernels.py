"""The decoder's element-wise functions, written so that their bits do not depend on the number of CPU threads."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor


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
