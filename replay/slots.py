"""Which rows of which batches hold a document, and streams in which such rows are replaced, masked or repacked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from forensics.data.batches import Batch, BatchStream
from forensics.errors import ForensicsError
from forensics.train.run import Run

HOWS = ("replace", "mask", "repack")


@dataclass(frozen=True, order=True)
class Slot:
    """A row of a batch, and the targets of it (first … last−1) that are meant."""

    step: int
    slot: int
    first: int
    last: int


@dataclass(frozen=True)
class Removal:
    """Slots that go, and sequences that may not come in their place."""

    slots: list[Slot]
    forbidden: frozenset[int]


def sequences_of(run: Run, documents: frozenset[int]) -> np.ndarray:
    """Sorted ids (n,) of all sequences that hold a token of these documents."""
    T = run.recipe.data.sequence_length
    layout, table = run.corpus.layout(T), run.corpus.documents
    first_token, tokens = table["first_token"].to_numpy(), table["tokens"].to_numpy()
    found = []
    for index, source in enumerate(run.corpus.sources):
        ids = np.array(
            [d for d in documents if source.first_document <= d < source.first_document + source.documents], np.int64
        )
        # sequence i holds tokens iT … iT+T, so neighbours share one
        low = np.maximum(-(-(first_token[ids] - T) // T), 0)
        high = np.minimum((first_token[ids] + tokens[ids] - 1) // T, layout.n_sequences[index] - 1)
        found += [layout.first_sequence[index] + np.arange(a, b + 1) for a, b in zip(low, high)]
    return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)


def of_documents(run: Run, stream: BatchStream, documents: frozenset[int], how: str, first: int, last: int) -> Removal:
    """The slots of first:last that hold these documents; for a repack, also those of the batches that move up."""
    wanted = sequences_of(run, documents)
    found: list[Slot] = []
    step, stop = first, last
    while step < stop:
        batch = stream(step)
        for row in np.flatnonzero(np.isin(batch.sequence.numpy(), wanted)):
            found += _spans(run, batch, step, int(row), documents, how)
        step += 1
        if how == "repack" and step == stop:
            stop = max(stop, last + -(-len(found) // len(batch.sequence)))
    return Removal(found, frozenset(wanted.tolist()))


def _spans(run: Run, batch: Batch, step: int, row: int, documents: frozenset[int], how: str) -> Iterator[Slot]:
    T = batch.tokens.shape[1] - 1
    if how != "mask":
        yield Slot(step, row, 0, T)
        return
    for span in run.corpus.spans(batch.sequence[row : row + 1].numpy(), T)[0]:
        # target t is token t+1: the sequence's first token is nobody's target here
        low, high = max(span.start, 1) - 1, span.stop - 1
        if span.document in documents and low < high:
            yield Slot(step, row, low, high)


def elsewhere(removal: Removal, stream: BatchStream, first: int, last: int, seed: int) -> list[Slot]:
    """As many random other rows of the same steps, with the same stretches of targets. Errors: usage."""
    rng = np.random.default_rng(seed)
    by_row: dict[tuple[int, int], list[Slot]] = {}
    for slot in removal.slots:
        by_row.setdefault((slot.step, slot.slot), []).append(slot)
    free = {s: [b for b in range(len(stream(s).sequence)) if (s, b) not in by_row] for s in range(first, last)}
    chosen: list[Slot] = []
    for (step, _), spans in sorted(by_row.items()):
        if step >= last:
            continue  # a batch that only moved up
        here = step if free[step] else next((s for s in sorted(free, key=lambda s: abs(s - step)) if free[s]), None)
        if here is None:
            raise ForensicsError(
                "usage",
                "placebos: no sequence of the window is left untouched",
                "widen --from and --to, or ask for no placebos",
            )
        row = free[here].pop(int(rng.integers(len(free[here]))))
        chosen += [Slot(here, row, span.first, span.last) for span in spans]
    return sorted(chosen)


def removed(stream: BatchStream, run: Run, removal: Removal, how: str, first: int) -> BatchStream:
    """The stream without these slots, by one of HOWS."""
    if how == "mask":
        return _masked(stream, removal.slots)
    rows = sorted({(slot.step, slot.slot) for slot in removal.slots})
    if how == "replace":
        return _replaced(stream, run, rows, removal.forbidden)
    return _repacked(stream, rows, first)


def _masked(stream: BatchStream, masked: list[Slot]) -> BatchStream:
    by_step: dict[int, list[Slot]] = {}
    for slot in masked:
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


def _replaced(stream: BatchStream, run: Run, rows: list[tuple[int, int]], forbidden: frozenset[int]) -> BatchStream:
    ids = _next_draws(stream, run, rows, forbidden)

    def altered(s: int) -> Batch:
        batch = stream(s)
        here = [(slot, ids[s, slot]) for slot in range(len(batch.sequence)) if (s, slot) in ids]
        if not here:
            return batch
        at, new = torch.tensor([slot for slot, _ in here]), np.array([i for _, i in here])
        fresh = run.batches.make(new)
        tokens, weight, sequence = batch.tokens.clone(), batch.weight.clone(), batch.sequence.clone()
        tokens[at], weight[at], sequence[at] = fresh.tokens, fresh.weight, fresh.sequence
        return replace(batch, tokens=tokens, weight=weight, sequence=sequence)

    return altered


def _next_draws(
    stream: BatchStream, run: Run, rows: list[tuple[int, int]], forbidden: frozenset[int]
) -> dict[tuple[int, int], int]:
    """For each row the id that takes its place: its source's next draw after the parent's end that is not forbidden.

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
            found = next(draws[source], None)
            if found is not None:
                return found
            barren.add(source)
        if source == most:
            raise ForensicsError(
                "usage",
                "remove-documents: nothing is left to put in the place of what goes",
                "remove fewer documents, or --how mask",
            )
        return draw(most)

    found: dict[tuple[int, int], int] = {}
    by_step: dict[int, np.ndarray] = {}
    for step, slot in rows:
        if step not in by_step:
            by_step[step] = stream(step).sequence.numpy()
        sequence = by_step[step][slot : slot + 1]
        source = most if sequence[0] < 0 else int(order.source_of(sequence)[0])
        found[step, slot] = draw(source)
    return found


def _draws(run: Run, source: int, start: int, forbidden: frozenset[int]) -> Iterator[int]:
    """A source's draws from number `start` on, forbidden ones passed over; ends after an epoch without any."""
    order, n, barren = run.batches.order, start, 0
    size = int(order.n_sequences[source])
    while barren <= size:
        for each in order.draws(source, n, 64).tolist():
            if each in forbidden:
                barren += 1
            else:
                barren = 0
                yield each
        n += 64


def _repacked(stream: BatchStream, rows: list[tuple[int, int]], first: int) -> BatchStream:
    """Rows go, and from `first` on every later row moves up into their places."""
    if not rows:
        return stream
    B = len(stream(first).sequence)
    gone = np.array([(step - first) * B + slot for step, slot in rows], np.int64)
    rank = gone - np.arange(len(gone))  # how many rows stay before each that goes

    def altered(s: int) -> Batch:
        if s < first:
            return stream(s)
        at = (s - first) * B + np.arange(B)
        at += np.searchsorted(rank, at, side="right")
        steps, slots = first + at // B, at % B
        parts = {int(step): stream(int(step)) for step in np.unique(steps)}
        pick = [(parts[int(step)], int(slot)) for step, slot in zip(steps, slots)]
        origins = {batch.origin for batch, _ in pick}
        return Batch(
            torch.stack([batch.tokens[slot] for batch, slot in pick]),
            torch.stack([batch.weight[slot] for batch, slot in pick]),
            parts[int(steps[0])].denominator,
            torch.stack([batch.sequence[slot] for batch, slot in pick]),
            origins.pop() if len(origins) == 1 else None,
        )

    return altered
