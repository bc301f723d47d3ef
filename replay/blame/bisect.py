"""Delta debugging: the smallest part of a window whose removal takes the spike away.

After Zeller & Hildebrandt 2002: over steps, then the sequences of the steps that are left, then
their documents, then spans of their tokens. Every test is a real replay; no influence is needed.
Steps and sequences give way to others (a batch without any data would move the model by its moments
alone, which hurts too); parts of sequences weigh 0. The result is 1-minimal as far as the budget of
replays goes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

from replay.blame.result import Bisection
from replay.blame.rules import AWAY, BUDGET, SPAN
from replay.blame.window_replays import WindowReplays
from replay.interventions.rows import Slot

Parts = list[list[Slot]]  # each part is removed as one


def bisect(
    replays: WindowReplays,
    budget: int = BUDGET,
    on_smaller: Callable[[tuple[Slot, ...]], None] = lambda _: None,
) -> Bisection | None:
    """Search for the smallest set; None where the spike stays though all data are others.

    `on_smaller` hears of each smaller set as it is found.
    """
    control = replays.control
    search = DeltaDebugging(replays, replays.replays + budget, on_smaller)
    window = range(control.begin, control.last + 1)
    by_step: Parts = [in_step for step in window if (in_step := replays.rows([step]))]
    if not search.takes_spike_away(by_step):
        return None
    steps = search.minimal(by_step, "steps")
    rows = search.minimal([[slot] for slot in _flat(steps)], "sequences")
    spans, search.replaced = rows, False
    if search.takes_spike_away(rows):
        documents = search.minimal(_by_document(replays, _flat(rows)), "documents")
        spans = search.minimal(_in_spans(_flat(documents)), "spans of tokens")
    else:
        search.replaced = True
    removal = tuple(sorted(_flat(spans)))
    return Bisection(
        tuple(sorted({slot.step for slot in _flat(steps)})),
        tuple(sorted({(slot.step, slot.slot) for slot in _flat(rows)})),
        tuple(sorted(_documents(replays, removal))),
        removal,
        search.replaced,
        replays.replays < search.stop,
        replays.excess_removed(removal, "", search.replaced),
    )


class DeltaDebugging:
    """Make a set of parts smaller for as long as its removal takes the spike away."""

    def __init__(
        self,
        replays: WindowReplays,
        stop: int,
        on_smaller: Callable[[tuple[Slot, ...]], None],
    ) -> None:
        """Search until `replays` has made `stop` replays."""
        self.replays, self.stop, self.on_smaller = replays, stop, on_smaller
        self.note, self.replaced = "", True

    def takes_spike_away(self, parts: Parts) -> bool:
        """Whether the spike goes with these parts."""
        removed = self.replays.excess_removed(_flat(parts), self.note, self.replaced)
        return removed >= AWAY * self.replays.excess

    def minimal(self, parts: Parts, unit: str) -> Parts:
        """Run ddmin: halves, then their complements, then finer pieces, until none can be spared.

        `unit` names the parts in the note beside the bar.
        """
        pieces_wanted = 2
        while len(parts) > 1 and self.replays.replays < self.stop:
            self.note = f"bisecting {len(parts)} {unit}"
            pieces = _cut(parts, pieces_wanted)
            smaller = next(
                (p for p in pieces if self._affords() and self.takes_spike_away(p)), None
            )
            complement = None
            if smaller is None and pieces_wanted > 2:
                complement = next(
                    (
                        c
                        for c in _complements(pieces)
                        if self._affords() and self.takes_spike_away(c)
                    ),
                    None,
                )
            if smaller is not None:
                parts, pieces_wanted = smaller, 2
            elif complement is not None:
                parts, pieces_wanted = complement, max(pieces_wanted - 1, 2)
            elif pieces_wanted >= len(parts):
                break
            else:
                pieces_wanted = min(len(parts), 2 * pieces_wanted)
                continue
            self.on_smaller(tuple(sorted(_flat(parts))))
        return parts

    def _affords(self) -> bool:
        return self.replays.replays < self.stop


def _complements(pieces: list[Parts]) -> list[Parts]:
    return [
        [slots for j, piece in enumerate(pieces) if j != i for slots in piece]
        for i in range(len(pieces))
    ]


def _cut(parts: Parts, pieces: int) -> list[Parts]:
    edges = [len(parts) * i // pieces for i in range(pieces + 1)]
    return [parts[low:high] for low, high in itertools.pairwise(edges) if low < high]


def _flat(parts: Sequence[Sequence[Slot]]) -> list[Slot]:
    return [slot for slots in parts for slot in slots]


def _by_document(replays: WindowReplays, rows: list[Slot]) -> Parts:
    parts: dict[int, list[Slot]] = {}
    for row in rows:
        for stretch in replays.document_stretches(row):
            parts.setdefault(stretch.document, []).append(stretch.slot)
    return list(parts.values())


def _documents(replays: WindowReplays, rows: Sequence[Slot]) -> set[int]:
    stretches = (stretch for row in rows for stretch in replays.document_stretches(row))
    return {stretch.document for stretch in stretches if stretch.document >= 0}


def _in_spans(rows: list[Slot]) -> Parts:
    return [
        [replace(row, first=low, last=min(low + SPAN, row.last))]
        for row in rows
        for low in range(row.first, row.last, SPAN)
    ]
