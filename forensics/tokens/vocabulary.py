"""The table `vocabulary`: what is known of each token at a state, one row each.

write_vocabulary(run, 300, indicator=norms, category=categories)
vocabulary(run, 300)  # a pyarrow table, in order of id
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from forensics.progress import ProgressCallback, silent
from forensics.records import VOCABULARY
from forensics.store import parts as p
from forensics.store.parts import MOST_PARTS
from forensics.tokens.exposure import Exposure, ledger
from forensics.tokens.exposure_tally import UNSEEN
from forensics.train.run import Run

if TYPE_CHECKING:
    import pyarrow

    from forensics.table_schema import Table


def write_vocabulary(
    run: Run,
    step: int,
    *,
    indicator: np.ndarray | None = None,
    category: Mapping[int, str] | None = None,
    cause: Mapping[int, str] | None = None,
    exposure: Exposure | None = None,
    progress: ProgressCallback = silent,
) -> None:
    """Put a state's rows into the run's `vocabulary`, in the place of any that it had; all of them
    or none.

    `indicator` is (V,); `category` and `cause` go by id. What is left out keeps what an earlier
    writing knew of this state. Errors: missing, integrity, storage.
    """
    import pyarrow as pa

    exposure = exposure or ledger(run, step, progress)
    V = run.shape.vocabulary
    before = vocabulary(run, step)
    met = exposure.last_step != UNSEEN
    columns = {
        "step": np.full(V, step),
        "token": np.arange(V, dtype=np.int32),
        "text": texts(run),
        "category": _by_id(category, V) or _before(before, "category"),
        "indicator": (
            _before(before, "indicator") if indicator is None else np.asarray(indicator, np.float32)
        ),
        **{
            name: getattr(exposure, name)
            for name in ("exposure_in", "exposure_out", "exposure_grad", "documents")
        },
        "first_seen": pa.array(exposure.first_step, mask=~met),
        "last_seen": pa.array(exposure.last_step, mask=~met),
        "cause": _by_id(cause, V) or _before(before, "cause"),
    }
    schema = VOCABULARY.arrow_schema()
    rows = pa.table(
        {
            f.name: pa.nulls(V, f.type) if columns[f.name] is None else columns[f.name]
            for f in schema
        },
        schema,
    )

    def put(spec: Table, place: Path, parts: p.Parts) -> p.Parts:
        column = (
            *p.cut(spec, place, parts, step, lambda t: _without(t, step)),
            p.write_part(place, spec, rows),
        )
        return p.merged(spec, place, column) if len(column) >= MOST_PARTS else column

    p.change(run.folder, VOCABULARY, put)


def vocabulary(run: Run, step: int) -> pyarrow.Table:
    """Return a state's rows in order of id.

    None where they were never written. Errors: integrity.
    """
    import pyarrow.compute as pc

    rows = run.table("vocabulary")
    return rows.filter(pc.equal(rows["step"], step)).sort_by("token")


def texts(run: Run) -> list[str | None]:
    """Each id as text, (V,); None for a row of the embedding that the tokenizer has no token
    for.
    """
    tokenizer = run.corpus.tokenizer
    ids = [[id] for id in range(run.shape.vocabulary)]
    text = tokenizer.decode_batch(ids, skip_special_tokens=False)
    return [
        spelled if tokenizer.id_to_token(id) is not None else None
        for (id,), spelled in zip(ids, text)
    ]


def _without(rows: pyarrow.Table, step: int) -> pyarrow.Table:
    import pyarrow.compute as pc

    return rows.filter(pc.not_equal(rows["step"], step))


def _by_id(values: Mapping[int, str] | None, V: int) -> list[str | None] | None:
    return None if values is None else [values.get(id) for id in range(V)]


def _before(known: pyarrow.Table, name: str) -> pyarrow.ChunkedArray | Sequence[str | None] | None:
    return known[name] if known.num_rows else None
