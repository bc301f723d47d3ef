"""Rows into Parquet parts: buffered, atomic, named by one manifest per table that several processes
may extend.

with Writer(run_folder, background=True) as w:
    w.append("steps", step=7, loss=2.31)  # one row
    w.append("heads", step=7, layer=layers, head=head, attn_logit_max=maxima)  # one row per head
    w.flush()  # one part per table, then its manifest, then roll-ups
    w.drain()  # all of it is on disk
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forensics.errors import ForensicsError
from forensics.records import ROLLUPS, TABLES
from forensics.store import manifest as m
from forensics.store import parts as p
from forensics.store.parts import MOST_PARTS, write_atomic
from forensics.store.rollup import RollUp
from forensics.table_schema import Table

if TYPE_CHECKING:
    import pyarrow

__all__ = ["MOST_PARTS", "Writer", "link_table", "replace_table", "write_atomic"]

# flushes that may be unwritten: with a third, the run waits for the disk rather than fill the
# memory
HAND_OVERS = 2
WRITTEN_ONCE = ("note", "interrupt", "resume")  # kinds of events that no step writes again
Rows = dict[
    str, list[tuple[int, dict[str, Any]]]
]  # table → what was appended: number of rows, columns


class Writer:
    """Appends rows to the tables of one run, and keeps their roll-ups.

    In the background, one thread converts, compresses, writes and syncs what `flush` hands over;
    the run only waits where HAND_OVERS flushes are unwritten. A write that fails is raised by the
    next append, flush or drain, once. Its rows and all later ones stay buffered, in order, and the
    next flush tries again.
    """

    def __init__(self, run_folder: str | Path, background: bool = False) -> None:
        self.run_folder = Path(run_folder)
        self.background = background
        self._pending: Rows = {}
        self._handed: deque[tuple[Future[None], Rows]] = (
            deque()
        )  # oldest first; tables leave as they are written
        self._stuck = (
            False  # a write failed: those handed over after it must not be written before it
        )
        self._told = False  # a failure was raised, and nothing was handed over since
        self._thread: ThreadPoolExecutor | None = None
        self._rollups: dict[str, RollUp] = {}
        if (
            background
        ):  # the first write would load it beside a step, which would wait for the interpreter
            import pyarrow.compute
            import pyarrow.parquet  # noqa: F401

    def append(self, table: str, **columns: Any) -> None:
        """Add rows: each value an array or list of one length, or a scalar for all of them; left
        out or None: NULL.

        NaN and ±inf are values, not NULL. Arrays and lists are copied. Errors: those of an earlier
        flush.
        """
        assert table in TABLES, f"no table {table!r} in records.TABLES"
        _check_columns(TABLES[table], columns)
        rows = _count(table, columns)
        self._settle(HAND_OVERS)
        if rows:
            self._pending.setdefault(table, []).append(
                (rows, {name: _copied(v) for name, v in columns.items()})
            )

    def flush(self) -> None:
        """Write every buffered table as one part and name it in its manifest; in the background,
        hand it over for that.

        Errors: storage, integrity.
        """
        self._settle(HAND_OVERS - 1)
        if not self._pending:
            return
        self._told = False
        if not self.background:
            try:
                self._write(self._pending)
            except BaseException:
                self._told = True
                raise
            return
        rows, self._pending = self._pending, {}
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "store")
        self._handed.append((self._thread.submit(self._write_next, rows), rows))

    def drain(self) -> None:
        """Flush, and return when all of it is on disk. Errors: storage, integrity."""
        self.flush()
        self._settle(0)

    def handed_over(self) -> list[Future[None]]:
        """List writes that are not known to be done, oldest first: another thread may wait for what
        comes of them.
        """
        return [write for write, _ in self._handed]

    def truncate(self, step: int) -> None:
        """Forget what was recorded from `step` on, so that a resumed run writes no row twice.

        Rows about state `step` itself stay, and so do, wherever they are, events that training
        does not write again: notes, interrupts and resumes. Errors: storage, integrity.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        self.drain()

        def keep(name: str, rows: pyarrow.Table) -> pyarrow.Table:
            if TABLES[name].of_state:
                return rows.filter(pc.less_equal(rows["step"], step))
            before = pc.less(rows["step"], step)
            if name == "events":
                once = pc.is_in(rows["kind"], pa.array(WRITTEN_ONCE))
                before = pc.or_(before, once)
            return rows.filter(before)

        def without(spec: Table, place: Path, parts: p.Parts) -> p.Parts:
            return p.cut(spec, place, parts, step, lambda rows: keep(spec.name, rows))

        for spec in TABLES.values():
            if spec.stepped and m.load(self.run_folder, spec.name, fresh=True).parts:
                if spec.name in ROLLUPS:
                    self._rollup(spec).cut(step)
                p.change(self.run_folder, spec, without)
                if spec.name in ROLLUPS:
                    self._rollup(spec).finish()

    def compact(self, table: str) -> None:
        """Merge a table's parts into at most half of MOST_PARTS, order kept. Errors: storage,
        integrity.
        """
        p.change(self.run_folder, TABLES[table], p.merged)

    def close(self) -> None:
        """Drain, write the incomplete buckets of the roll-ups and end the thread. May be called
        again.

        After a failure that was raised already it tries once more, and is silent. Errors: storage,
        integrity.
        """
        failure = self._told
        try:
            self.drain()
            for rollup in self._rollups.values():
                rollup.finish()
        except Exception:
            self._told = True
            if not failure:
                raise
        finally:
            if self._thread is not None:
                self._thread.shutdown()
                self._thread = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _settle(self, allowed: int) -> None:
        """Let go of hand-overs that are written, waiting until at most `allowed` are not; raise
        what failed.
        """
        while self._handed and (self._handed[0][0].done() or len(self._handed) > allowed):
            error = self._handed[0][0].exception()
            if error is not None:
                self._take_back()
                raise error
            self._handed.popleft()

    def _take_back(self) -> None:
        """After a failure: everything unwritten is buffered again, in the order in which it was
        appended.
        """
        unwritten: Rows = {}
        for written, rows in [*self._handed, (None, self._pending)]:
            if written is not None:
                written.exception()  # at once: those behind the failure write nothing
            for table, chunks in rows.items():
                unwritten.setdefault(table, []).extend(chunks)
        self._handed.clear()
        self._pending, self._stuck, self._told = unwritten, False, True

    def _write_next(self, rows: Rows) -> None:
        """Return a hand-over, in the thread."""
        if self._stuck:
            return
        try:
            self._write(rows)
        except BaseException:
            self._stuck = True
            raise

    def _write(self, rows: Rows) -> None:
        """Write tables, each leaving `rows` as soon as it is on disk."""
        for table in list(rows):
            spec = TABLES[table]
            arrow = _to_arrow(spec, rows[table])
            count = p.add(self.run_folder, spec, arrow)
            del rows[table]
            if table in ROLLUPS:
                self._rollup(spec).add(arrow)
            if count >= MOST_PARTS:
                self.compact(table)

    def _rollup(self, spec: Table) -> RollUp:
        return self._rollups.setdefault(spec.name, RollUp(self.run_folder, spec))


def replace_table(run_folder: str | Path, table: str, rows: dict[str, list[Any]]) -> None:
    """Replace a whole table by these rows (columns as lists; none left out but NULLs). Errors:
    storage.
    """
    spec = TABLES[table]
    _check_columns(spec, rows)
    count = _count(table, rows)
    arrow = _to_arrow(spec, [(count, rows)]) if count else None

    def swap(spec: Table, place: Path, _: p.Parts) -> p.Parts:
        return () if arrow is None else (p.write_part(place, spec, arrow),)

    p.change(Path(run_folder), spec, swap)


def link_table(run_folder: str | Path, table: str, part: str | Path) -> None:
    """Let a table be one existing Parquet file, hard-linked where the disk allows, else copied.
    Errors: storage, missing.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    import xxhash

    spec, part = TABLES[table], Path(part)
    if not part.is_file():
        raise ForensicsError(
            "missing", f"wanted {table} at {part}, found no such file", "prepare the data again"
        )
    with pq.ParquetFile(part) as file:
        names = file.schema_arrow.names
        open_names = [spec.open_column.name] if spec.open_column else []
        _check_columns(spec, dict.fromkeys((name for name in names if name not in open_names), 0))
        key = file.read([spec.key[0]]).column(0)
    if not len(key):
        return replace_table(run_folder, table, {name: [] for name in spec.key})
    span = pc.min_max(key).as_py()
    digest = xxhash.xxh3_128_hexdigest(part.read_bytes())
    linked = m.Part("", span["min"], span["max"], len(key), part.stat().st_size, digest)

    def swap(spec: Table, place: Path, parts: p.Parts) -> p.Parts:
        if len(parts) == 1 and parts[0].hash == digest:
            return parts
        name = p.free_name(place, linked.first, linked.last)
        try:
            os.link(part, place / name)
        except OSError:  # another file system
            temporary = place / f".tmp-{name}-{os.getpid()}"
            shutil.copyfile(part, temporary)
            os.replace(temporary, place / name)
        return (replace(linked, file=name),)

    columns = [c.name for c in spec.columns] + open_names
    p.change(Path(run_folder), spec, swap, columns=tuple(c for c in columns if c in names))


# ---- from what was appended to Arrow


def _check_columns(spec: Table, columns: dict[str, Any]) -> None:
    column_names = {c.name for c in spec.columns}
    assert columns.keys() <= column_names, (
        f"{spec.name} has no column {sorted(columns.keys() - column_names)}: see records.py"
    )
    missing = [k for k in spec.key if columns.get(k) is None]
    assert not missing, f"{spec.name} needs its key: {missing} left out or None"


def _is_scalar(value: Any) -> bool:
    return (
        isinstance(value, (str, bytes))
        or not hasattr(value, "__len__")
        or getattr(value, "ndim", 1) == 0
    )


def _count(table: str, columns: dict[str, Any]) -> int:
    lengths = {len(v) for v in columns.values() if not _is_scalar(v)}
    assert len(lengths) <= 1, f"{table}: columns of different lengths {sorted(lengths)}"
    return lengths.pop() if lengths else 1


def _copied(value: Any) -> Any:
    """Return the run may write into its arrays again before the thread has read them."""
    if hasattr(value, "__array__") and not isinstance(value, (int, float)):
        import numpy as np

        return np.array(value)
    return list(value) if isinstance(value, list) else value


def _to_arrow(spec: Table, pending: list[tuple[int, dict[str, Any]]]) -> pyarrow.Table:
    import pyarrow as pa

    schema = spec.arrow_schema()
    arrays = [_column([(n, columns.get(f.name)) for n, columns in pending], f.type) for f in schema]
    table = pa.table(arrays, schema=schema)
    for key in spec.key:
        assert table[key].null_count == 0, f"{spec.name}.{key} is part of the key and holds NULL"
    return table


def _column(chunks: list[tuple[int, Any]], type_: pyarrow.DataType) -> pyarrow.Array:
    """One column of all chunks; the fast way is one NumPy concatenation."""
    import numpy as np
    import pyarrow as pa

    if all(value is None for _, value in chunks):
        return pa.nulls(sum(n for n, _ in chunks), type_)
    floats = pa.types.is_floating(type_)
    if floats or pa.types.is_integer(type_):
        numbers = (bool, int, float, np.number) if floats else (int, np.integer)
        kinds = "fiub" if floats else "iu"

        def quick(value: Any) -> bool:
            if isinstance(value, np.ndarray):
                return value.ndim <= 1 and value.dtype.kind in kinds
            return isinstance(value, numbers)

        if all(quick(value) for _, value in chunks):
            joined = np.concatenate(
                [v if getattr(v, "ndim", 0) == 1 else np.full(n, v) for n, v in chunks]
            )
            if floats:
                with np.errstate(over="ignore"):  # a value too large for float32 is inf there
                    return pa.array(joined.astype(type_.to_pandas_dtype(), copy=False))
            return pa.array(joined).cast(type_)
    return pa.concat_arrays([_chunk(n, value, type_) for n, value in chunks])


def _chunk(n: int, value: Any, type_: pyarrow.DataType) -> pyarrow.Array:
    import pyarrow as pa

    if value is None:
        return pa.nulls(n, type_)
    if hasattr(value, "tolist"):  # NumPy; as Python objects NaN stays a value
        value = value.tolist()
    return pa.array([value] * n if _is_scalar(value) else list(value), type_)
