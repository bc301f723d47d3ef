"""Attention statistics over all unmasked pairs, in one pass over blocks; no T×T matrix.

s_ij = q_i·k_j/√K over j ≤ i, m_i = max_j s_ij, Z_i = Σ_j e^{s_ij − m_i}. FORMULAS.md defines each number. The identity
H = logsumexp − q·(Σ p k)/√K is not used: it cancels, by 68 nats at logits of 4e4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

QUERIES = 64  # query rows per block
ELEMENTS = 1 << 20  # scores held at once
MASKED = -3.0e38  # finite, so that 0·(s − m) is 0 where a key is masked


@dataclass
class HeadStatistics:
    """Per query head (H,), merged over micro-batches by `merge`; sums are float64."""

    logit_max: Tensor
    spread: Tensor
    entropy_sum: Tensor
    entropy_min: Tensor
    entropy_norm_sum: Tensor
    sink_sum: Tensor
    q_norm_max: Tensor
    k_norm_max: Tensor
    queries: int  # number of queries that entropy_sum adds up
    open_queries: int  # those with more than one key

    def merge(self, other: HeadStatistics) -> HeadStatistics:
        return HeadStatistics(
            torch.maximum(self.logit_max, other.logit_max),
            torch.maximum(self.spread, other.spread),
            self.entropy_sum + other.entropy_sum,
            torch.minimum(self.entropy_min, other.entropy_min),
            self.entropy_norm_sum + other.entropy_norm_sum,
            self.sink_sum + other.sink_sum,
            torch.maximum(self.q_norm_max, other.q_norm_max),
            torch.maximum(self.k_norm_max, other.k_norm_max),
            self.queries + other.queries,
            self.open_queries + other.open_queries,
        )

    def columns(self) -> dict[str, Tensor]:
        """The columns of table `heads`, (H,) each; NaN where no query has more than one key."""
        some = self.open_queries or math.nan
        return {
            "attn_logit_max": self.logit_max,
            "attn_logit_spread": self.spread,
            "attn_entropy_mean": self.entropy_sum / self.queries,
            "attn_entropy_min": self.entropy_min if self.open_queries else self.entropy_min * math.nan,
            "attn_entropy_norm": self.entropy_norm_sum / some,
            "sink_mass": self.sink_sum / some,
            "q_norm_max": self.q_norm_max,
            "k_norm_max": self.k_norm_max,
        }


@torch.no_grad()
def attention_statistics(q: Tensor, k: Tensor, documents: Tensor | None = None) -> HeadStatistics:
    """Of q (B, H, T, K) and k (B, G, T, K), G dividing H; documents (B, T) keep pairs inside a document.

    fp32 throughout, whatever the inputs; memory grows with T, not with T².
    """
    B, H, T, K = q.shape
    groups = H // k.shape[1]
    q, k = q.float(), k.float()
    q_norm = torch.linalg.vector_norm(q, dim=-1).amax(dim=(0, 2))
    k_norm = torch.linalg.vector_norm(k, dim=-1).amax(dim=(0, 2)).repeat_interleave(groups)
    q = q / math.sqrt(K)
    if groups > 1:
        k = k.repeat_interleave(groups, dim=1)
    k_sum = k.cumsum(2) if documents is None else None  # Σ_j s_ij = q_i·Σ_j k_j: linear, so nothing cancels
    found: HeadStatistics | None = None
    sequences = max(1, ELEMENTS // (H * QUERIES * T))
    for b in range(0, B, sequences):
        rows = slice(b, min(b + sequences, B))
        for first in range(0, T, QUERIES):
            last = min(first + QUERIES, T)
            block = _block(
                q[rows, :, first:last], k[rows, :, :last], first,
                k_sum[rows, :, first:last] if k_sum is not None else None,
                documents[rows, :last] if documents is not None else None,
            )  # fmt: skip
            found = block if found is None else found.merge(block)
    assert found is not None, "an empty batch has no statistics"
    found.q_norm_max, found.k_norm_max = q_norm, k_norm
    return found


def _block(q: Tensor, k: Tensor, first: int, k_sum: Tensor | None, documents: Tensor | None) -> HeadStatistics:
    """Queries first … first+n−1 against all keys up to the last of them; q is already over √K."""
    B, H, n, K = q.shape
    keys = k.shape[2]
    s = torch.bmm(q.reshape(B * H, n, K), k.reshape(B * H, keys, K).transpose(1, 2)).view(B, H, n, keys)
    position = torch.arange(first, keys, device=q.device)
    future = position[None, :] > position[:, None]  # (n, n): only the last n keys can lie after a query
    if documents is None:
        assert k_sum is not None
        s[..., first:].masked_fill_(future, MASKED)
        counts = (position + 1).to(torch.float32)[None, None, :]  # keys of each query
        start = None  # the first key is position 0
        mean = (q * k_sum).sum(-1) / counts
    else:
        hidden = documents[:, first:, None] != documents[:, None, :]  # (B, n, keys)
        hidden[..., first:] |= future
        counts = (keys - hidden.sum(-1)).to(torch.float32)[:, None, :]
        mean = s.masked_fill(hidden[:, None], 0.0).sum(-1) / counts
        s.masked_fill_(hidden[:, None], MASKED)
        start = (~hidden).to(torch.int8).argmax(-1)  # the document's first key
    m = s.amax(-1)
    s -= m[..., None]
    e = s.exp()
    z = e.sum(-1)
    weighted = (s * e).sum(-1)
    entropy = z.log() - weighted / z
    opening = e[..., 0] if start is None else e.gather(-1, start[:, None, :, None].expand(B, H, n, 1))[..., 0]
    sink = opening / z
    alone = (counts <= 1).expand(B, H, n)
    inside = entropy.masked_fill(alone, 0.0)
    infinite = torch.full((H,), math.inf, device=q.device)
    return HeadStatistics(
        logit_max=m.amax(dim=(0, 2)),
        spread=(m - mean).amax(dim=(0, 2)),
        entropy_sum=_by_head(entropy),
        entropy_min=entropy.masked_fill(alone, math.inf).amin(dim=(0, 2)),
        entropy_norm_sum=_by_head(inside / counts.log().clamp_min(1e-30)),
        sink_sum=_by_head(sink.masked_fill(alone, 0.0)),
        q_norm_max=-infinite,
        k_norm_max=-infinite,
        queries=B * n,
        open_queries=B * n - int(alone[:, 0].sum()),
    )


def _by_head(x: Tensor) -> Tensor:
    """Σ over B and queries, (H,) float64: first along queries, so that every sum is small and in one thread."""
    return x.double().sum(2).sum(0)
