"""The precision of a forward: one home for the choice of autocast."""

from __future__ import annotations

import contextlib

import torch


def product_dtype(precision: str) -> torch.dtype:
    """Return the type in which matrix products are computed: of `fp32` or `bf16`."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def autocast(device: str, precision: str) -> contextlib.AbstractContextManager[object]:
    """Compute the products of a forward in `precision` on `device`."""
    if precision != "bf16":
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=torch.bfloat16)
