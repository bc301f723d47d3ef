"""Delta debugging (Zeller & Hildebrandt 2002): the smallest part of a window whose removal takes
the spike away.

Over steps, then the sequences of the steps that are left, then their documents, then spans of their
tokens. Every test is a real replay; no influence is needed. Steps and sequences give way to others
(a batch without any data would move the model by its moments alone, which hurts too); parts of
sequences weigh 0. What is found is 1-minimal as far as the budget of replays goes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from replay.blame.deletion import AWAY
from replay.blame.window_replays import Replays
from replay.interventions.rows import Slot

BUDGET = 200  # replays
SPAN = 8  # targets of the shortest span
Parts = list[list[Slot]]  # what is kept or removed together


@dataclass(frozen=True)
class Found:
    """What delta debugging ended with, level by level."""

    steps: list[int]
    sequences: list[tuple[int, int]]  # step, slot
    documents: list[int]
    removal: tuple[Slot, ...]  # the spans of targets that are left
    taken: float  # nats that go with `removal`
    replaced: bool  # it was others in their place that took the spike away; weight 0 does not
    complete: bool  # whether the budget sufficed


def bisect(
    replays: Replays,
    budget: int = BUDGET,
    known: Callable[[tuple[Slot, ...]], None] = lambda _: None,
) -> Found | None:
    """None where the spike stays though all data of the window are others. `known` is told each
    smaller set as it is found.
    """
    control = replays.control
    search = _Search(replays, replays.replays + budget, known)
    by_step: Parts = [
        own for s in range(control.begin, control.last + 1) if (own := replays.rows([s]))
    ]
    if not search.gone(by_step):
        return None
    steps = search.minimal(by_step, "steps")
    rows = search.minimal([[slot] for slot in _flat(steps)], "sequences")
    spans, search.replaced = rows, False
    if search.gone(rows):
        documents = search.minimal(_by_document(replays, _flat(rows)), "documents")
        spans = search.minimal(_in_spans(_flat(documents)), "spans of tokens")
    else:
        search.replaced = True
    left = tuple(sorted(_flat(spans)))
    return Found(
        sorted({s.step for s in _flat(steps)}),
        sorted({(s.step, s.slot) for s in _flat(rows)}),
        sorted(_documents(replays, left)),
        left,
        replays.taken(left, "", search.replaced),
        search.replaced,
        replays.replays < search.stop,
    )


class _Search:
    def __init__(
        self, replays: Replays, stop: int, known: Callable[[tuple[Slot, ...]], None]
    ) -> None:
        self.replays, self.stop, self.known = replays, stop, known
        self.note, self.replaced = "", True

    def gone(self, parts: Parts) -> bool:
        """Whether the spike goes with these parts."""
        return (
            self.replays.taken(_flat(parts), self.note, self.replaced) >= AWAY * self.replays.excess
        )

    def minimal(self, parts: Parts, what: str) -> Parts:
        """ddmin: halves, then their complements, then finer pieces, until no piece can be given
        back.
        """
        n = 2
        while len(parts) > 1 and self.replays.replays < self.stop:
            self.note = f"bisecting {len(parts)} {what}"
            pieces = _cut(parts, n)
            smaller = next((p for p in pieces if self._affordable() and self.gone(p)), None)
            if smaller is not None:
                parts, n = smaller, 2
            else:
                rests = (
                    [x for j, p in enumerate(pieces) if j != i for x in p]
                    for i in range(len(pieces))
                )
                rest = next(
                    (r for r in rests if n > 2 and self._affordable() and self.gone(r)), None
                )
                if rest is not None:
                    parts, n = rest, max(n - 1, 2)
                elif n >= len(parts):
                    break
                else:
                    n = min(len(parts), 2 * n)
                    continue
            self.known(tuple(sorted(_flat(parts))))
        return parts

    def _affordable(self) -> bool:
        return self.replays.replays < self.stop


def _cut(parts: Parts, n: int) -> list[Parts]:
    edges = [len(parts) * i // n for i in range(n + 1)]
    return [parts[a:b] for a, b in itertools.pairwise(edges) if a < b]


def _flat(parts: Sequence[Sequence[Slot]]) -> list[Slot]:
    return [slot for part in parts for slot in part]


def document_spans(replays: Replays, row: Slot) -> list[tuple[int, Slot]]:
    """(document, its targets) of a row, or of a stretch of it; −1 for a sequence that an
    intervention made.
    """
    batch = replays.run.stream(row.step)
    one = replace(batch, sequence=batch.sequence[row.slot : row.slot + 1])
    found = []
    for span in replays.run.batches.provenance(one)[0]:
        low, high = (
            max(span.start - 1, row.first),
            min(span.stop - 1, row.last),
        )  # target t is token t + 1
        if low < high:
            found.append((span.document, replace(row, first=low, last=high)))
    return found or [(-1, row)]


def _by_document(replays: Replays, rows: list[Slot]) -> Parts:
    parts: dict[int, list[Slot]] = {}
    for row in rows:
        for document, slot in document_spans(replays, row):
            parts.setdefault(document, []).append(slot)
    return list(parts.values())


def _documents(replays: Replays, rows: Sequence[Slot]) -> set[int]:
    return {
        document for row in rows for document, _ in document_spans(replays, row) if document >= 0
    }


def _in_spans(rows: list[Slot]) -> Parts:
    return [
        [replace(row, first=a, last=min(a + SPAN, row.last))]
        for row in rows
        for a in range(row.first, row.last, SPAN)
    ]
