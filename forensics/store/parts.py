"""Parts on disk and the manifest that names them: written whole, under a table's lock, or not at
all.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forensics.errors import ForensicsError
from forensics.store import manifest as m
from forensics.table_schema import Table

if TYPE_CHECKING:
    import pyarrow

MOST_PARTS = 64  # a query over 1,000 parts took 160 ms, over 20 parts 6
FEWEST_PARTS = 32  # what compaction brings them down to
# rows; DuckDB scans row groups in parallel and skips those whose steps are out of range
ROW_GROUP = 122_880
Parts = tuple[m.Part, ...]


def write_atomic(path: Path, data: Any, *, sync_folder: bool = True) -> None:
    """Write bytes so that `path` holds either all of them or what it held before, power cut
    included. Errors: storage.

    `sync_folder=False` where another file in the same folder is written right after, which syncs
    both names.
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


def write_part(place: Path, spec: Table, rows: pyarrow.Table) -> m.Part:
    """One new file in the table's folder, not yet named by the manifest."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    import xxhash

    floats = [f.name for f in rows.schema if pa.types.is_floating(f.type)]
    exact_columns = [f.name for f in rows.schema if not pa.types.is_floating(f.type)]
    sink = pa.BufferOutputStream()
    # No statistics for floats: Parquet's leave NaN out, and DuckDB, for which NaN is the largest
    # value, would skip a row group that holds one (tried: `where loss > 5` and `max(loss)` missed
    # the NaN).
    pq.write_table(
        rows,
        sink,
        compression="zstd",
        use_dictionary=exact_columns,
        use_byte_stream_split=floats,
        write_statistics=exact_columns,
        row_group_size=ROW_GROUP,
    )
    data = sink.getvalue()
    span = pc.min_max(rows[spec.key[0]]).as_py()
    name = free_name(place, span["min"], span["max"])
    write_atomic(place / name, data, sync_folder=False)  # the manifest follows
    return m.Part(
        name, span["min"], span["max"], rows.num_rows, data.size, xxhash.xxh3_128_hexdigest(data)
    )


def free_name(place: Path, first: int | str, last: int | str) -> str:
    """Return a file name that no part has yet."""

    def safe(x: int | str) -> str:
        return re.sub(r"[^A-Za-z0-9._]", "-", str(x))[:60]

    name, n = f"part-{safe(first)}-{safe(last)}", 0
    while (place / (name + (f"-{n}" if n else "") + ".parquet")).exists():
        n += 1
    return name + (f"-{n}" if n else "") + ".parquet"


def load(place: Path, part: m.Part, spec: Table) -> pyarrow.Table:
    """Read the manifest of a table."""
    path = place / part.file
    try:
        return m.rows(path, part, spec.arrow_schema(), always_hash=True)
    except FileNotFoundError:
        raise m.gone(path) from None


def merged(spec: Table, place: Path, parts: Parts, fewest: int = FEWEST_PARTS) -> Parts:
    """Return the smallest neighbours joined until `fewest` remain.

    A row is written again about log2(parts) times in all.
    """
    import pyarrow as pa

    groups = [[part] for part in parts]
    sizes = [part.rows for part in parts]
    while len(groups) > fewest:
        i = min(range(len(groups) - 1), key=lambda i: sizes[i] + sizes[i + 1])
        groups[i] += groups.pop(i + 1)
        sizes[i] += sizes.pop(i + 1)
    merged_parts: list[m.Part] = []
    for group in groups:
        if len(group) == 1:
            merged_parts.append(group[0])
        else:
            merged_parts.append(
                write_part(place, spec, pa.concat_tables([load(place, p, spec) for p in group]))
            )
    return tuple(merged_parts)


def add(run_folder: Path, spec: Table, rows: pyarrow.Table) -> int:
    """Return a part more; how many there are now. Errors: storage, integrity."""
    return len(
        change(
            run_folder, spec, lambda spec, place, parts: (*parts, write_part(place, spec, rows))
        ).parts
    )


def cut(
    spec: Table, place: Path, parts: Parts, end: int, keep: Callable[[pyarrow.Table], pyarrow.Table]
) -> Parts:
    """Parts without what `keep` leaves out; those that end before `end` in the key's first column
    stay as they are.
    """
    remaining: list[m.Part] = []
    for part in parts:
        if isinstance(part.last, int) and part.last < end:
            remaining.append(part)
            continue
        rows = load(place, part, spec)
        left = keep(rows)
        if left.num_rows == rows.num_rows:
            remaining.append(part)
        elif left.num_rows:
            remaining.append(write_part(place, spec, left))
    return tuple(remaining)


def change(
    run_folder: Path,
    spec: Table,
    edit: Callable[[Table, Path, Parts], Parts],
    columns: tuple[str, ...] | None = None,
) -> m.Manifest:
    """Read, edit and replace a table's manifest under its lock, then delete what it no longer
    names.
    """
    place = m.folder(run_folder, spec.name)
    current = tuple(c.name for c in spec.columns)
    with _storage(place), _locked(place):
        old = m.load(run_folder, spec.name, fresh=True)
        parts = edit(spec, place, old.parts)
        shared_files = {p.file for p in old.parts} & {p.file for p in parts}
        if (
            shared_files and columns is None and old.columns != current
        ):  # an older schema wrote them: bring them up to this one
            parts = tuple(
                write_part(place, spec, load(place, p, spec)) if p.file in shared_files else p
                for p in parts
            )
        new = m.Manifest(spec.name, columns or current, parts)
        if new != old:
            _replace(place, spec.name, old, new)
        live = {p.file for p in parts}
        for path in place.iterdir():  # under the lock nobody else is writing: the rest is left over
            if path.name.startswith(".tmp-") or (
                path.suffix == ".parquet" and path.name not in live
            ):
                path.unlink(missing_ok=True)
    return new


def _replace(place: Path, table: str, old: m.Manifest, new: m.Manifest) -> None:
    """Write the new manifest, or raise and leave the old one: what failed is written again, and
    must not be twice.
    """
    try:
        write_atomic(place / m.FILE, new.to_json())
    except ForensicsError:
        if (
            m.load(place.parents[1], table, fresh=True) != old
        ):  # renamed, but the folder could not be synced
            write_atomic(place / m.FILE, old.to_json(), sync_folder=False)
        raise


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
        raise ForensicsError(
            "storage",
            f"could not write {path}: {e.strerror or e}",
            "free space or check permissions; nothing that was there before is lost",
        ) from None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
