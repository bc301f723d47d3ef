"""Draw rows at random beside chosen ones: what a removal of rows is held against.

    sets = RandomSets([Pool(rows, 4)], seed, besides=[chosen])
    sets.draw()                      as many rows of each pool; no set comes twice
    elsewhere(chosen, rows, seed)    the same stretches of as many other rows

Placebos of a fork put other data into its places (placebo.py). Where rows are only left out, the
null is as many others left out instead; both are drawn here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from replay.interventions.rows import Slot

ATTEMPTS = 50  # draws for each set that is asked for, until one is new


class Pool(NamedTuple):
    """Rows to draw from, and how many of them a set takes."""

    rows: Sequence[Slot]
    size: int


class RandomSets:
    """Sets of rows by chance, each another one than all before it and than those `besides`."""

    def __init__(
        self, pools: Sequence[Pool], seed: int, besides: Iterable[Iterable[Slot]] = ()
    ) -> None:
        """Draw so many rows of each pool, by this seed."""
        self._pools, self._rng = pools, np.random.default_rng(seed)
        self._known = {frozenset(slots) for slots in besides}

    def draw(self) -> frozenset[Slot] | None:
        """Draw a set that was not drawn before; None where none comes in ATTEMPTS draws."""
        for _ in range(ATTEMPTS):
            slots = frozenset(
                rows[i]
                for rows, size in self._pools
                for i in self._rng.choice(len(rows), size, replace=False)
            )
            if slots not in self._known:
                self._known.add(slots)
                return slots
        return None

    def up_to(self, number: int) -> Iterator[frozenset[Slot]]:
        """Draw `number` sets, fewer where there are no more."""
        for _ in range(number):
            slots = self.draw()
            if slots is None:
                return
            yield slots


def elsewhere(
    chosen: Iterable[Slot], rows: Mapping[int, Sequence[Slot]], seed: int
) -> frozenset[Slot] | None:
    """Draw as many other rows, the same stretches of targets in them; None: too few others.

    `rows` are those of every step that may be drawn from. Others come from the same steps, as far
    as each has twice as many as are needed, so that there is a choice; what is missing then comes
    from all of them.
    """
    rng = np.random.default_rng(seed)
    stretches: dict[tuple[int, int], list[Slot]] = {}
    for slot in sorted(chosen):
        stretches.setdefault((slot.step, slot.slot), []).append(slot)
    free = {
        step: [row.slot for row in of_step if (step, row.slot) not in stretches]
        for step, of_step in rows.items()
    }
    needed = [step for step, _ in stretches]
    roomy = {step for step in needed if len(free[step]) >= 2 * needed.count(step)}
    drawn: list[Slot] = []
    homeless = []
    for (step, _), spans in stretches.items():
        if step in roomy:
            row = free[step].pop(int(rng.integers(len(free[step]))))
            drawn += [Slot(step, row, span.first, span.last) for span in spans]
        else:
            homeless.append(spans)
    for spans in homeless:
        places = [(step, i) for step, of_step in free.items() for i in range(len(of_step))]
        if not places:
            return None
        step, i = places[int(rng.integers(len(places)))]
        row = free[step].pop(i)
        drawn += [Slot(step, row, span.first, span.last) for span in spans]
    return frozenset(drawn)
