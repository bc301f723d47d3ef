"""Take rows out of a stream: those that hold a document, by filling, masking or closing a place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from forensics.errors import ForensicsError
from forensics.step.batch import Batch, BatchStream
from replay.interventions.corpus_search import sequences_of
from replay.interventions.rows import Place, Slot, gather, put

if TYPE_CHECKING:
    from forensics.train.run import Run

HOWS = ("replace", "mask", "repack")
Draws = tuple[int, ...]  # of each source, the number of a draw of the run's order


@dataclass(frozen=True)
class Removal:
    """Slots that go, and sequences that may not come in their place."""

    slots: list[Slot]
    forbidden: frozenset[int]

    @property
    def places(self) -> list[Place]:
        """Return the places of the slots, each once, in the stream's order."""
        return sorted({(slot.step, slot.slot) for slot in self.slots})


def of_documents(
    run: Run, stream: BatchStream, documents: frozenset[int], how: str, first: int, last: int
) -> Removal:
    """Find the slots of first:last that hold these documents; for a repack, also those of the
    batches that move up.
    """
    holders = sequences_of(run, documents)
    slots: list[Slot] = []
    step, stop = first, last
    while step < stop:
        batch = stream(step)
        for row in np.flatnonzero(np.isin(batch.sequence.numpy(), holders)):
            slots += _spans(run, batch, step, int(row), documents, how)
        step += 1
        if how == "repack" and step == stop:
            stop = max(stop, last + -(-len(slots) // len(batch.sequence)))
    return Removal(slots, frozenset(holders.tolist()))


def _spans(
    run: Run, batch: Batch, step: int, row: int, documents: frozenset[int], how: str
) -> Iterator[Slot]:
    T = batch.tokens.shape[1] - 1
    if how != "mask":
        yield Slot(step, row, 0, T)
        return
    for span in run.corpus.spans(batch.sequence[row : row + 1].numpy(), run.recipe.data.cut)[0]:
        # target t is token t+1: the sequence's first token is nobody's target here
        low, high = max(span.start, 1) - 1, span.stop - 1
        if span.document in documents and low < high:
            yield Slot(step, row, low, high)


def removed(
    stream: BatchStream,
    run: Run,
    removal: Removal,
    how: str,
    first: int,
    draws: Draws | None = None,
) -> BatchStream:
    """Return the stream without these slots, by one of HOWS; `draws` as `next_draws` takes them."""
    if how == "mask":
        return _masked(stream, removal.slots)
    if how == "replace":
        return _replaced(stream, run, next_draws(stream, run, removal, draws).ids)
    return _repacked(stream, removal.places, first)


def _masked(stream: BatchStream, slots: list[Slot]) -> BatchStream:
    by_step: dict[int, list[Slot]] = {}
    for slot in slots:
        by_step.setdefault(slot.step, []).append(slot)

    def altered(s: int) -> Batch:
        batch = stream(s)
        if s not in by_step:
            return batch
        weight = batch.weight.clone()
        for slot in by_step[s]:
            weight[slot.slot, slot.first : slot.last] = 0.0
        return replace(batch, weight=weight)

    return altered


def _replaced(stream: BatchStream, run: Run, ids: dict[Place, int]) -> BatchStream:
    def altered(s: int) -> Batch:
        batch = stream(s)
        slots = [slot for slot in range(len(batch.sequence)) if (s, slot) in ids]
        if not slots:
            return batch
        return put(batch, slots, run.batches.make(np.array([ids[s, slot] for slot in slots])))

    return altered


class NextDraws(NamedTuple):
    """What comes in the places of rows that go."""

    ids: dict[Place, int]  # of sequences
    end: Draws  # of each source, the number of the draw after the last one


def next_draws(
    stream: BatchStream, run: Run, removal: Removal, begin: Draws | None = None
) -> NextDraws:
    """Draw for each place that goes the next sequence that is not forbidden of the source that the
    run usually has there, from the draws numbered `begin` on; None: from the parent's end.

    That is the row's own source, but for a phase of a few steps (`Order.usual_phase`): what stood
    there must not come again from the very source that is taken out. A source of which nothing is
    left gives way to the source that the run draws from most. Errors: usage.
    """
    order = run.batches.order
    parents_end = run.header.steps
    end = list(begin or (order.drawn(k, parents_end) for k in range(len(order.n_sequences))))
    draws: dict[int, Iterator[Draw]] = {}
    barren: set[int] = set()
    most = max(range(len(order.n_sequences)), key=lambda k: order.drawn(k, parents_end))

    def draw(source: int) -> int:
        if source not in barren:
            if source not in draws:
                draws[source] = _draws(run, source, end[source], removal.forbidden)
            drawn = next(draws[source], None)
            if drawn is not None:
                end[source] = drawn.number + 1
                return drawn.sequence
            barren.add(source)
        if source == most:
            raise ForensicsError(
                "usage",
                "remove-documents: nothing is left to put in the place of what goes",
                "remove fewer documents, or --how mask",
            )
        return draw(most)

    ids: dict[Place, int] = {}
    by_step: dict[int, np.ndarray] = {}
    for step, slot in removal.places:
        if step not in by_step and order.file is not None:
            by_step[step] = stream(step).sequence.numpy()
        source = order.usual_source(step, slot, parents_end)
        if source is None:  # an order file: no more is known than the row itself
            sequence = by_step[step][slot : slot + 1]
            source = most if sequence[0] < 0 else int(order.source_of(sequence)[0])
        ids[step, slot] = draw(source)
    return NextDraws(ids, tuple(end))


class Draw(NamedTuple):
    """One draw of a source: its number, counted over epochs, and what it drew."""

    number: int
    sequence: int


def _draws(run: Run, source: int, start: int, forbidden: frozenset[int]) -> Iterator[Draw]:
    """Draw from a source from number `start` on, forbidden ones passed over; end after an epoch
    without any.
    """
    order, first, barren = run.batches.order, start, 0
    size = int(order.n_sequences[source])
    while barren <= size:
        for number, sequence in enumerate(order.draws(source, first, 64).tolist(), first):
            if sequence in forbidden:
                barren += 1
            else:
                barren = 0
                yield Draw(number, sequence)
        first += 64


def _repacked(stream: BatchStream, places: list[Place], first: int) -> BatchStream:
    """Rows go, and from `first` on every later row moves up into their places."""
    if not places:
        return stream
    B = len(stream(first).sequence)
    numbers = np.array([(step - first) * B + slot for step, slot in places], np.int64)
    rank = numbers - np.arange(len(numbers))  # how many rows stay before each that goes

    def altered(s: int) -> Batch:
        if s < first:
            return stream(s)
        sources = (s - first) * B + np.arange(B)
        sources += np.searchsorted(rank, sources, side="right")
        steps, slots = first + sources // B, sources % B
        return gather(stream, list(zip(steps.tolist(), slots.tolist())))

    return altered
