"""Draw placebos: the same fork in a world where other data stands in the places it acts on.

A fork takes out, moves or skips rows of the parent's order. Had other rows of the order stood in
those places, the same interventions would have acted on them. Such a world has its own control
(other rows, nothing done) and its own fork (other rows, the same done), from the same start, over
the same steps. Where the fork's rows are as any others of the order, its distance from its control
and the placebos' from theirs are draws of one distribution, so their ranks are uniform: that is
what p rests on. Where nothing of the rows is left in the fork (`erases`), the placebo's fork is the
fork itself.

What the fork brings in (a text, sequences) or chooses (an order, targets) is drawn anew, beside the
fork's own control. Policies, states and edits have no placebo: they stay in every placebo as they
are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice, repeat
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from forensics.errors import ForensicsError
from replay.interventions.base import Intervention
from replay.interventions.composition import composed
from replay.interventions.rows import Place, consumed_by, rearranged

if TYPE_CHECKING:
    from forensics.step.batch import Batch, BatchStream
    from forensics.train.run import Run

LOOK_AHEAD = 1024  # batches of the order after the window that are looked through at least
FARTHEST = 8192  # batches after the window without one that may stand there: there is none
ENOUGH_PLACEBOS = 19  # that a phase must have other data for, else it is that of another
# draws for each placebo asked for: a draw may come twice (two rows have two orders)
TRIES = 4


@dataclass(frozen=True)
class OtherData(Intervention):
    """Put rows of later batches in the place of rows: the world of a placebo."""

    batches_from: tuple[tuple[int, int], ...] = ()  # (step, the batch that stands there instead)
    rows_from: tuple[tuple[Place, Place], ...] = ()  # (place, that of the row put there)

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        """Ask elsewhere for whole batches, and for rows."""
        sources = dict(self.batches_from)

        def exchanged(step: int) -> Batch:
            return stream(sources.get(step, step))

        return rearranged(exchanged, dict(self.rows_from)) if self.rows_from else exchanged

    def sentence(self) -> str:
        """Say how much other data there is."""
        return f"has other data in {len(self.batches_from)} batches and {len(self.rows_from)} rows"


@dataclass(frozen=True)
class NullFork:
    """One placebo of a fork."""

    world: tuple[Intervention, ...]  # what is other in its control; (): the fork's own control
    interventions: tuple[Intervention, ...] | None  # of its fork; None: the fork itself

    @property
    def arms(self) -> int:
        """Count the trajectories that it needs beside the fork and its control."""
        return bool(self.world) + (self.interventions is not None)


class Setting(NamedTuple):
    """What makes two batches of an order exchangeable: its shares of sources, and how often each
    source had been gone through.
    """

    shares: tuple[float, ...]
    epochs: tuple[int, ...]


def exist(interventions: Sequence[Intervention]) -> bool:
    """Tell whether a fork by these interventions can have placebos."""
    return any(intervention.null for intervention in interventions)


def placebos_of(
    interventions: Sequence[Intervention], run: Run, first: int, last: int, wanted: int, seed: int
) -> list[NullFork]:
    """Draw up to `wanted` placebos of the fork first:last of `run`, no two the same.

    They are numbers seed … seed+wanted−1 of one row of draws, so that the placebos of neighbouring
    seeds differ too. Fewer come back where the order has not enough other data; none where no
    intervention has a placebo.
    """
    if not exist(interventions) or not wanted:
        return []
    data = [
        intervention
        for intervention in interventions
        if intervention.null and not intervention.null.draw
    ]
    drawn = [
        intervention
        for intervention in interventions
        if intervention.null and intervention.null.draw
    ]
    erased = all(intervention.erases() for intervention in data) and not drawn
    worlds = _worlds(data, interventions, run, first, last, seed)
    placebos: list[NullFork] = []
    for number, world in zip(range(seed, seed + TRIES * wanted), worlds):
        altered = _anew(interventions, run, first, last, number)
        if altered is None or (not world and altered == tuple(interventions)):
            continue
        placebo = NullFork(world, None if erased else (*world, *altered))
        if placebo not in placebos:
            placebos.append(placebo)
        if len(placebos) == wanted:
            break
    return placebos


def _worlds(
    data: Sequence[Intervention],
    interventions: Sequence[Intervention],
    run: Run,
    first: int,
    last: int,
    seed: int,
) -> Iterator[tuple[Intervention, ...]]:
    """Yield worlds in which other batches' rows stand where `data` acts, one after the other from
    number `seed` on; the one world as it is where nothing is acted on in its place.
    """
    rows: dict[int, set[int]] = {}
    for intervention in data:
        for slot in intervention.touches(run, run.stream):
            rows.setdefault(slot.step, set()).add(slot.slot)
    if not rows:
        yield from repeat(())
    consumed = consumed_by([run.stream, composed(interventions, run)[0]], first, last)
    for block in islice(_blocks(run, sorted(rows), last, consumed), seed, None):
        batches_from, rows_from = [], []
        for step, donor in zip(sorted(rows), block):
            if len(rows[step]) == run.recipe.train.batch:
                batches_from.append((step, donor))
            else:
                rows_from += [((step, slot), (donor, slot)) for slot in sorted(rows[step])]
        yield (OtherData(tuple(batches_from), tuple(rows_from)),)


def _blocks(
    run: Run, steps: Sequence[int], last: int, consumed: set[int]
) -> Iterator[tuple[int, ...]]:
    """Yield, one block for each placebo, the batches that stand in the place of these steps; no
    batch twice.
    """
    donors: set[int] = set()
    settings = {step: _setting(run, step) for step in steps}
    alike = Counter(settings.values())
    pools: dict[Setting, Iterator[int]] = {}
    for step, setting in settings.items():
        if setting not in pools:
            pools[setting] = _pool(run, step, alike[setting], last, consumed)
    while True:
        block = []
        for step in steps:
            donor = next((batch for batch in pools[settings[step]] if batch not in donors), None)
            if donor is None:
                return
            donors.add(donor)
            block.append(donor)
        yield tuple(block)


def _pool(run: Run, step: int, steps: int, last: int, consumed: set[int]) -> Iterator[int]:
    """Yield later batches of the same setting as `step`, of which a placebo takes `steps`.

    Where there are not enough of them (a phase that is over), those of its usual phase.
    """
    enough, setting = ENOUGH_PLACEBOS * steps, _setting(run, step)
    same = list(islice(_later(run, setting, last, consumed, enough), enough))
    if len(same) < enough:
        order = run.batches.order
        usual = order.shares(order.usual_phase(step, run.header.steps))
        return _later(run, tuple(usual.tolist()), last, consumed, None)
    return _later(run, setting, last, consumed, None)


def _later(
    run: Run,
    setting: Setting | tuple[float, ...],
    last: int,
    consumed: set[int],
    among: int | None,
) -> Iterator[int]:
    """Yield the batches from `last` on that stand in this setting (or have these shares of the
    sources, gone through however often) and hold nothing that the fork or its control consumes.

    With `among`, only the next so many batches and LOOK_AHEAD more are looked through.
    """
    for step in count(last) if among is None else range(last, last + LOOK_AHEAD + 2 * among):
        here = _setting(run, step)
        if setting not in (here, here.shares):
            if step > last + FARTHEST:
                return
            continue
        try:
            ids = run.stream(step).sequence.tolist()
        except ForensicsError:
            return  # the end of an order file
        if consumed.isdisjoint(ids):
            yield step
        elif step > last + FARTHEST:
            return  # so small a corpus that every batch shares sequences with the window


def _setting(run: Run, step: int) -> Setting:
    order = run.batches.order
    shares = tuple(order.shares(step).tolist())
    if not shares:
        return Setting((), ())  # an order file tells no more than its ids
    drawn = [s for s, share in enumerate(shares) if share > 0]
    return Setting(shares, tuple(order.drawn(s, step) // int(order.drawable[s]) for s in drawn))


def fresh_sequences(run: Run, rows: int, last: int, number: int) -> tuple[int, ...]:
    """Return `rows` sequences that the order draws after `last`, others for each number; fewer
    than that, none, at the end of an order file.
    """
    B, ids = run.recipe.train.batch, list[int]()
    start = number * rows
    for step in range(last + start // B, last + (start + rows - 1) // B + 1):
        try:
            ids += run.stream(step).sequence.tolist()
        except ForensicsError:
            return ()
    return tuple(i for i in ids[start % B :][:rows] if i >= 0)


def others_like(
    run: Run, sequences: Sequence[int], first: int, last: int, number: int
) -> tuple[int, ...]:
    """Draw as many other sequences, of which as many were trained on before `first` as of these."""
    met = _met(run, sequences, first)
    rng = np.random.default_rng(number)
    familiar: list[int] = []
    while len(familiar) < met:
        ids = run.stream(int(rng.integers(first))).sequence.tolist()
        familiar.append(int(ids[int(rng.integers(len(ids)))]))
    fresh = fresh_sequences(run, len(sequences) - met, last, number) if met < len(sequences) else ()
    return (*familiar, *fresh)


def _met(run: Run, sequences: Sequence[int], first: int) -> int:
    """Count those of the sequences that the run trained on before state `first`."""
    met: set[int] = set()
    for step in range(first):
        met |= set(sequences).intersection(run.stream(step).sequence.tolist())
    return sum(sequence in met for sequence in sequences)


def _anew(
    interventions: Sequence[Intervention], run: Run, first: int, last: int, number: int
) -> tuple[Intervention, ...] | None:
    """Return the interventions with what they bring in drawn anew; None: nothing to draw from."""
    altered = []
    for intervention in interventions:
        if intervention.null and intervention.null.draw:
            drawn = intervention.null.draw(intervention, run, first, last, number)
            if drawn is None:
                return None
            altered.append(drawn)
        else:
            altered.append(intervention.placed(run))
    return tuple(altered)
