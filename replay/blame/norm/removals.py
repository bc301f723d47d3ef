"""Sequences of one batch left out, and its gradient norm computed again: exact, without a replay.

Left out means weight 0 with the denominator kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from forensics.step.batch import Batch
from forensics.train.run import Run
from replay.blame.candidates import Influences, by_document, by_source
from replay.blame.deletion import Suspect
from replay.blame.norm.batch_norm import BatchNorm, Params
from replay.blame.result import DocumentInfluence
from replay.blame.window_replays import DocumentStretch, document_stretches
from replay.interventions.random_rows import Pool, RandomSets
from replay.interventions.rows import Slot

SHARE = 0.5  # of a batch's sequences that may be called a cause
RANDOM = 19  # distinct random sets: p ≤ 0.05 needs so many
SEED = 0


class Removals:
    """One batch at one state: the shares of its sequences, and its norm without some of them."""

    def __init__(
        self,
        run: Run,
        gradient: BatchNorm,
        params: Params,
        batch: Batch,
        step: int,
        on_pass: Callable[[str], None],
    ) -> None:
        self.run, self.gradient, self.params, self.batch = run, gradient, params, batch
        self.step, self._on_pass = step, on_pass
        self.whole = gradient.norm(params, batch)
        on_pass("shares of the gradient norm")
        self.by_token: np.ndarray = gradient.by_token(params, batch).double().cpu().numpy()
        T = batch.weight.shape[1]
        weighs = (batch.weight.sum(1) > 0).nonzero()[:, 0].tolist()
        self.rows = [Slot(step, slot, 0, T) for slot in weighs]
        shares = self.by_token.sum(1)
        self.influence = {row: float(shares[row.slot]) for row in self.rows}
        self.ranked = sorted(self.rows, key=lambda row: (-self.influence[row], row.slot))
        self._cache: dict[frozenset[int], float] = {}

    def document_stretches(self, row: Slot) -> list[DocumentStretch]:
        """Cut a row, or a stretch of it, at the bounds of its documents."""
        return document_stretches(self.run, row, self.batch)

    def fall(self, slots: Sequence[Slot]) -> float:
        """Return by how much the norm falls without these sequences."""
        left_out = frozenset(slot.slot for slot in slots)
        if left_out not in self._cache:
            weight = self.batch.weight.clone()
            weight[torch.tensor(sorted(left_out), dtype=torch.int64)] = 0.0
            self._on_pass(f"without {len(left_out)} sequences")
            left = self.gradient.norm(self.params, replace(self.batch, weight=weight))
            self._cache[left_out] = self.whole - left
        return self._cache[left_out]

    def sizes(self) -> list[int]:
        """List 1, 2, 4, … up to half of the batch."""
        most = int(SHARE * len(self.rows))
        powers = [2**i for i in range(most.bit_length()) if 2**i <= most]
        return powers if not powers or powers[-1] == most else [*powers, most]

    def random_sets(self, slots: Sequence[Slot]) -> Iterator[tuple[Slot, ...]]:
        """Draw distinct sets of as many sequences of the batch, none of them `slots` itself."""
        random = RandomSets([Pool(self.rows, len(slots))], SEED, besides=[slots])
        for chosen in random.up_to(RANDOM):
            yield tuple(sorted(chosen))


@dataclass(frozen=True)
class _Documents:
    by_size: list[DocumentInfluence]
    rows: dict[int | None, tuple[Slot, ...]]


def _documents(removals: Removals) -> _Documents:
    shares = Influences(
        removals.step, removals.by_token[None], np.ones((1, len(removals.by_token)), bool)
    )
    rows: dict[int | None, dict[Slot, None]] = {}
    for row in removals.rows:
        for stretch in removals.document_stretches(row):
            key = stretch.document if stretch.document >= 0 else None
            rows.setdefault(key, {})[row] = None
    by_size = by_document(removals, shares, removals.rows)
    return _Documents(by_size, {key: tuple(holding) for key, holding in rows.items()})


def sets_to_try(removals: Removals, strongest: int) -> list[Suspect]:
    """Name what may be left out as a whole: the sequences of the leading document, of the leading
    source, the strongest; none that is more than half of the batch.
    """
    documents = _documents(removals)
    leading = [d for d in documents.by_size if d.document is not None and (d.influence or 0) > 0]
    suspects = []
    if leading:
        first = leading[0]
        slots = documents.rows[first.document]
        suspects.append(Suspect("document", slots, str(first.path), str(first.source)))
    sources = by_source(documents.by_size)
    if len(sources) > 1 and sources[0].source is not None:
        members = [d for d in documents.by_size if d.source == sources[0].source]
        slots = tuple(dict.fromkeys(s for d in members for s in documents.rows[d.document]))
        suspects.append(Suspect("source", slots, sources[0].source, count=len(members)))
    top = tuple(removals.ranked[:strongest])
    suspects.append(Suspect("strongest", top, count=len(top)))
    most = max(1, int(SHARE * len(removals.rows)))
    return [suspect for suspect in suspects if 0 < len(suspect.slots) <= most]


def largest_fall(removals: Removals, size: int) -> float:
    """Return the most that the same search takes of a batch's norm with up to `size` sequences."""
    sizes = sorted({*(n for n in removals.sizes() if n <= size), size})
    suspects = [s for n in sizes for s in sets_to_try(removals, n) if len(s.slots) <= size]
    return max((removals.fall(suspect.slots) for suspect in suspects), default=0.0)
