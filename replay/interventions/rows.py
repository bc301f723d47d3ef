"""Rows of batches: which of them hold a document or a token, and streams in which rows move, give
way or weigh nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from forensics.errors import ForensicsError
from forensics.step.batch import Batch, BatchStream
from forensics.train.run import Run
from replay.interventions.text_edit import EditedBatch, edited_rows

HOWS = ("replace", "mask", "repack")
CHUNK = 1 << 22  # tokens of the corpus looked at together


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


def whole(stream: BatchStream, steps: Iterable[int]) -> list[Slot]:
    """Every row of these batches."""
    found = []
    for step in steps:
        B, T = stream(step).weight.shape
        found += [Slot(step, b, 0, T) for b in range(B)]
    return found


def rows(stream: BatchStream, at: Iterable[tuple[int, int]]) -> list[Slot]:
    """These rows, whole."""
    lengths: dict[int, int] = {}
    found = []
    for step, slot in sorted(set(at)):
        if step not in lengths:
            lengths[step] = stream(step).weight.shape[1]
        found.append(Slot(step, slot, 0, lengths[step]))
    return found


def places_of(
    stream: BatchStream, sequences: Sequence[int], first: int, last: int
) -> list[tuple[int, int]]:
    """(step, slot) of every row of first:last that holds one of these sequences, in the order of
    the sequences.
    """
    wanted = np.array(sequences, np.int64)
    found: dict[int, list[tuple[int, int]]] = {}
    for step in range(first, last):
        ids = stream(step).sequence.numpy()
        for slot in np.flatnonzero(np.isin(ids, wanted)).tolist():
            found.setdefault(int(ids[slot]), []).append((step, slot))
    return [
        place for sequence in dict.fromkeys(wanted.tolist()) for place in found.get(sequence, [])
    ]


def random_sequences(run: Run, n: int, seed: int) -> tuple[int, ...]:
    """n sequences that the run trains on, at random over all its steps: (n,) ids."""
    rng = np.random.default_rng(seed)
    found: list[int] = []
    while len(found) < n:
        ids = run.batches.order.sequence_ids(int(rng.integers(run.header.steps)))
        found.append(int(ids[int(rng.integers(len(ids)))]))
    return tuple(found)


def gather(
    stream: BatchStream, picks: Sequence[tuple[int, int]], denominator: float | None = None
) -> Batch:
    """One batch of these rows, (step, slot) each; its origin is theirs where they share one."""
    parts = {step: stream(step) for step in sorted({step for step, _ in picks})}
    chosen = [(parts[step], slot) for step, slot in picks]
    origins = {batch.origin for batch, _ in chosen}
    made = Batch(
        torch.stack([batch.tokens[slot] for batch, slot in chosen]),
        torch.stack([batch.weight[slot] for batch, slot in chosen]),
        parts[picks[0][0]].denominator if denominator is None else denominator,
        torch.stack([batch.sequence[slot] for batch, slot in chosen]),
        origins.pop() if len(origins) == 1 else None,
    )
    memory = {step: edited_rows(batch) for step, batch in parts.items()}
    edited = {i: memory[step][slot] for i, (step, slot) in enumerate(picks) if slot in memory[step]}
    return (
        EditedBatch(made.tokens, made.weight, made.denominator, made.sequence, made.origin, edited)
        if edited
        else made
    )


def put(batch: Batch, at: Sequence[int], fresh: Batch) -> Batch:
    """The batch with the rows `at` replaced by those of `fresh`."""
    index = torch.tensor(list(at))
    tokens, weight, sequence = batch.tokens.clone(), batch.weight.clone(), batch.sequence.clone()
    tokens[index], weight[index], sequence[index] = fresh.tokens, fresh.weight, fresh.sequence
    batch = replace(batch, tokens=tokens, weight=weight, sequence=sequence)
    if not isinstance(batch, EditedBatch):
        return batch
    return replace(
        batch, edited={row: each for row, each in batch.edited.items() if row not in set(at)}
    )


def placed(stream: BatchStream, sources: dict[tuple[int, int], tuple[int, int]]) -> BatchStream:
    """The stream in which each place holds the row that `sources` names; weights go with their
    rows.
    """
    steps = {step for step, _ in sources}

    def altered(s: int) -> Batch:
        if s not in steps:
            return stream(s)
        own = stream(s)
        picks = [sources.get((s, slot), (s, slot)) for slot in range(len(own.sequence))]
        if all(pick == (s, slot) for slot, pick in enumerate(picks)):
            return own
        return gather(stream, picks, own.denominator)

    return altered


def holding(run: Run, token: int) -> np.ndarray:
    """Sorted ids of all sequences that have the token as a target, held-out ones left out: (n,)
    int64.
    """
    T = run.recipe.data.sequence_length
    layout = run.corpus.layout(T)
    found = [np.empty(0, np.int64)]
    for index, at, ids in _scan(run):
        # target p of the stream belongs to the sequence (p − 1) // T; the first token is nobody's
        # target
        places = at + np.flatnonzero(ids == token)
        of = np.unique((places[places > 0] - 1) // T)
        found.append(layout.first_sequence[index] + of[of < layout.n_sequences[index]])
    return np.setdiff1d(np.concatenate(found), run.batches.order.held_out)


def token_counts(run: Run) -> np.ndarray:
    """How often each token id stands in the corpus: (V,)."""
    counts = np.zeros(run.corpus.vocabulary, np.int64)
    for _, _, ids in _scan(run):
        counts += np.bincount(ids, minlength=len(counts))
    return counts


def _scan(run: Run) -> Iterator[tuple[int, int, np.ndarray]]:
    """(source, offset, tokens) of the whole corpus, through its memory maps in pieces."""
    for index, source in enumerate(run.corpus.sources):
        for at in range(0, source.tokens, CHUNK):
            yield index, at, run.corpus.tokens(index, at, min(at + CHUNK, source.tokens))


def sequences_of(run: Run, documents: frozenset[int]) -> np.ndarray:
    """Sorted ids (n,) of all sequences that hold a token of these documents."""
    T = run.recipe.data.sequence_length
    layout, table = run.corpus.layout(T), run.corpus.documents
    first_token, tokens = table["first_token"].to_numpy(), table["tokens"].to_numpy()
    found = []
    for index, source in enumerate(run.corpus.sources):
        ids = np.array(
            [
                d
                for d in documents
                if source.first_document <= d < source.first_document + source.documents
            ],
            np.int64,
        )
        # sequence i holds tokens iT … iT+T, so neighbours share one
        low = np.maximum(-(-(first_token[ids] - T) // T), 0)
        high = np.minimum((first_token[ids] + tokens[ids] - 1) // T, layout.n_sequences[index] - 1)
        found += [layout.first_sequence[index] + np.arange(a, b + 1) for a, b in zip(low, high)]
    return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)


def of_documents(
    run: Run, stream: BatchStream, documents: frozenset[int], how: str, first: int, last: int
) -> Removal:
    """The slots of first:last that hold these documents; for a repack, also those of the batches
    that move up.
    """
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


def elsewhere(
    removal: Removal, stream: BatchStream, first: int, last: int, seed: int
) -> list[Slot]:
    """As many random other rows of the same steps, with the same stretches of targets. Errors:
    usage.

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
        own = sum(row[0] == step for row in nearest)
        pool = nearest[: own if own >= 2 * len(rows) else 2 * len(rows)]
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


def removed(stream: BatchStream, run: Run, removal: Removal, how: str, first: int) -> BatchStream:
    """The stream without these slots, by one of HOWS."""
    if how == "mask":
        return _masked(stream, removal.slots)
    gone = sorted({(slot.step, slot.slot) for slot in removal.slots})
    if how == "replace":
        return _replaced(stream, run, gone, removal.forbidden)
    return _repacked(stream, gone, first)


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


def _replaced(
    stream: BatchStream, run: Run, rows: list[tuple[int, int]], forbidden: frozenset[int]
) -> BatchStream:
    ids = _next_draws(stream, run, rows, forbidden)

    def altered(s: int) -> Batch:
        batch = stream(s)
        here = [(slot, ids[s, slot]) for slot in range(len(batch.sequence)) if (s, slot) in ids]
        if not here:
            return batch
        return put(
            batch, [slot for slot, _ in here], run.batches.make(np.array([i for _, i in here]))
        )

    return altered


def _next_draws(
    stream: BatchStream, run: Run, rows: list[tuple[int, int]], forbidden: frozenset[int]
) -> dict[tuple[int, int], int]:
    """For each row the id that takes its place: its source's next draw after the parent's end that
    is not forbidden.

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
    """A source's draws from number `start` on, forbidden ones passed over; ends after an epoch
    without any.
    """
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
        return gather(stream, list(zip(steps.tolist(), slots.tolist())))

    return altered
