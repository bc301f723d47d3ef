"""Sums whose bits do not depend on the number of CPU threads.

A full reduction is split among threads, so its order of additions changes with their number. Rows
of a fixed width are not: each row is added up by one thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

BLOCK = 4096
STRETCH = (
    128 * BLOCK
)  # numbers that go through several passes at once on CPU: in its cache, and worth a thread's start


def total(x: Tensor) -> Tensor:
    """Σ x as a float64 scalar: fp32 rows of BLOCK, then float64 over their sums."""
    flat = x.reshape(-1)
    while flat.numel() > BLOCK:
        whole = flat.numel() // BLOCK * BLOCK
        rows = flat[:whole].view(-1, BLOCK).sum(1).double()
        flat = (
            rows
            if whole == flat.numel()
            else torch.cat((rows, flat[whole:].sum(dtype=torch.float64)[None]))
        )
    return flat.sum(dtype=torch.float64)


def mean(x: Tensor) -> float:
    return float(total(x)) / x.numel()


def square_sum(x: Tensor) -> Tensor:
    """Σ x² as a float64 scalar, from fp32 sums whatever the precision of x."""
    flat, wide = x.reshape(-1), torch.float64 if x.dtype == torch.float64 else torch.float32
    if x.is_cuda:  # one kernel, deterministic there
        return torch.linalg.vector_norm(flat, dtype=wide).double().square()
    flat = flat.to(wide)
    whole = flat.numel() // BLOCK * BLOCK
    parts = []
    if whole:
        parts.append(
            torch.linalg.vector_norm(flat[:whole].view(-1, BLOCK), dim=1).double().square()
        )
    if whole < flat.numel():
        parts.append(torch.linalg.vector_norm(flat[whole:]).double().square()[None])
    return (
        total(torch.cat(parts)) if parts else torch.zeros((), dtype=torch.float64, device=x.device)
    )


def stretch(x: Tensor) -> int:
    """How many numbers of x `blocks` gives at once, at most."""
    return min(STRETCH, x.numel()) if x.device.type == "cpu" else x.numel()


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same stretch of each tensor as (rows, BLOCK), of at most STRETCH on CPU; then the rest as
    (1, n).
    """
    flat = [x.reshape(-1) for x in tensors]
    n = flat[0].numel()
    whole = n // BLOCK * BLOCK
    longest = max(1, stretch(flat[0]) // BLOCK * BLOCK)
    for first in range(0, whole, longest):
        last = min(first + longest, whole)
        yield tuple(x[first:last].view(-1, BLOCK) for x in flat)
    if whole < n:
        yield tuple(x[whole:][None] for x in flat)


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """‖x‖₂ of each tensor, float64 (n,)."""
    if not tensors:
        return torch.zeros(0, dtype=torch.float64)
    if tensors[0].is_cuda:  # one kernel for all of them, deterministic there
        return torch.stack(torch._foreach_norm(list(tensors))).double()
    return torch.stack([square_sum(x) for x in tensors]).sqrt()
