"""Attention statistics over all unmasked pairs, in one pass over blocks; no T×T matrix.

`blocked_rows` here and `attention_kernels.rows` on a GPU find five numbers per query; the entries
of statistics/heads.py, where the symbols are defined, make the statistics of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from forensics.statistics.heads import STATISTICS, QueryCounts, QueryNumbers
from forensics.step import sums
from forensics.step.gpu_kernels import load_kernels

KERNELS = "forensics.observe.attention_kernels"

QUERIES = 32  # query rows per block: fewer pairs in vain beyond the diagonal
ELEMENTS = 1 << 20  # scores held at once; not by threads, so that neither are the bits
MASKED = -3.0e38  # finite, so that MASKED − m is no NaN
# of s − m: e^−80 is nothing beside Z ≥ 1, and exp is ten times slower where its result underflows
FLOOR = -80.0
MERGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "largest": torch.maximum,
    "smallest": torch.minimum,
    "sum": torch.add,
}


@dataclass
class HeadStatistics:
    """Per query head (H,), by column; `merge` joins micro-batches; sums are float64."""

    merged: dict[str, Tensor]
    queries: int
    # those with more than one key; () on the device where documents decide
    open_queries: int | Tensor

    def merge(self, other: HeadStatistics) -> HeadStatistics:
        """Return the statistics of both micro-batches together."""
        return HeadStatistics(
            {
                statistic.column: MERGES[statistic.merge](
                    self.merged[statistic.column], other.merged[statistic.column]
                )
                for statistic in STATISTICS
            },
            self.queries + other.queries,
            self.open_queries + other.open_queries,
        )

    def columns(self) -> dict[str, Tensor]:
        """Return the columns of table `heads`, (H,) each; NaN where no query has two keys."""
        device = next(iter(self.merged.values())).device
        opened = torch.as_tensor(self.open_queries, dtype=torch.float64, device=device)
        counts = QueryCounts(self.queries, opened)
        return {
            statistic.column: statistic.finish(self.merged[statistic.column], counts)
            for statistic in STATISTICS
        }


class Rows(NamedTuple):
    """Of each query, (B, H, T) fp32; `counts` may be (T,)."""

    m: Tensor  # max_j s_ij
    total: Tensor  # Σ_j s_ij
    z: Tensor  # Σ_j e^{s_ij − m_i}
    weighted: Tensor  # Σ_j e^{s_ij − m_i}·(s_ij − m_i)
    opening: Tensor  # e^{s_ij − m_i} of the first key it sees
    counts: Tensor  # keys it sees


@torch.no_grad()
def attention_statistics(
    q: Tensor, k: Tensor, documents: Tensor | None = None, window: int = 0
) -> HeadStatistics:
    """Measure q (B, H, T, K) and k (B, G, T, K), G dividing H.

    documents (B, T) keep pairs inside a document; a window (0: none) keeps them less than so many
    positions apart.

    fp32 throughout, whatever the inputs and whatever autocast would make of them; memory grows with
    T, not with T².
    """
    assert q.numel() and q.shape[1] % k.shape[1] == 0, (
        "an empty batch has no statistics, and groups are whole"
    )
    with torch.autocast(q.device.type, enabled=False):
        kernels = load_kernels(KERNELS) if q.is_cuda else None
        if kernels is not None and q.shape[-1] <= kernels.WIDEST:
            norms = [
                torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32).amax((0, 2))
                for x in (q, k)
            ]
            rows = kernels.rows(q, k, documents, window)
        else:
            rows, *norms = blocked_rows(q, k, documents, window)
        # said where it is known, because a GPU would be waited for
        opened = q.shape[0] * (q.shape[2] - 1) if documents is None and window != 1 else None
        return _reduce(rows, norms[0], norms[1].repeat_interleave(q.shape[1] // k.shape[1]), opened)


def blocked_rows(
    q: Tensor, k: Tensor, documents: Tensor | None, window: int = 0
) -> tuple[Rows, Tensor, Tensor]:
    """Compute rows by blocks of queries, each against all keys up to its last.

    Returns them with the largest ‖q‖ (H,) and ‖k‖ (G,).
    """
    B, H, T, K = q.shape
    q, k = (
        q.contiguous().float(),
        k.contiguous().float(),
    )  # heads first, so that blocks are matrices without copies
    norms = [torch.linalg.vector_norm(buffer, dim=-1).amax((0, 2)) for buffer in (q, k)]
    if k.shape[1] < H:
        k = k.repeat_interleave(H // k.shape[1], dim=1)
    q, k = (q / math.sqrt(K)).view(B * H, T, K), k.view(B * H, T, K)
    # |s − m| ≤ 2·‖q‖·‖k‖/√K: where that stays above FLOOR, only what is masked can lie below it
    window = window if window < T else 0
    masked = documents is not None or window > 0  # more than what lies after the query
    gentle = (
        not masked and 2 * float(norms[0].amax() * norms[1].amax()) / math.sqrt(K) < -0.99 * FLOOR
    )
    size = min(QUERIES, T)
    room = max(ELEMENTS, size * T)
    scores, powers = torch.empty(room, device=q.device), torch.empty(room, device=q.device)
    numbers = torch.empty(5, B * H, T, device=q.device)
    position = torch.arange(T, device=q.device)
    counts = (position + 1).float()
    future = position[None, :size] > position[:size, None]
    ids = documents.repeat_interleave(H, dim=0) if documents is not None else None
    if not masked:
        visible = (~future).float()  # 0 where a key lies after the query
        ceiling = torch.full_like(visible, math.inf).masked_fill_(future, MASKED)
    else:
        counts = torch.empty(B * H, T, device=q.device)
    for first in range(0, T, size):
        last = min(first + size, T)
        count = last - first
        heads = max(1, room // (count * last))
        for low in range(0, B * H, heads):
            high = min(low + heads, B * H)
            m, total, z, weighted, opening = numbers[:, low:high, first:last]
            score, power = (
                buffer[: (high - low) * count * last].view(high - low, count, last)
                for buffer in (scores, powers)
            )
            torch.bmm(q[low:high, first:last], k[low:high, :last].transpose(1, 2), out=score)
            if not masked:
                # The only keys that can lie after a query. By products and minima, five times
                # faster than masked_fill; an inf among the keys then shows as NaN in rows before it
                # too, beside the inf in its own norm.
                corner = score[..., first:]
                corner.mul_(visible[:count, :count])
                torch.sum(score, -1, out=total)
                torch.minimum(corner, ceiling[:count, :count], out=corner)
            else:
                hidden = _hidden(ids, window, position[:last], low, high, first)
                hidden[..., first:] |= future[:count, :count]
                counts[low:high, first:last] = last - hidden.sum(-1)
                torch.sum(score.masked_fill_(hidden, 0.0), -1, out=total)
                score.masked_fill_(hidden, MASKED)
            torch.amax(score, -1, out=m)
            score.sub_(m[..., None])
            (corner if gentle else score).clamp_min_(FLOOR)
            torch.exp(score, out=power)
            torch.sum(power, -1, out=z)
            if not masked:
                opening.copy_(power[..., 0])
            else:
                opening.copy_(
                    power.gather(-1, (~hidden).to(torch.int8).argmax(-1, keepdim=True))[..., 0]
                )
            torch.sum(score.mul_(power), -1, out=weighted)
    if masked:
        counts = counts.view(B, H, T)
    m, total, z, weighted, opening = numbers.view(5, B, H, T).unbind()
    return Rows(m, total, z, weighted, opening, counts), norms[0], norms[1]


def _hidden(
    ids: Tensor | None, window: int, position: Tensor, low: int, high: int, first: int
) -> Tensor:
    """Tell which keys the queries from `first` on do not see: other documents, or too far back."""
    last = len(position)
    hidden = torch.zeros(high - low, last - first, last, dtype=torch.bool, device=position.device)
    if ids is not None:
        hidden |= ids[low:high, first:, None][:, : last - first] != ids[low:high, None, :last]
    if window:
        hidden |= position[first:, None] - position[None, :] >= window
    return hidden


def _reduce(
    rows: Rows, q_norm: Tensor, k_norm: Tensor, opened: int | None = None
) -> HeadStatistics:
    """Compute the statistics per head of what was found per query.

    `opened` of them have more than one key; None: the documents decide.
    """
    B, H, T = rows.m.shape
    query = QueryNumbers(
        rows.m,
        rows.total,
        rows.z,
        rows.weighted,
        rows.opening,
        rows.counts.expand(B, H, T),
        q_norm,
        k_norm,
        _by_head,
    )
    return HeadStatistics(
        {statistic.column: statistic.measure(query) for statistic in STATISTICS},
        queries=B * T,
        open_queries=B * T - query.alone[:, 0].sum() if opened is None else opened,
    )


def _by_head(x: Tensor) -> Tensor:
    """Σ over B and queries of (B, H, T), (H,) float64: by stretches too short to be split among
    threads.
    """
    return torch.stack([block.double().sum(2).sum(0) for block in x.split(sums.BLOCK, dim=2)]).sum(
        0
    )
