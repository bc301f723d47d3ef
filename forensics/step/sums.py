"""Sums whose bits do not depend on the number of CPU threads.

A full reduction is split among threads, so its order of additions changes with their number. Rows
of a fixed width are not: each row is added up by one thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

BLOCK = 4096
# numbers that go through several passes at once on CPU: in its cache, and worth a thread's start
STRETCH = 128 * BLOCK


def total(x: Tensor) -> Tensor:
    """Compute Σ x as a float64 scalar: fp32 rows of BLOCK, then float64 over their sums."""
    flat = x.reshape(-1)
    while flat.numel() > BLOCK:
        aligned = flat.numel() // BLOCK * BLOCK
        rows = flat[:aligned].view(-1, BLOCK).sum(1).double()
        flat = (
            rows
            if aligned == flat.numel()
            else torch.cat((rows, flat[aligned:].sum(dtype=torch.float64)[None]))
        )
    return flat.sum(dtype=torch.float64)


def mean(x: Tensor) -> float:
    """Compute Σ x / n, from `total`."""
    return float(total(x)) / x.numel()


def square_sum(x: Tensor) -> Tensor:
    """Compute Σ x² as a float64 scalar, from fp32 sums whatever the precision of x."""
    flat, wide = x.reshape(-1), torch.float64 if x.dtype == torch.float64 else torch.float32
    if x.is_cuda:  # one kernel, deterministic there
        return torch.linalg.vector_norm(flat, dtype=wide).double().square()
    flat = flat.to(wide)
    aligned = flat.numel() // BLOCK * BLOCK
    parts = []
    if aligned:
        parts.append(
            torch.linalg.vector_norm(flat[:aligned].view(-1, BLOCK), dim=1).double().square()
        )
    if aligned < flat.numel():
        parts.append(torch.linalg.vector_norm(flat[aligned:]).double().square()[None])
    return (
        total(torch.cat(parts)) if parts else torch.zeros((), dtype=torch.float64, device=x.device)
    )


def stretch(x: Tensor) -> int:
    """How many numbers of x `blocks` gives at once, at most."""
    return min(STRETCH, x.numel()) if x.device.type == "cpu" else x.numel()


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same stretch of each tensor as (rows, BLOCK), of at most STRETCH on CPU.

    What fills no whole row comes last, as (1, n).
    """
    flat = [tensor.reshape(-1) for tensor in tensors]
    count = flat[0].numel()
    aligned = count // BLOCK * BLOCK
    longest = max(1, stretch(flat[0]) // BLOCK * BLOCK)
    for first in range(0, aligned, longest):
        last = min(first + longest, aligned)
        yield tuple(tensor[first:last].view(-1, BLOCK) for tensor in flat)
    if aligned < count:
        yield tuple(tensor[aligned:][None] for tensor in flat)


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Compute ‖x‖₂ of each tensor, float64 (n,)."""
    if not tensors:
        return torch.zeros(0, dtype=torch.float64)
    if tensors[0].is_cuda:  # one kernel for all of them, deterministic there
        return torch.stack(torch._foreach_norm(list(tensors))).double()
    return torch.stack([square_sum(tensor) for tensor in tensors]).sqrt()
