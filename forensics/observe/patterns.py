"""Every head's attention on one sequence, pair by pair: to be looked at, where `attention` only
tells of extremes.

    seen = patterns(decoder, params, tokens_T)        # seen.weights[layer, head, query, key]

T×T numbers per head: for a sequence, never for a batch. Scores are s_ij = q_i·k_j/√K after RoPE and
QK-norm, weights their softmax over the keys that a query sees (j ≤ i, inside the document where
attention stays there, within the window where the layer slides).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from forensics.model.decoder import Decoder, Params
from forensics.model.shape import Shape
from forensics.step.observer import Site


@dataclass(frozen=True)
class Patterns:
    """L layers, H query heads, n queries and keys (T, or blocks of them), fp32; pairs that are
    masked hold −inf and 0.
    """

    scores: Tensor  # (L, H, n, n)
    weights: Tensor  # (L, H, n, n)
    block: int = 1  # positions in a row and in a column


class _Pairs:
    """Taps q and k and keeps what their products are."""

    wants = frozenset({"q", "k", "documents"})

    def __init__(self, most: int, shape: Shape) -> None:
        self.most = most
        self.shape = shape
        self.q: Tensor | None = None
        self.documents: Tensor | None = None
        self.scores: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.block = 1

    def tap(self, site: Site, x: Tensor) -> None:
        """Take q, then k, of each layer."""
        if site.kind == "documents":
            self.documents = x[0]
        elif site.kind == "q":
            self.q = x[0].float()
        else:
            assert self.q is not None, "q comes before k"
            self._add(self.q, x[0].float(), self.shape.window_of(site.layer))

    def _add(self, q_HTK: Tensor, k_GTK: Tensor, window: int) -> None:
        H, T, K = q_HTK.shape
        self.block = math.ceil(T / self.most)
        position = torch.arange(T, device=q_HTK.device)
        hidden = position[None, :] > position[:, None]
        if window:
            hidden = hidden | (position[:, None] - position[None, :] >= window)
        if self.documents is not None:
            hidden = hidden | (self.documents[None, :] != self.documents[:, None])
        shared = H // k_GTK.shape[0]
        heads = []
        for head in range(H):  # one head at a time: what is held at once is T×T
            scores = (q_HTK[head] @ k_GTK[head // shared].T / math.sqrt(K)).masked_fill(
                hidden, -math.inf
            )
            heads.append((self._pooled(scores), self._pooled(scores.softmax(-1))))
        self.scores.append(torch.stack([scores for scores, _ in heads]).cpu())
        self.weights.append(torch.stack([weights for _, weights in heads]).cpu())

    def _pooled(self, x_TT: Tensor) -> Tensor:
        """Take the largest of each block, so that no peak is lost."""
        if self.block == 1:
            return x_TT
        T, block = len(x_TT), self.block
        padded_length = math.ceil(T / block) * block
        # what is put on at the end is smaller than anything there, and is no NaN where all of a
        # block is
        padded = x_TT.new_full(
            (padded_length, padded_length), -math.inf if x_TT.min() == -math.inf else 0.0
        )
        padded[:T, :T] = x_TT
        return padded.view(padded_length // block, block, padded_length // block, block).amax(
            (1, 3)
        )


@torch.no_grad()
def patterns(
    decoder: Decoder,
    params: Params,
    tokens_T: Tensor,
    documents_T: Tensor | None = None,
    most: int = 128,
) -> Patterns:
    """Compute every head's scores and weights for the T inputs of one sequence.

    `documents_T` is as in `Decoder.hidden`.

    Above `most` positions, blocks of ⌈T/most⌉ by the largest pair in each.
    """
    watch = _Pairs(most, decoder.shape)
    decoder.hidden(
        params, tokens_T[None], watch, None if documents_T is None else documents_T[None]
    )
    return Patterns(torch.stack(watch.scores), torch.stack(watch.weights), watch.block)
