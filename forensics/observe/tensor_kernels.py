"""Statistics of every parameter tensor around an update on a GPU: two launches a step, each number
read once; in Triton.

A program takes SPAN numbers of one tensor, found through a table of addresses, so that a hundred
tensors are one launch. It adds up in fp32 by lanes; the host adds the programs' sums in float64. No
atomics: bits depend on the tensors alone.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

SPAN = 1 << 16  # numbers of one program
BLOCK = 2048  # of them at once
BEFORE = ("grad_max", "nans", "second", "bursts")
AFTER = ("theta", "delta", "free", "m", "v", "seen", "ratio")


@functools.lru_cache(maxsize=8)
def _plan(sizes: tuple[int, ...], device: str) -> tuple[Tensor, np.ndarray]:
    """(2, programs) int64 of each program's tensor and first number, and each tensor's first
    program.
    """
    programs = [max(1, -(-size // SPAN)) for size in sizes]
    starts = np.concatenate(([0], np.cumsum(programs)[:-1]))
    which = np.repeat(np.arange(len(sizes)), programs)
    first = (np.arange(sum(programs)) - starts[which]) * SPAN
    return torch.from_numpy(np.stack((which, first))).to(device), starts


def _table(groups: list[list[Tensor]]) -> tuple[Tensor, list[list[Tensor]]]:
    """Make the (groups + 2, n) int64 table of addresses, sizes and a place for each tensor.

    The second value must live until the table is read.
    """
    aligned = [
        [
            x if x.is_contiguous() and x.data_ptr() % 16 == 0 else x.contiguous().clone()
            for x in group
        ]
        for group in groups
    ]
    assert all(x.dtype == torch.float32 for group in aligned for x in group), (
        "a state is fp32 throughout"
    )
    rows = [[x.data_ptr() for x in group] for group in aligned] + [[x.numel() for x in aligned[0]]]
    return torch.tensor(rows, dtype=torch.int64).to(
        aligned[0][0].device, non_blocking=True
    ), aligned


def before(grads: list[Tensor], second: list[Tensor], threshold: float, clip: float) -> Tensor:
    """Measure gradients and second moments: (programs, len(BEFORE)) fp32.

    `threshold` of (clip·g)²/v counts as a burst.
    """
    which, _ = _plan(tuple(g.numel() for g in grads), str(grads[0].device))
    table, alive = _table([grads, second])
    numbers = torch.empty(which.shape[1], len(BEFORE), device=grads[0].device)
    _before[(which.shape[1],)](
        table,
        which,
        numbers,
        len(grads),
        which.shape[1],
        threshold,
        clip,
        SPAN=SPAN,
        BLOCK=BLOCK,
        num_warps=8,
        enable_fp_fusion=True,
    )
    del alive
    return numbers


def after(
    grads: list[Tensor],
    old: list[Tensor],
    new: list[Tensor],
    m: list[Tensor],
    v: list[Tensor],
    decay: list[float],
    floor: float,
) -> Tensor:
    """Measure the update: (programs, len(AFTER)) fp32.

    Squares of θ, of the update with and without decay, of m and v; Σ g²/max(v, floor).
    """
    which, _ = _plan(tuple(g.numel() for g in grads), str(grads[0].device))
    table, alive = _table([grads, old, new, m, v])
    decays = torch.tensor(decay, dtype=torch.float32).to(table.device, non_blocking=True)
    numbers = torch.empty(which.shape[1], len(AFTER), device=grads[0].device)
    _after[(which.shape[1],)](
        table,
        which,
        decays,
        numbers,
        len(grads),
        which.shape[1],
        floor,
        SPAN=SPAN,
        BLOCK=BLOCK,
        num_warps=8,
        enable_fp_fusion=True,
    )
    del alive
    return numbers


def by_tensor(
    found: Tensor, sizes: tuple[int, ...], device: str, largest: tuple[int, ...] = ()
) -> np.ndarray:
    """(tensors, fields) float64 of what programs found: sums, and maxima for the fields in
    `largest`. Waits for the GPU.
    """
    _, starts = _plan(sizes, device)
    parts = found.cpu().numpy().astype(np.float64)
    total = np.add.reduceat(parts, starts, axis=0)
    for field in largest:
        total[:, field] = np.maximum.reduceat(parts[:, field], starts)
    return total


@triton.jit
def _at(table, row, tensors, t):
    return tl.multiple_of(tl.load(table + row * tensors + t).to(tl.pointer_type(tl.float32)), 16)


@triton.jit
def _before(
    table, which, found, tensors, programs, threshold, clip, SPAN: tl.constexpr, BLOCK: tl.constexpr
):
    program = tl.program_id(0)
    t, first = tl.load(which + program), tl.load(which + programs + program)
    g_at, v_at = _at(table, 0, tensors, t), _at(table, 1, tensors, t)
    n = tl.load(table + 2 * tensors + t)
    largest = tl.zeros((BLOCK,), tl.float32)
    nans = tl.zeros((BLOCK,), tl.float32)
    second = tl.zeros((BLOCK,), tl.float32)
    bursts = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, SPAN, BLOCK):
        i = first + start + tl.arange(0, BLOCK)
        g = tl.load(g_at + i, mask=i < n, other=0.0)
        v = tl.load(v_at + i, mask=i < n, other=0.0)
        largest = tl.maximum(largest, tl.where(g == g, tl.abs(g), 0.0))
        nans += tl.where(g != g, 1.0, 0.0)
        second += v
        clipped = g * clip
        bursts += tl.where((clipped * clipped > v * threshold) & (v > 0.0), 1.0, 0.0)
    at = found + program * 4
    tl.store(at, tl.max(largest, 0))
    tl.store(at + 1, tl.sum(nans, 0))
    tl.store(at + 2, tl.sum(second, 0))
    tl.store(at + 3, tl.sum(bursts, 0))


@triton.jit
def _after(
    table, which, decays, found, tensors, programs, floor, SPAN: tl.constexpr, BLOCK: tl.constexpr
):
    program = tl.program_id(0)
    t, first = tl.load(which + program), tl.load(which + programs + program)
    g_at, old_at, new_at = (
        _at(table, 0, tensors, t),
        _at(table, 1, tensors, t),
        _at(table, 2, tensors, t),
    )
    m_at, v_at = _at(table, 3, tensors, t), _at(table, 4, tensors, t)
    n = tl.load(table + 5 * tensors + t)
    decay = tl.load(decays + t)
    theta = tl.zeros((BLOCK,), tl.float32)
    moved = tl.zeros((BLOCK,), tl.float32)
    free = tl.zeros((BLOCK,), tl.float32)
    m_squares = tl.zeros((BLOCK,), tl.float32)
    v_squares = tl.zeros((BLOCK,), tl.float32)
    seen = tl.zeros((BLOCK,), tl.float32)
    ratio = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, SPAN, BLOCK):
        i = first + start + tl.arange(0, BLOCK)
        inside = i < n
        g = tl.load(g_at + i, mask=inside, other=0.0)
        old = tl.load(old_at + i, mask=inside, other=0.0)
        m = tl.load(m_at + i, mask=inside, other=0.0)
        v = tl.load(v_at + i, mask=inside, other=0.0)
        delta = tl.load(new_at + i, mask=inside, other=0.0) - old
        without = delta + decay * old
        theta += old * old
        moved += delta * delta
        free += without * without
        m_squares += m * m
        v_squares += v * v
        seen += tl.where(v != 0.0, 1.0, 0.0)
        ratio += g * g / tl.where(v < floor, floor, v)
    at = found + program * 7
    tl.store(at, tl.sum(theta, 0))
    tl.store(at + 1, tl.sum(moved, 0))
    tl.store(at + 2, tl.sum(free, 0))
    tl.store(at + 3, tl.sum(m_squares, 0))
    tl.store(at + 4, tl.sum(v_squares, 0))
    tl.store(at + 5, tl.sum(seen, 0))
    tl.store(at + 6, tl.sum(ratio, 0))
