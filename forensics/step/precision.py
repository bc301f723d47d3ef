"""The precision of a forward: one home for autocast, and for what is computed wide."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def product_dtype(precision: str) -> torch.dtype:
    """Return the type in which matrix products are computed: of `fp32` or `bf16`."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def autocast(device: str, precision: str) -> contextlib.AbstractContextManager[object]:
    """Compute the products of a forward in `precision` on `device`."""
    if precision != "bf16":
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=torch.bfloat16)


def wide_dtype(x: Tensor) -> torch.dtype:
    """Return the type in which norms and losses of x are computed: fp32, or float64 where x is."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def widened(x: Tensor) -> Tensor:
    """Return x in its `wide_dtype`."""
    return x.to(wide_dtype(x))
