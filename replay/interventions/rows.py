"""Rows of batches: name them, gather them into batches, move them in a stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from forensics.step.batch import MADE, Batch, BatchStream
from replay.interventions.text_edit import EditedBatch, edited_rows

if TYPE_CHECKING:
    from torch import Tensor

Place = tuple[int, int]  # step, slot


@dataclass(frozen=True, order=True)
class Slot:
    """A row of a batch, and the targets of it (first … last−1) that are meant."""

    step: int
    slot: int
    first: int
    last: int


def followed(stream: BatchStream) -> BatchStream:
    """Return the same stream with its rows numbered, so that what alters it tells where each goes
    (`standing`).
    """
    import torch

    def numbered(s: int) -> Batch:
        batch = stream(s)
        B = len(batch.sequence)
        return replace(batch, own_row=torch.arange(s * B, (s + 1) * B))

    return numbered


def standing(stream: BatchStream, first: int, last: int) -> dict[Place, list[Place]]:
    """Find where the rows of a followed stream stand in first:last once it was altered: own place →
    places, more than one where a row comes again.
    """
    places: dict[Place, list[Place]] = {}
    for step in range(first, last):
        own_rows = _own_rows(stream(step)).tolist()
        for slot, number in enumerate(own_rows):
            if number != MADE:
                places.setdefault(divmod(number, len(own_rows)), []).append((step, slot))
    return places


def _own_rows(batch: Batch) -> Tensor:
    """(B,) numbers of the batch's own rows; all −1 where it was made."""
    import torch

    return torch.full_like(batch.sequence, MADE) if batch.own_row is None else batch.own_row


def rows_of_steps(stream: BatchStream, steps: Iterable[int]) -> list[Slot]:
    """List every row of these batches."""
    slots = []
    for step in steps:
        B, T = stream(step).weight.shape
        slots += [Slot(step, b, 0, T) for b in range(B)]
    return slots


def whole_rows(stream: BatchStream, places: Iterable[Place]) -> list[Slot]:
    """List the rows at these places, every target of them."""
    lengths: dict[int, int] = {}
    slots = []
    for step, slot in sorted(set(places)):
        if step not in lengths:
            lengths[step] = stream(step).weight.shape[1]
        slots.append(Slot(step, slot, 0, lengths[step]))
    return slots


def consumed_by(streams: Iterable[BatchStream], first: int, last: int) -> set[int]:
    """Return the ids of all sequences of the batches first … last−1 of these streams."""
    return {
        int(i) for stream in streams for step in range(first, last) for i in stream(step).sequence
    }


def gather(stream: BatchStream, places: Sequence[Place], denominator: float | None = None) -> Batch:
    """Make one batch of the rows at these places; its origin is theirs where they share one."""
    import torch

    sources = {step: stream(step) for step in sorted({step for step, _ in places})}
    rows = [(sources[step], slot) for step, slot in places]
    origins = {batch.origin for batch, _ in rows}
    gathered = Batch(
        torch.stack([batch.tokens[slot] for batch, slot in rows]),
        torch.stack([batch.weight[slot] for batch, slot in rows]),
        sources[places[0][0]].denominator if denominator is None else denominator,
        torch.stack([batch.sequence[slot] for batch, slot in rows]),
        origins.pop() if len(origins) == 1 else None,
        torch.stack([_own_rows(batch)[slot] for batch, slot in rows])
        if any(batch.own_row is not None for batch, _ in rows)
        else None,
    )
    memory = {step: edited_rows(batch) for step, batch in sources.items()}
    edited = {
        i: memory[step][slot] for i, (step, slot) in enumerate(places) if slot in memory[step]
    }
    return (
        EditedBatch(
            gathered.tokens,
            gathered.weight,
            gathered.denominator,
            gathered.sequence,
            gathered.origin,
            gathered.own_row,
            edited,
        )
        if edited
        else gathered
    )


def put(batch: Batch, slots: Sequence[int], fresh: Batch) -> Batch:
    """Replace the rows `slots` of the batch by those of `fresh`."""
    import torch

    index = torch.tensor(list(slots))
    tokens, weight, sequence = batch.tokens.clone(), batch.weight.clone(), batch.sequence.clone()
    tokens[index], weight[index], sequence[index] = fresh.tokens, fresh.weight, fresh.sequence
    batch = replace(batch, tokens=tokens, weight=weight, sequence=sequence)
    if batch.own_row is not None:
        own_row = batch.own_row.clone()
        own_row[index] = MADE
        batch = replace(batch, own_row=own_row)
    if not isinstance(batch, EditedBatch):
        return batch
    return replace(
        batch, edited={slot: row for slot, row in batch.edited.items() if slot not in set(slots)}
    )


def rearranged(stream: BatchStream, sources: dict[Place, Place]) -> BatchStream:
    """Return the stream in which each place holds the row that `sources` names; weights go with
    their rows.
    """
    steps = {step for step, _ in sources}

    def altered(s: int) -> Batch:
        if s not in steps:
            return stream(s)
        batch = stream(s)
        places = [sources.get((s, slot), (s, slot)) for slot in range(len(batch.sequence))]
        if all(place == (s, slot) for slot, place in enumerate(places)):
            return batch
        return gather(stream, places, batch.denominator)

    return altered
