"""Turn the rows that a SELECT returned into what an intervention's field holds.

Each reader gets the run, the rows by column, and the window first:last that the statement chose
for; `fields.Columns` pairs it with its key columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from forensics.errors import ForensicsError
from replay.interventions.fields import Columns, Rows
from replay.interventions.rows import Place

if TYPE_CHECKING:
    from forensics.step.batch import BatchStream
    from forensics.train.run import Run


def ids(column: str) -> Callable[[Run, Rows, int, int], list[int]]:
    """Read the ids of a column, each once, sorted."""
    return lambda run, rows, first, last: sorted({int(value) for value in rows[column]})


def _sequences_in_order(run: Run, rows: Rows, first: int, last: int) -> list[int]:
    return list(dict.fromkeys(int(value) for value in rows["sequence"]))


def places_of(stream: BatchStream, sequences: Sequence[int], first: int, last: int) -> list[Place]:
    """Find every row of first:last that holds one of these sequences, in the order of the
    sequences.
    """
    ids_wanted = np.array(sequences, np.int64)
    places: dict[int, list[Place]] = {}
    for step in range(first, last):
        sequence = stream(step).sequence.numpy()
        for slot in np.flatnonzero(np.isin(sequence, ids_wanted)).tolist():
            places.setdefault(int(sequence[slot]), []).append((step, slot))
    return [place for id in dict.fromkeys(ids_wanted.tolist()) for place in places.get(id, [])]


def _whole_rows(run: Run, places: Sequence[Place]) -> list[tuple[int, int, int, int]]:
    """(step, slot, 0, T) of each place once, in the order of the batches."""
    T = run.recipe.data.cut.targets
    return [(step, slot, 0, T) for step, slot in sorted(set(places))]


def _rows_by_place(run: Run, rows: Rows, first: int, last: int) -> list[tuple[int, int, int, int]]:
    places = zip(rows["step"], rows["slot"])
    return _whole_rows(run, [(int(s), int(b)) for s, b in places if first <= s < last])


def _rows_by_sequence(
    run: Run, rows: Rows, first: int, last: int
) -> list[tuple[int, int, int, int]]:
    sequences = [int(value) for value in rows["sequence"]]
    return _whole_rows(run, places_of(run.stream, sequences, first, last))


def _ranked_places(run: Run, rows: Rows, first: int, last: int) -> list[Place]:
    ranks = {
        (int(s), int(b)): rank
        for s, b, rank in zip(rows["step"], rows["slot"], rows["rank"])
        if first <= s < last
    }
    return _by_rank(ranks)


def _ranked_sequences(run: Run, rows: Rows, first: int, last: int) -> list[Place]:
    ranks = dict(zip((int(value) for value in rows["sequence"]), rows["rank"]))
    return _by_rank(
        {
            (s, b): ranks[i]
            for s in range(first, last)
            for b, i in enumerate(run.stream(s).sequence.tolist())
            if i in ranks
        }
    )


def _by_rank(ranks: dict[Place, Any]) -> list[Place]:
    """Rows by rank; equal ranks keep the order of the batches."""
    try:
        return sorted(ranks, key=lambda place: (ranks[place], place))
    except TypeError:
        raise ForensicsError(
            "sql", "reorder: wanted ranks that compare, found several types", "cast `rank`"
        ) from None


def _targets(run: Run, rows: Rows, first: int, last: int) -> list[tuple[int, int, int]]:
    targets = zip(rows["step"], rows["slot"], rows["position"])
    return sorted({(int(s), int(b), int(p)) for s, b, p in targets if first <= s < last})


DOCUMENTS = (Columns(("document",), ids("document")),)
TOKENS = (Columns(("token",), ids("token")),)
TARGETS = (Columns(("step", "slot", "position"), _targets),)
SEQUENCES = (Columns(("sequence",), _sequences_in_order),)
ROWS = (
    Columns(("step", "slot"), _rows_by_place),
    Columns(("sequence",), _rows_by_sequence),
)
RANKED_ROWS = (
    Columns(("step", "slot", "rank"), _ranked_places),
    Columns(("sequence", "rank"), _ranked_sequences),
)
