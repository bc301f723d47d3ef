"""Rows of logits on a GPU, in Triton: cross-entropy, its gradient and the recorder's numbers.

A program takes one row of V logits s, in bf16 or fp32, and computes in fp32, in two passes. The
first carries the maximum m so far, Z = Σ e^{s−m}, A = Σ e^{s−m}(s−m) and Σ s²; when a block raises
m to m′, then with d = m − m′ ≤ 0

    Z′ = e^d·Z        A′ = e^d·(A + d·Z)        (nothing cancels: every term of A is ≤ 0)

The second writes weight·(1 + 2·z_loss·logz)·e^{s−m}/Z − weight·[target] over the logits. No
atomics; a row is one program's, so bits depend on nothing but the row. Logits are read from memory
once and, at 50,000 tokens, once from L2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 4096  # logits that a program holds at once
FLOOR = -80.0  # of a change of maximum: e^−80 is nothing beside Z ≥ 1, and −∞·0 cannot arise


class Rows(NamedTuple):
    """Hold the numbers of each row, (n,) fp32."""

    ce: Tensor
    logz: Tensor
    largest: Tensor
    mean_square: Tensor
    entropy: Tensor


def rows(logits: Tensor, targets: Tensor, scale: Tensor, z_loss: float) -> Rows:
    """Turn rows of logits (n, V) into the gradient of Σ scale·(ce + z_loss·logz²).

    targets (n,) int64, scale (n,).
    """
    n, V = logits.shape
    assert logits.is_contiguous() and logits.dtype in (torch.float32, torch.bfloat16)
    results = torch.empty(5, n, dtype=torch.float32, device=logits.device)
    width = min(COLUMNS, triton.next_power_of_2(V))
    _rows[(n,)](
        logits,
        targets,
        scale,
        results,
        n,
        V,
        z_loss,
        LOWEST=FLOOR,
        COLUMNS=width,
        num_warps=8,
        enable_fp_fusion=True,
    )
    return Rows(*results)


@triton.jit
def _rows(
    logits_ptr,
    targets_ptr,
    scale_ptr,
    found_ptr,
    n,
    V,
    z_loss,
    LOWEST: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # offsets pass 2³¹
    logits = logits_ptr + row * V
    column = tl.arange(0, COLUMNS)
    target = tl.load(targets_ptr + row)
    scale = tl.load(scale_ptr + row).to(tl.float32)
    at_target = tl.load(logits + target).to(tl.float32)
    m = -float("inf")
    z = 0.0
    weighted = 0.0
    squares = 0.0
    for start in range(0, V, COLUMNS):
        inside = start + column < V
        s = tl.load(logits + start + column, mask=inside, other=-float("inf")).to(tl.float32)
        squares += tl.sum(tl.where(inside, s * s, 0.0), 0)
        higher = tl.maximum(m, tl.max(s, 0))
        d = tl.where(m == higher, 0.0, m - higher)
        d = tl.where(d < LOWEST, LOWEST, d)
        weighted = tl.exp(d) * (weighted + d * z)
        z = tl.exp(d) * z
        below = s - higher
        e = tl.where(inside, tl.exp(below), 0.0)
        z += tl.sum(e, 0)
        weighted += tl.sum(tl.where(inside, tl.where(below < LOWEST, 0.0, e * below), 0.0), 0)
        m = higher
    log_total = tl.log(z)
    logz = log_total + m
    factor = scale * (1.0 + 2.0 * z_loss * logz) / z
    tl.store(found_ptr + row, log_total - (at_target - m))
    tl.store(found_ptr + n + row, logz)
    # a maximum may pass over a NaN; the sum of squares does not
    tl.store(found_ptr + 2 * n + row, tl.where(squares != squares, squares, m))
    tl.store(found_ptr + 3 * n + row, squares / V)
    tl.store(found_ptr + 4 * n + row, log_total - weighted / z)
    for start in range(0, V, COLUMNS):
        inside = start + column < V
        s = tl.load(logits + start + column, mask=inside, other=-float("inf")).to(tl.float32)
        grad = tl.exp(s - m) * factor
        grad = tl.where(start + column == target, grad - scale, grad)
        tl.store(logits + start + column, grad.to(logits_ptr.dtype.element_ty), mask=inside)
