"""Draw placebos: what chance does with the same steps, as much of it, on other data.

Everything that draws at random for a null fork stands here; a kind names what it draws, in its
`null`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from forensics.errors import ForensicsError
from replay.interventions.base import Intervention, Placebo, Windowed
from replay.interventions.row_removal import Removal
from replay.interventions.rows import Slot

if TYPE_CHECKING:
    from forensics.step.batch import BatchStream
    from forensics.train.run import Run


def placebos_of(
    interventions: Sequence[Intervention], run: Run, first: int, last: int, seed: int
) -> tuple[Intervention, ...]:
    """Draw the placebo of each intervention that has one in the fork first:last of `run`. Errors:
    usage.
    """
    drawn = (
        intervention.placebo(run, run.stream, first, last, seed) for intervention in interventions
    )
    return tuple(placebo for placebo in drawn if placebo is not None)


def _another_window(
    intervention: Windowed, run: Run, stream: BatchStream, first: int, last: int, seed: int
) -> Windowed | None:
    """As many steps elsewhere in the fork's window; None where they do not fit beside it."""
    length = intervention.last - intervention.first
    starts = [
        s
        for s in range(first, last - length + 1)
        if s + length <= intervention.first or s >= intervention.last
    ]
    if not starts:
        return None
    start = starts[int(np.random.default_rng(seed).integers(len(starts)))]
    return replace(intervention, first=start, last=start + length)


ANOTHER_WINDOW = Placebo("another window", _another_window)


def random_sequences(run: Run, n: int, seed: int) -> tuple[int, ...]:
    """Draw n sequences that the run trains on, at random over all its steps: (n,) ids."""
    rng = np.random.default_rng(seed)
    sequences: list[int] = []
    while len(sequences) < n:
        ids = run.batches.order.sequence_ids(int(rng.integers(run.header.steps)))
        sequences.append(int(ids[int(rng.integers(len(ids)))]))
    return tuple(sequences)


def other_rows(
    removal: Removal, stream: BatchStream, first: int, last: int, seed: int
) -> list[Slot]:
    """Draw as many other rows of the same steps, with the same stretches of targets. Errors: usage.

    A step whose untouched rows leave no choice shares those of the steps nearest to it, so that
    placebos differ.
    """
    rng = np.random.default_rng(seed)
    by_row: dict[tuple[int, int], list[Slot]] = {}
    for slot in removal.slots:
        by_row.setdefault((slot.step, slot.slot), []).append(slot)
    free = {
        (s, b)
        for s in range(first, last)
        for b in range(len(stream(s).sequence))
        if (s, b) not in by_row
    }
    chosen: list[Slot] = []
    for step in sorted({s for s, _ in by_row if s < last}):  # a later batch only moved up
        rows = sorted(row for row in by_row if row[0] == step)
        nearest = sorted(free, key=lambda row: (abs(row[0] - step), row))
        in_step = sum(row[0] == step for row in nearest)
        pool = nearest[: in_step if in_step >= 2 * len(rows) else 2 * len(rows)]
        if len(pool) < len(rows):
            raise ForensicsError(
                "usage",
                "placebos: too few sequences of the window are left untouched",
                "widen --from and --to, or ask for no placebos",
            )
        picks = sorted(pool[int(i)] for i in rng.choice(len(pool), len(rows), replace=False))
        free -= set(picks)
        chosen += [
            Slot(*pick, span.first, span.last)
            for row, pick in zip(rows, picks)
            for span in by_row[row]
        ]
    return sorted(chosen)
