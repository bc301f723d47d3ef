"""Rows into Parquet parts: buffered, atomic, named by one manifest per table that several processes may extend.

with Writer(run_folder) as w:
    w.append("steps", step=7, loss=2.31)                       # one row
    w.append("heads", step=7, layer=layers, head=heads, attn_logit_max=maxima)   # one row per head
    w.flush()                                                  # one part per table, then its manifest
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forensics.errors import ForensicsError
from forensics.records import TABLES, Table
from forensics.store import manifest as m

if TYPE_CHECKING:
    import pyarrow

MOST_PARTS = 64  # a query over 1,000 parts took 160 ms, over 20 parts 6
FEWEST_PARTS = 32  # what compaction brings them down to
ROW_GROUP = 122_880  # rows; DuckDB scans row groups in parallel and skips those whose steps are out of range


def write_atomic(path: Path, data: Any, *, sync_folder: bool = True) -> None:
    """Write bytes so that `path` holds either all of them or what it held before, power cut included. Errors: storage.

    `sync_folder=False` where another file in the same folder is written right after, which syncs both names.
    """
    path = Path(path)
    with _storage(path):
        temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}-{os.urandom(4).hex()}")
        try:
            with open(temporary, "xb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if sync_folder:
            _sync_folder(path.parent)


class Writer:
    """Appends rows to the tables of one run. Buffered rows are kept by reference until `flush`."""

    def __init__(self, run_folder: str | Path) -> None:
        self.run_folder = Path(run_folder)
        self._pending: dict[str, list[tuple[int, dict[str, Any]]]] = {}

    def append(self, table: str, **columns: Any) -> None:
        """Add rows: each value an array or list of one length, or a scalar for all of them; left out or None: NULL.

        NaN and ±inf are values, not NULL. Arrays are not copied: do not write into them before `flush`.
        """
        assert table in TABLES, f"no table {table!r} in records.TABLES"
        _check_columns(TABLES[table], columns)
        rows = _count(table, columns)
        if rows:
            self._pending.setdefault(table, []).append((rows, columns))

    def flush(self) -> None:
        """Write every buffered table as one part and name it in its manifest. Errors: storage, integrity."""
        for table, pending in self._pending.items():
            if pending:
                count = _add(self.run_folder, TABLES[table], _to_arrow(TABLES[table], pending))
                pending.clear()  # after the write: a full disk loses no row of a process that can go on
                if count >= MOST_PARTS:
                    self.compact(table)

    def truncate(self, step: int) -> None:
        """Forget what was recorded from `step` on, so that a resumed run writes no row twice.

        Checkpoints of state `step` itself stay, and notes stay wherever they are. Errors: storage, integrity.
        """
        import pyarrow.compute as pc

        self.flush()

        def keep(name: str, rows: pyarrow.Table) -> pyarrow.Table:
            if name == "checkpoints":
                return rows.filter(pc.less_equal(rows["step"], step))
            before = pc.less(rows["step"], step)
            if name == "events":
                before = pc.or_(before, pc.fill_null(pc.equal(rows["kind"], "note"), False))
            return rows.filter(before)

        def cut(spec: Table, place: Path, parts: tuple[m.Part, ...]) -> tuple[m.Part, ...]:
            kept: list[m.Part] = []
            for part in parts:
                if isinstance(part.last, int) and part.last < step:
                    kept.append(part)
                    continue
                rows = _load(place, part, spec)
                left = keep(spec.name, rows)
                if left.num_rows == rows.num_rows:
                    kept.append(part)
                elif left.num_rows:
                    kept.append(_write_part(place, spec, left))
            return tuple(kept)

        for spec in TABLES.values():
            if spec.stepped and m.load(self.run_folder, spec.name, fresh=True).parts:
                _change(self.run_folder, spec, cut)

    def compact(self, table: str) -> None:
        """Merge a table's parts into at most half of MOST_PARTS, order kept. Errors: storage, integrity."""
        _change(self.run_folder, TABLES[table], _merged)

    def close(self) -> None:
        self.flush()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def replace_table(run_folder: str | Path, table: str, rows: dict[str, list[Any]]) -> None:
    """Replace a whole table by these rows (columns as lists; none left out but NULLs). Errors: storage."""
    spec = TABLES[table]
    _check_columns(spec, rows)
    count = _count(table, rows)
    arrow = _to_arrow(spec, [(count, rows)]) if count else None

    def swap(spec: Table, place: Path, _: tuple[m.Part, ...]) -> tuple[m.Part, ...]:
        return () if arrow is None else (_write_part(place, spec, arrow),)

    _change(Path(run_folder), spec, swap)


def link_table(run_folder: str | Path, table: str, part: str | Path) -> None:
    """Let a table be one existing Parquet file, hard-linked where the disk allows, else copied. Errors: storage, missing."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    import xxhash

    spec, part = TABLES[table], Path(part)
    if not part.is_file():
        raise ForensicsError("missing", f"wanted {table} at {part}, found no such file", "prepare the data again")
    with pq.ParquetFile(part) as file:
        names = file.schema_arrow.names
        _check_columns(spec, dict.fromkeys(names, 0))
        key = file.read([spec.key[0]]).column(0)
    if not len(key):
        return replace_table(run_folder, table, {name: [] for name in spec.key})
    span = pc.min_max(key).as_py()
    digest = xxhash.xxh3_128_hexdigest(part.read_bytes())
    made = m.Part("", span["min"], span["max"], len(key), part.stat().st_size, digest)

    def swap(spec: Table, place: Path, parts: tuple[m.Part, ...]) -> tuple[m.Part, ...]:
        if len(parts) == 1 and parts[0].hash == digest:
            return parts
        name = _free_name(place, made.first, made.last)
        try:
            os.link(part, place / name)
        except OSError:  # another file system
            temporary = place / f".tmp-{name}-{os.getpid()}"
            shutil.copyfile(part, temporary)
            os.replace(temporary, place / name)
        return (replace(made, file=name),)

    _change(Path(run_folder), spec, swap, columns=tuple(c.name for c in spec.columns if c.name in names))


# ---- from what was appended to Arrow


def _check_columns(spec: Table, columns: dict[str, Any]) -> None:
    known = {c.name for c in spec.columns}
    assert columns.keys() <= known, f"{spec.name} has no column {sorted(columns.keys() - known)}: see records.py"
    missing = [k for k in spec.key if columns.get(k) is None]
    assert not missing, f"{spec.name} needs its key: {missing} left out or None"


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (str, bytes)) or not hasattr(value, "__len__") or getattr(value, "ndim", 1) == 0


def _count(table: str, columns: dict[str, Any]) -> int:
    lengths = {len(v) for v in columns.values() if not _is_scalar(v)}
    assert len(lengths) <= 1, f"{table}: columns of different lengths {sorted(lengths)}"
    return lengths.pop() if lengths else 1


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
            joined = np.concatenate([v if getattr(v, "ndim", 0) == 1 else np.full(n, v) for n, v in chunks])
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


# ---- parts and manifests


def _write_part(place: Path, spec: Table, rows: pyarrow.Table) -> m.Part:
    """One new file in the table's folder, not yet named by the manifest."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    import xxhash

    floats = [f.name for f in rows.schema if pa.types.is_floating(f.type)]
    others = [f.name for f in rows.schema if not pa.types.is_floating(f.type)]
    sink = pa.BufferOutputStream()
    # No statistics for floats: Parquet's leave NaN out, and DuckDB, for which NaN is the largest value, would
    # skip a row group that holds one (tried: `where loss > 5` and `max(loss)` missed the NaN).
    pq.write_table(rows, sink, compression="zstd", use_dictionary=others, use_byte_stream_split=floats,
                   write_statistics=others, row_group_size=ROW_GROUP)  # fmt: skip
    data = sink.getvalue()
    span = pc.min_max(rows[spec.key[0]]).as_py()
    name = _free_name(place, span["min"], span["max"])
    write_atomic(place / name, data, sync_folder=False)  # the manifest follows
    return m.Part(name, span["min"], span["max"], rows.num_rows, data.size, xxhash.xxh3_128_hexdigest(data))


def _free_name(place: Path, first: int | str, last: int | str) -> str:
    def safe(x: int | str) -> str:
        return re.sub(r"[^A-Za-z0-9._]", "-", str(x))[:60]

    name, n = f"part-{safe(first)}-{safe(last)}", 0
    while (place / (name + (f"-{n}" if n else "") + ".parquet")).exists():
        n += 1
    return name + (f"-{n}" if n else "") + ".parquet"


def _load(place: Path, part: m.Part, spec: Table) -> pyarrow.Table:
    path = place / part.file
    try:
        return m.rows(path, part, spec.arrow_schema(), always_hash=True)
    except FileNotFoundError:
        raise m.gone(path) from None


def _merged(spec: Table, place: Path, parts: tuple[m.Part, ...]) -> tuple[m.Part, ...]:
    """The smallest neighbours joined until few remain: a row is written again about log2(parts) times in all."""
    import pyarrow as pa

    groups = [[part] for part in parts]
    sizes = [part.rows for part in parts]
    while len(groups) > FEWEST_PARTS:
        i = min(range(len(groups) - 1), key=lambda i: sizes[i] + sizes[i + 1])
        groups[i] += groups.pop(i + 1)
        sizes[i] += sizes.pop(i + 1)
    merged: list[m.Part] = []
    for group in groups:
        if len(group) == 1:
            merged.append(group[0])
        else:
            merged.append(_write_part(place, spec, pa.concat_tables([_load(place, p, spec) for p in group])))
    return tuple(merged)


def _add(run_folder: Path, spec: Table, rows: pyarrow.Table) -> int:
    """A part more; how many there are now."""
    return len(_change(run_folder, spec, lambda spec, place, parts: (*parts, _write_part(place, spec, rows))).parts)


def _change(
    run_folder: Path,
    spec: Table,
    edit: Callable[[Table, Path, tuple[m.Part, ...]], tuple[m.Part, ...]],
    columns: tuple[str, ...] | None = None,
) -> m.Manifest:
    """Read, edit and replace a table's manifest under its lock, then delete what it no longer names."""
    place = m.folder(run_folder, spec.name)
    current = tuple(c.name for c in spec.columns)
    with _storage(place), _locked(place):
        old = m.load(run_folder, spec.name, fresh=True)
        parts = edit(spec, place, old.parts)
        kept = {p.file for p in old.parts} & {p.file for p in parts}
        if kept and columns is None and old.columns != current:  # an older schema wrote them: bring them up to this one
            parts = tuple(_write_part(place, spec, _load(place, p, spec)) if p.file in kept else p for p in parts)
        new = m.Manifest(spec.name, columns or current, parts)
        if new != old:
            write_atomic(place / "manifest.json", new.to_json())
        live = {p.file for p in parts}
        for path in place.iterdir():  # under the lock nobody else is writing: the rest is left over
            if path.name.startswith(".tmp-") or (path.suffix == ".parquet" and path.name not in live):
                path.unlink(missing_ok=True)
    return new


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """One writer of a table at a time, over threads and processes."""
    place.mkdir(parents=True, exist_ok=True)
    with open(place / ".lock", "ab") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _storage(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise ForensicsError("storage", f"could not write {path}: {e.strerror or e}",
                             "free space or check permissions; nothing that was there before is lost") from None  # fmt: skip


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
