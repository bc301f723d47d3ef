"""Where a text stands in a run's data: documents, and the steps at which it was read, with losses.

where = where_of(runs, "demo", "import os")
where.times, where.documents[0].path, where.readings[0].step
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from forensics.data.text_index import Occurrences, build
from forensics.progress import ProgressCallback, silent
from forensics.result_records import ResultRecord
from replay.interventions.corpus_search import sequences_over
from replay.lineage import ancestors, open_trajectory, own_steps

if TYPE_CHECKING:
    from forensics.train.run import Run

SHOWN = 1000  # documents and readings that a result names, unless more are asked for


@dataclass(frozen=True)
class DocumentHit:
    """A document that holds the text."""

    document: int
    source: str
    path: str
    times: int
    offset: int  # token of the document that holds the first place's first byte


@dataclass(frozen=True)
class TextReading:
    """One place of the text in one row of one batch."""

    step: int
    slot: int
    sequence: int
    document: int
    position: int  # of its first token that the sequence holds, 0 … T
    tokens: int  # of the text that the sequence holds
    whole: bool  # whether it holds all of them
    loss: float | None  # of the sequence, nats/token; None: not recorded
    # mean loss of those of its tokens that are targets there; None: not recorded densely
    text_loss: float | None


@dataclass(frozen=True)
class WhereResult(ResultRecord):
    """Where a text stands in a run's data, and when it was read."""

    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "search for a text"

    run: str
    text: str
    steps: int  # the run was trained to this state
    times: int  # places in the corpus, overlapping ones too
    in_documents: int
    documents: tuple[DocumentHit, ...]  # those with most places first
    in_sequences: int  # sequences that hold a token of it
    held_out: int  # of these, kept out of training
    times_read: int  # rows of batches that hold a token of a place, each place counted
    times_read_whole: int  # of these, rows that hold all of it
    steps_read: tuple[int, ...]  # at which any of it was read, at most as many as readings
    readings: tuple[TextReading, ...]  # in the order of the steps
    unsearched: int  # rows that an intervention made, which are not of the corpus


class _Held(NamedTuple):
    """Which part of which place each sequence holds: (n,) each."""

    place: np.ndarray  # number of the occurrence
    sequence: np.ndarray
    position: np.ndarray  # of the first token that the sequence holds
    tokens: np.ndarray
    whole: np.ndarray


class _Row(NamedTuple):
    """One row of a batch that was read."""

    step: int
    slot: int
    sequence: int
    loss: float | None


def where_of(
    runs: Path, name: str, text: str, most: int = SHOWN, progress: ProgressCallback = silent
) -> WhereResult:
    """Find a text in the data of a run or fork, and the steps at which it was read.

    The index is made where it is not there yet. `most` bounds the documents and readings that are
    named; all are counted. Errors: usage, missing, integrity, storage.
    """
    run = open_trajectory(runs, name)
    found = build(run.corpus, progress).find(text)
    held = _held(run, found)
    steps = _trained(run)
    rows = list(_rows_read(run, set(held.sequence.tolist()), steps))
    readings = sorted(_readings(rows, held, found), key=lambda r: (r.step, r.slot, r.position))
    named = _with_text_losses(run, readings[:most], held)
    return WhereResult(
        run=run.name,
        text=text,
        steps=steps,
        times=len(found),
        in_documents=len(np.unique(found.document)),
        documents=tuple(_documents(run, found, most)),
        in_sequences=len(np.unique(held.sequence)),
        held_out=int(np.isin(np.unique(held.sequence), run.batches.order.held_out).sum()),
        times_read=len(readings),
        times_read_whole=sum(reading.whole for reading in readings),
        steps_read=tuple(dict.fromkeys(reading.step for reading in readings))[:most],
        readings=tuple(named),
        unsearched=_made_rows(run),
    )


def _held(run: Run, found: Occurrences) -> _Held:
    """Find the sequences that hold a token of any place."""
    cut = run.recipe.data.cut
    layout = run.corpus.layout(cut)
    nothing = np.empty(0, np.int64)
    columns = [_Held(nothing, nothing, nothing, nothing, np.empty(0, bool))]
    for source in range(len(run.corpus.sources)):
        places = np.flatnonzero(found.source == source)
        first, stop = found.first[places], found.last[places] + 1
        over = sequences_over(run, source, first, stop)
        start = (over.sequence - layout.first_sequence[source]) * cut.stride
        low = np.maximum(first[over.stretch], start)
        high = np.minimum(stop[over.stretch], start + cut.length)
        whole = high - low == (stop - first)[over.stretch]
        columns.append(_Held(places[over.stretch], over.sequence, low - start, high - low, whole))
    return _Held(*(np.concatenate(column) for column in zip(*columns)))


def _trained(run: Run) -> int:
    """Return the last state that the run or an ancestor has reached."""
    reached = [0]
    for each in ancestors(run):
        steps = each.table("steps", ["step"])["step"]
        reached += [max(steps.to_pylist()) + 1] if len(steps) else []
        if len(steps):
            break
    return max(reached)


def _rows_read(run: Run, sequences: set[int], steps: int) -> Iterator[_Row]:
    """Yield the rows of all batches below `steps` that are one of these sequences.

    From the recorded rows; where a step has none, from the stream itself.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not sequences:
        return
    members = pa.array(sorted(sequences), pa.int64())
    whose = {each.name: each for each in ancestors(run)}
    for name, (first, last) in own_steps(run).items():
        table = whose[name].table("sequences", ["step", "slot", "sequence", "loss"])
        inside = pc.and_(pc.greater_equal(table["step"], first), pc.less(table["step"], last))
        table = table.filter(pc.and_(inside, pc.less(table["step"], steps)))
        recorded = set(pc.unique(table["step"]).to_pylist())
        chosen = table.filter(pc.is_in(table["sequence"], members))
        yield from (_Row(**row) for row in chosen.to_pylist())
        for step in range(first, int(min(last, steps))):
            if step not in recorded:
                for slot, sequence in enumerate(_ids_at(run, step)):
                    if sequence in sequences:
                        yield _Row(step, slot, sequence, None)


def _ids_at(run: Run, step: int) -> list[int]:
    """Return the ids of a batch's sequences; a fork's are those of its altered stream."""
    if run.parent is None:
        return run.batches.order.sequence_ids(step).tolist()
    return run.stream(step).sequence.tolist()


def _made_rows(run: Run) -> int:
    """Count the recorded rows that interventions made: their text is not the corpus's."""
    import pyarrow.compute as pc

    return sum(
        int(pc.sum(pc.less(each.table("sequences", ["sequence"])["sequence"], 0)).as_py() or 0)
        for each in ancestors(run)
    )


def _readings(rows: list[_Row], held: _Held, found: Occurrences) -> Iterator[TextReading]:
    """Yield each place that each row holds a part of; the loss of its tokens is not looked up."""
    by_sequence: dict[int, list[int]] = {}
    for i, sequence in enumerate(held.sequence.tolist()):
        by_sequence.setdefault(sequence, []).append(i)
    for row in rows:
        for i in by_sequence[row.sequence]:
            yield TextReading(
                row.step,
                row.slot,
                row.sequence,
                int(found.document[held.place[i]]),
                int(held.position[i]),
                int(held.tokens[i]),
                bool(held.whole[i]),
                row.loss,
                None,
            )


def _with_text_losses(run: Run, readings: list[TextReading], held: _Held) -> Iterator[TextReading]:
    """Yield the readings with the mean loss of the text's own targets, where it was recorded."""
    from dataclasses import replace

    import pyarrow as pa
    import pyarrow.compute as pc

    losses: dict[tuple[int, int], dict[int, float]] = {}
    steps = pa.array(sorted({reading.step for reading in readings}), pa.int64())
    whose = {each.name: each for each in ancestors(run)}
    for name, (first, last) in own_steps(run).items():
        table = whose[name].table("tokens", ["step", "slot", "position", "loss"])
        for row in table.filter(pc.is_in(table["step"], steps)).to_pylist():
            if first <= row["step"] < last:
                losses.setdefault((row["step"], row["slot"]), {})[row["position"]] = row["loss"]
    for reading in readings:
        by_target = losses.get((reading.step, reading.slot), {})
        # the token at position p of a sequence is its target p − 1; the first is nobody's target
        targets = range(max(reading.position - 1, 0), reading.position + reading.tokens - 1)
        own = [by_target[p] for p in targets if by_target.get(p) is not None]
        yield replace(reading, text_loss=sum(own) / len(own) if own else None)


def _documents(run: Run, found: Occurrences, most: int) -> Iterator[DocumentHit]:
    """Yield the documents that hold the text, those with most places first."""
    documents, first, times = np.unique(found.document, return_index=True, return_counts=True)
    table = run.corpus.documents
    for i in np.lexsort((documents, -times))[:most].tolist():
        document = int(documents[i])
        start = table["first_token"][document].as_py()
        yield DocumentHit(
            document,
            table["source"][document].as_py(),
            table["path"][document].as_py(),
            int(times[i]),
            int(found.first[first[i]]) - start,
        )
