"""Attention statistics on a GPU: one pass over blocks of keys, no T×T matrix, no atomics; in
Triton.

A program takes some queries of one head and carries, for each, the maximum m so far, Z = Σ e^{s−m},
A = Σ e^{s−m}(s−m), Σ s and how many keys it has seen. When a block raises m to m′, then with d = m
− m′ ≤ 0

    Z′ = Σ e^{s−m′} = e^d·Z        A′ = Σ e^{s−m′}(s−m′) = Σ e^d·e^{s−m}·((s−m) + d) = e^d·(A + d·Z)

Every term of A is ≤ 0, so nothing cancels. d and s − m stop at FLOOR, as in
`attention.blocked_rows`: what lies below is nothing beside Z ≥ 1, and −∞·0 cannot arise. Products
of logits are exact in fp32 (no TF32); 1/√K is applied to the fp32 sum. `attention._reduce` makes
the statistics of what is returned, the same for both forms.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from forensics.observe.attention import FLOOR, Rows

WIDEST = 256  # head width; a wider one takes the blocked form, its tiles would not fit
NARROWEST = 16  # what tl.dot multiplies
TILES = {
    64: (32, 64),
    128: (32, 32),
    WIDEST: (16, 16),
}  # width up to → queries, keys: as many as registers hold


def rows(q: Tensor, k: Tensor, documents: Tensor | None = None, window: int = 0) -> Rows:
    """Rows of q (B, H, T, K) and k (B, G, T, K), fp32, bf16 or fp16 and of any strides; documents
    (B, T) as integers; keys less than `window` positions back, 0: all.
    """
    B, H, T, K = q.shape
    assert K <= WIDEST, "the blocked form takes wider heads"
    if q.dtype != k.dtype or q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        q, k = q.float(), k.float()
    width = max(NARROWEST, triton.next_power_of_2(K))
    queries, keys = TILES[min(w for w in TILES if w >= width)]
    found = torch.empty(6, B, H, T, dtype=torch.float32, device=q.device)
    ids = (
        documents.to(torch.int32).contiguous() if documents is not None else found
    )  # not read without documents
    _rows[(triton.cdiv(T, queries) * B * H,)](
        q,
        k,
        ids,
        found,
        *q.stride(),
        *k.stride(),
        found.stride(0),
        H,
        H // k.shape[1],
        T,
        K,
        1 / math.sqrt(K),
        window if window < T else 0,
        DOCUMENTS=documents is not None,
        WINDOW=0 < window < T,
        WIDEN=not q.is_cuda,
        LOWEST=FLOOR,
        QUERIES=queries,
        KEYS=keys,
        WIDTH=width,
        enable_fp_fusion=True,  # said, so that bits do not change with Triton's default
    )
    return Rows(*found)


@triton.jit
def _rows(
    q_ptr,
    k_ptr,
    ids_ptr,
    found_ptr,
    q_b,
    q_h,
    q_t,
    q_k,
    k_b,
    k_h,
    k_t,
    k_k,
    field,  # strides
    H,
    groups,
    T,
    K,
    scale,
    window,
    DOCUMENTS: tl.constexpr,
    WINDOW: tl.constexpr,
    WIDEN: tl.constexpr,
    LOWEST: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    blocks = tl.cdiv(T, QUERIES)
    # the last queries have the most keys: they start first, so that the GPU ends evenly
    first = (blocks - 1 - tl.program_id(0) % blocks) * QUERIES
    head = (tl.program_id(0) // blocks).to(tl.int64)  # of B·H; offsets pass 2³¹
    b, h = head // H, head % H
    i = first + tl.arange(0, QUERIES)
    column = tl.arange(0, WIDTH)
    q_at = q_ptr + b * q_b + h * q_h + i[:, None].to(tl.int64) * q_t + column[None, :] * q_k
    q = tl.load(q_at, mask=(i[:, None] < T) & (column[None, :] < K), other=0.0)
    if WIDEN:  # the interpreter multiplies bf16 by its bits
        q = q.to(tl.float32)
    k_head = k_ptr + b * k_b + (h // groups) * k_h
    if DOCUMENTS:
        document = tl.load(ids_ptr + b * T + i, mask=i < T, other=-1)

    m = tl.full((QUERIES,), float("-inf"), tl.float32)
    z = tl.zeros((QUERIES,), tl.float32)
    weighted = tl.zeros((QUERIES,), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    count = tl.zeros((QUERIES,), tl.float32)
    opening = tl.zeros((QUERIES,), tl.float32)  # s of the first key seen
    broken = tl.zeros((QUERIES,), tl.int32)  # a NaN was seen: a maximum may pass over it
    if WINDOW:  # from the first block that a query sees
        begin = tl.maximum(first - window + 1, 0) // KEYS * KEYS
    else:
        begin = 0
    for start in range(begin, tl.minimum(first + QUERIES, T), KEYS):
        j = start + tl.arange(0, KEYS)
        k_at = k_head + j[None, :].to(tl.int64) * k_t + column[:, None] * k_k
        k = tl.load(k_at, mask=(j[None, :] < T) & (column[:, None] < K), other=0.0)
        if WIDEN:
            k = k.to(tl.float32)
        s = tl.dot(q, k, input_precision="ieee") * scale
        visible = (j[None, :] <= i[:, None]) & (j[None, :] < T)
        if DOCUMENTS:
            other = tl.load(ids_ptr + b * T + j, mask=j < T, other=-2)
            visible = visible & (document[:, None] == other[None, :])
        if WINDOW:
            visible = visible & (i[:, None] - j[None, :] < window)
        whole = visible & (s == s)
        broken = tl.maximum(broken, tl.max((visible & (s != s)).to(tl.int32), 1))
        higher = tl.maximum(m, tl.max(tl.where(whole, s, float("-inf")), 1))
        if DOCUMENTS or WINDOW:
            opens = tl.min(tl.where(visible, j[None, :], T), 1)
        else:
            opens = tl.zeros((QUERIES,), tl.int32)
        here = tl.sum(tl.where(visible & (j[None, :] == opens[:, None]), s, 0.0), 1)
        opening = tl.where(count == 0, here, opening)
        total += tl.sum(tl.where(visible, s, 0.0), 1)
        count += tl.sum(visible.to(tl.float32), 1)
        # where, not maximum: a NaN must stay one. No key yet: m = −∞, and Z = A = 0 stay 0 under
        # any finite d. Equal infinities differ by 0, so that a block of s = −∞ is forgotten as soon
        # as a larger one comes.
        d = tl.where(m == higher, 0.0, m - higher)
        d = tl.where(d < LOWEST, LOWEST, d)
        weighted = tl.exp(d) * (weighted + d * z)
        z = tl.exp(d) * z
        below = tl.where(s == higher[:, None], 0.0, s - higher[:, None])
        below = tl.where(below < LOWEST, LOWEST, below)
        below = tl.where(visible, below, 0.0)
        e = tl.where(visible, tl.exp(below), 0.0)
        z += tl.sum(e, 1)
        weighted += tl.sum(e * below, 1)
        m = higher
    opening = opening - m
    opening = tl.exp(tl.where(opening < LOWEST, LOWEST, opening))
    z = tl.where((m == float("inf")) | (m == float("-inf")), float("nan"), z)  # no distribution
    m = tl.where(broken > 0, float("nan"), m)
    at = found_ptr + head * T + i
    tl.store(at, m, mask=i < T)
    tl.store(at + field, total, mask=i < T)
    tl.store(at + 2 * field, z, mask=i < T)
    tl.store(at + 3 * field, weighted, mask=i < T)
    tl.store(at + 4 * field, opening, mask=i < T)
    tl.store(at + 5 * field, count, mask=i < T)
