"""Roll-ups: extremes of a long table per 100 steps, kept beside it, so that a whole run is drawn
from 1 % of its rows.

They are made from the rows on disk and from nothing else: a roll-up that is missing (a run of an
older version, a folder deleted because it was damaged) comes back whole with the next write.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from forensics.records import ROLLUPS
from forensics.rollup_schema import BUCKET, summarised
from forensics.store import manifest as m
from forensics.store import parts as p
from forensics.table_schema import Table

MOST_PARTS, FEWEST_PARTS = (
    16,
    4,
)  # a hundred steps make few rows: in many parts, footers outweigh them

if TYPE_CHECKING:
    import numpy as np
    import pyarrow


def aggregate(spec: Table, rows: pyarrow.Table) -> pyarrow.Table:
    """Rows of `spec` as rows of its roll-up: one for each bucket and rest of the key, in order of
    bucket, then of appearance.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    rolled_up, columns = ROLLUPS[spec.name], summarised(spec)
    keys = ["bucket", *spec.key[1:]]
    work = {"bucket": pa.array(buckets(rows)), **{key: rows[key] for key in spec.key[1:]}}
    nonfinite = pa.chunked_array([np.zeros(rows.num_rows, np.int64)])
    for c in columns:
        values = rows[c.name]
        if pa.types.is_floating(values.type):
            finite = pc.fill_null(pc.is_finite(values), True)  # NULL is not a value
            nonfinite = pc.add(nonfinite, pc.cast(pc.invert(finite), pa.int64()))
            values = pc.if_else(finite, values, pa.scalar(None, values.type))
        work[c.name] = values
    work["nonfinite"] = nonfinite
    aggregations = [("bucket", "count"), ("nonfinite", "sum")]
    aggregations += [
        (c.name, extreme)
        for c in columns
        for extreme in ("min", "max", "mean")
        if f"{c.name}_{extreme}" in _names(rolled_up)
    ]
    # one thread: rows come out in the order of first appearance, and the run keeps its cores
    groups = pa.table(work).group_by(keys, use_threads=False).aggregate(aggregations)
    renamed = {"rows": "bucket_count", "nonfinite": "nonfinite_sum"}
    schema = rolled_up.arrow_schema()
    rolled = pa.table(
        [groups[renamed.get(f.name, f.name)].cast(f.type) for f in schema], schema=schema
    )
    return rolled.take(pc.sort_indices(rolled, sort_keys=[("bucket", "ascending")]))  # stable


def buckets(rows: pyarrow.Table) -> np.ndarray:
    """Return the bucket of each row."""
    return rows["step"].to_numpy() // BUCKET * BUCKET


def _names(table: Table) -> set[str]:
    return {c.name for c in table.columns}


class RollUp:
    """The roll-up of one table of one run. A bucket is written when its last step is, or a later
    one; the rest by `finish`.

    On disk, every bucket before `first` is right; `rows` are the table's rows from there on.
    """

    def __init__(self, run_folder: Path, spec: Table) -> None:
        self.run_folder, self.spec, self.made = run_folder, spec, ROLLUPS[spec.name]
        self.rows: pyarrow.Table | None = None  # None: to be read from disk
        self.first = 0
        self.changed = False  # whether disk does not hold the roll-up of `rows`

    def add(self, rows: pyarrow.Table) -> None:
        """Take in rows that the table's manifest names by now. Errors: storage, integrity."""
        import pyarrow as pa

        earliest = int(buckets(rows).min())
        self.changed = True
        with _Forgetting(self):
            if self.rows is None or earliest < self.first:
                self._read(earliest)
            else:
                self.rows = pa.concat_tables([self.rows, rows])
            assert self.rows is not None
            newest = int(self.rows["step"].to_numpy().max())
            complete_until = (
                newest + 1 if newest % BUCKET == BUCKET - 1 else newest // BUCKET * BUCKET
            )
            if complete_until > self.first:
                self._write(complete_until)

    def finish(self) -> None:
        """Write the incomplete bucket too. Errors: storage, integrity."""
        if self.changed:
            with _Forgetting(self):
                if self.rows is None:
                    self._read(None)
                self._write(None)

    def cut(self, step: int) -> None:
        """Drop the bucket of `step` and all later ones, before the table itself is cut. Errors:
        storage, integrity.
        """
        bucket = step // BUCKET * BUCKET
        self.rows, self.changed = None, True
        if m.load(self.run_folder, self.made.name, fresh=True).parts:
            p.change(
                self.run_folder,
                self.made,
                lambda spec, place, parts: _before(spec, place, parts, bucket),
            )

    def _read(self, earliest: int | None) -> None:
        """Rows from the last bucket that was written, or from an earlier one: it may have been
        incomplete then.
        """
        import pyarrow as pa

        written = [part.last for part in m.load(self.run_folder, self.made.name, fresh=True).parts]
        starts = [int(max(written))] if written else []
        parts = m.load(self.run_folder, self.spec.name, fresh=True).parts
        if not written:
            starts = [int(part.first) // BUCKET * BUCKET for part in parts]
        self.first = min([*starts, *([] if earliest is None else [earliest])], default=0)
        place = m.folder(self.run_folder, self.spec.name)
        late = [p.load(place, part, self.spec) for part in parts if int(part.last) >= self.first]
        rows = pa.concat_tables([self.spec.arrow_schema().empty_table(), *late])
        self.rows = rows.filter(pa.array(rows["step"].to_numpy() >= self.first))

    def _write(self, whole: int | None) -> None:
        """Replace what lies on disk from `first` on by the buckets before `whole` (None: all)."""
        import pyarrow as pa

        assert self.rows is not None
        steps = self.rows["step"].to_numpy()
        settled = self.rows if whole is None else self.rows.filter(pa.array(steps < whole))
        rolled = aggregate(self.spec, settled)

        def replace(spec: Table, place: Path, parts: p.Parts) -> p.Parts:
            earlier = _before(spec, place, parts, self.first)
            return (*earlier, p.write_part(place, spec, rolled)) if rolled.num_rows else earlier

        if len(p.change(self.run_folder, self.made, replace).parts) >= MOST_PARTS:
            p.change(
                self.run_folder,
                self.made,
                lambda spec, place, parts: p.merged(spec, place, parts, FEWEST_PARTS),
            )
        if whole is not None:
            self.rows, self.first = self.rows.filter(pa.array(steps >= whole)), whole
        self.changed = whole is not None and self.rows.num_rows > 0


class _Forgetting:
    """After a failure nothing held in memory is relied upon: the next call reads the disk."""

    def __init__(self, roll: RollUp) -> None:
        self.roll = roll

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.roll.rows, self.roll.changed = None, True


def _before(spec: Table, place: Path, parts: p.Parts, bucket: int) -> p.Parts:
    import pyarrow.compute as pc

    return p.cut(
        spec, place, parts, bucket, lambda rows: rows.filter(pc.less(rows["bucket"], bucket))
    )
