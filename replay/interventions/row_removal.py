"""Take rows out of a stream: those that hold a document, by filling, masking or closing a place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from forensics.errors import ForensicsError
from forensics.step.batch import Batch, BatchStream
from replay.interventions.corpus_search import sequences_of
from replay.interventions.rows import Place, Slot, gather, put

if TYPE_CHECKING:
    from forensics.train.run import Run

HOWS = ("replace", "mask", "repack")


@dataclass(frozen=True)
class Removal:
    """Slots that go, and sequences that may not come in their place."""

    slots: list[Slot]
    forbidden: frozenset[int]


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
    for span in run.corpus.spans(batch.sequence[row : row + 1].numpy(), T)[0]:
        # target t is token t+1: the sequence's first token is nobody's target here
        low, high = max(span.start, 1) - 1, span.stop - 1
        if span.document in documents and low < high:
            yield Slot(step, row, low, high)


def removed(stream: BatchStream, run: Run, removal: Removal, how: str, first: int) -> BatchStream:
    """Return the stream without these slots, by one of HOWS."""
    if how == "mask":
        return _masked(stream, removal.slots)
    places = sorted({(slot.step, slot.slot) for slot in removal.slots})
    if how == "replace":
        return _replaced(stream, run, places, removal.forbidden)
    return _repacked(stream, places, first)


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


def _replaced(
    stream: BatchStream, run: Run, places: list[Place], forbidden: frozenset[int]
) -> BatchStream:
    ids = _next_draws(stream, run, places, forbidden)

    def altered(s: int) -> Batch:
        batch = stream(s)
        slots = [slot for slot in range(len(batch.sequence)) if (s, slot) in ids]
        if not slots:
            return batch
        return put(batch, slots, run.batches.make(np.array([ids[s, slot] for slot in slots])))

    return altered


def _next_draws(
    stream: BatchStream, run: Run, places: list[Place], forbidden: frozenset[int]
) -> dict[Place, int]:
    """For each place the id that comes there: its source's next draw after the parent's end that is
    not forbidden.

    A source of which nothing is left gives way to the source that the run draws from most.
    """
    order = run.batches.order
    end = run.header.steps
    draws: dict[int, Iterator[int]] = {}
    barren: set[int] = set()
    most = max(range(len(order.n_sequences)), key=lambda k: order.drawn(k, end))

    def draw(source: int) -> int:
        if source not in barren:
            if source not in draws:
                draws[source] = _draws(run, source, order.drawn(source, end), forbidden)
            sequence = next(draws[source], None)
            if sequence is not None:
                return sequence
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
    for step, slot in places:
        if step not in by_step:
            by_step[step] = stream(step).sequence.numpy()
        sequence = by_step[step][slot : slot + 1]
        source = most if sequence[0] < 0 else int(order.source_of(sequence)[0])
        ids[step, slot] = draw(source)
    return ids


def _draws(run: Run, source: int, start: int, forbidden: frozenset[int]) -> Iterator[int]:
    """Draw from a source from number `start` on, forbidden ones passed over; end after an epoch
    without any.
    """
    order, number, barren = run.batches.order, start, 0
    size = int(order.n_sequences[source])
    while barren <= size:
        for sequence in order.draws(source, number, 64).tolist():
            if sequence in forbidden:
                barren += 1
            else:
                barren = 0
                yield sequence
        number += 64


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
