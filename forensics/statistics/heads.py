"""Statistics of attention heads, over all unmasked pairs of a batch.

s_ij = q_i·k_j/√K over the keys j that query i sees, m_i = max_j s_ij, Z_i = Σ_j e^{s_ij − m_i},
H_i = log Z_i − Σ_j e^{s_ij − m_i}(s_ij − m_i)/Z_i. The identity H = logsumexp − q·(Σ p k)/√K is not
used: it cancels, by 68 nats at logits of 4e4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class QueryNumbers:
    """What one micro-batch's attention gave per query: (B, H, T) fp32, norms per head (H,)."""

    largest: Tensor  # m_i
    total: Tensor  # Σ_j s_ij
    z: Tensor  # Z_i
    weighted: Tensor  # Σ_j e^{s_ij − m_i}·(s_ij − m_i)
    opening: Tensor  # e^{s_ij − m_i} of the first key that query i sees
    keys: Tensor  # number of keys that query i sees
    q_norm: Tensor  # max_i ‖q_i‖₂
    k_norm: Tensor  # max_j ‖k_j‖₂ of the key head that a query head reads
    sum_by_head: Callable[[Tensor], Tensor]  # Σ over B and queries, (H,) float64, in a fixed order

    @cached_property
    def alone(self) -> Tensor:
        """Whether a query sees one key only: its entropy is 0 and says nothing."""
        return self.keys <= 1

    @cached_property
    def entropy(self) -> Tensor:
        """H_i, nats."""
        return self.z.log() - self.weighted / self.z


@dataclass(frozen=True)
class QueryCounts:
    """How many queries a step had, over all micro-batches."""

    queries: int
    open_queries: Tensor  # () float64: those with more than one key

    @cached_property
    def some(self) -> Tensor:
        """The open queries; NaN where there is none, as is then every mean over them."""
        return self.open_queries.where(self.open_queries > 0, math.nan)


def _as_merged(merged: Tensor, counts: QueryCounts) -> Tensor:
    return merged


@dataclass(frozen=True)
class HeadStatistic:
    """One column of the table `heads`.

    `measure` makes (H,) of a micro-batch's queries, `merge` joins the micro-batches, `finish` makes
    the recorded number of what was merged.
    """

    column: str
    unit: str
    meaning: str
    measure: Callable[[QueryNumbers], Tensor]
    merge: Literal["largest", "smallest", "sum"]
    finish: Callable[[Tensor, QueryCounts], Tensor] = _as_merged


STATISTICS: tuple[HeadStatistic, ...] = (
    HeadStatistic(
        "attn_logit_max",
        "",
        "max s_ij over all unmasked pairs of the batch, never subsampled",
        measure=lambda query: query.largest.amax((0, 2)),
        merge="largest",
    ),
    HeadStatistic(
        "attn_logit_spread",
        "",
        "max over queries of (max_j s_ij − mean_j s_ij)",
        measure=lambda query: (query.largest - query.total / query.keys).amax((0, 2)),
        merge="largest",
    ),
    HeadStatistic(
        "attn_entropy_mean",
        "nats",
        "mean over queries of the attention entropy H_i",
        measure=lambda query: query.sum_by_head(query.entropy),
        merge="sum",
        finish=lambda merged, counts: merged / counts.queries,
    ),
    HeadStatistic(
        "attn_entropy_min",
        "nats",
        "min of H_i over queries with more than one key",
        measure=lambda query: query.entropy.masked_fill(query.alone, math.inf).amin((0, 2)),
        merge="smallest",
        finish=lambda merged, counts: merged.where(counts.open_queries > 0, math.nan),
    ),
    HeadStatistic(
        "attn_entropy_norm",
        "share",
        "mean of H_i / log(number of keys), queries with more than one key",
        measure=lambda query: query.sum_by_head(
            query.entropy.masked_fill(query.alone, 0.0) / query.keys.log().clamp_min(1e-30)
        ),
        merge="sum",
        finish=lambda merged, counts: merged / counts.some,
    ),
    HeadStatistic(
        "sink_mass",
        "share",
        "mean weight on the first key, queries with more than one key",
        measure=lambda query: query.sum_by_head(
            (query.opening / query.z).masked_fill(query.alone, 0.0)
        ),
        merge="sum",
        finish=lambda merged, counts: merged / counts.some,
    ),
    HeadStatistic(
        "q_norm_max",
        "",
        "max ‖q_i‖₂ after RoPE and QK-norm",
        measure=lambda query: query.q_norm,
        merge="largest",
    ),
    HeadStatistic(
        "k_norm_max",
        "",
        "max ‖k_j‖₂ after RoPE and QK-norm, of the key head this query head reads",
        measure=lambda query: query.k_norm,
        merge="largest",
    ),
)
