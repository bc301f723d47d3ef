"""Which parts of a table are alive: `tables/<table>/manifest.json`, and whether their bytes are
those written.

The manifest is the truth: a Parquet file it does not name is a leftover of a killed or superseded
write.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forensics.errors import ForensicsError
from forensics.records import TABLES

if TYPE_CHECKING:
    import pyarrow

VERSION = 1
FILE = "manifest.json"
Key = tuple[
    str, int, int, str
]  # path, size, mtime in ns, hash: what stands for a part that was checked

CHECKED: set[Key] = set()  # parts whose bytes were hashed in this process
_READ: dict[
    str, tuple[tuple[int, int, int], Manifest]
] = {}  # path → (inode, mtime, size), manifest


@dataclass(frozen=True)
class Part:
    """One Parquet file of a table, and the steps that it holds."""

    file: str
    first: int | str  # smallest and largest value of the key's first column
    last: int | str
    rows: int
    bytes: int
    hash: str  # xxh3_128 of the file


@dataclass(frozen=True)
class Manifest:
    """The live parts of a table."""

    table: str
    # that the parts hold: fewer than the schema's where an older version wrote them
    columns: tuple[str, ...]
    parts: tuple[Part, ...] = ()

    def to_json(self) -> bytes:
        """Return the manifest as the text of its file."""
        body = {
            "version": VERSION,
            "table": self.table,
            "columns": self.columns,
            "parts": [vars(p) for p in self.parts],
        }
        return json.dumps(body).encode()


def folder(run_folder: Path, table: str) -> Path:
    """Return the folder of a table."""
    return Path(run_folder) / "tables" / table


def load(run_folder: str | Path, table: str, *, fresh: bool = False) -> Manifest:
    """Return the live parts of a table.

    None where it was never written. `fresh` reads the file again. Errors: integrity.
    """
    # text: with 200 runs, Path objects took half of the time
    path = f"{run_folder}/tables/{table}/manifest.json"
    try:
        stat = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return _nothing(table)
    stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
    cached = _READ.get(path)
    if cached and cached[0] == stamp and not fresh:
        return cached[1]
    try:
        document: dict[str, Any] = json.loads(Path(path).read_bytes())
        if document["version"] != VERSION:
            raise ForensicsError(
                "integrity",
                f"{path}: wanted manifest version {VERSION}, found {document['version']!r}",
                "read this run with the version of the software that wrote it",
            )
        manifest = Manifest(
            table, tuple(document["columns"]), tuple(Part(**p) for p in document["parts"])
        )
    except (ValueError, KeyError, TypeError) as e:
        raise ForensicsError(
            "integrity",
            f"{path} is not a manifest: {e}",
            "restore this file, or run `forensics doctor RUN`",
        ) from None
    except FileNotFoundError:
        return _nothing(table)
    _READ[path] = (stamp, manifest)
    return manifest


@functools.cache
def _nothing(table: str) -> Manifest:
    return Manifest(table, tuple(c.name for c in TABLES[table].columns))


def check(path: Path, part: Part) -> None:
    """Hash a part once per (path, size, mtime) of this process. Errors: integrity;
    FileNotFoundError.
    """
    stat = os.stat(path)
    key = (str(path), stat.st_size, stat.st_mtime_ns, part.hash)
    if key in CHECKED:
        return
    require_hash(path, part, path.read_bytes())
    CHECKED.add(key)


def require_hash(path: Path, part: Part, data: bytes) -> None:
    """Whether `data`, read from `path`, is what was written there. Errors: integrity."""
    import xxhash

    if xxhash.xxh3_128_hexdigest(data) != part.hash:
        raise ForensicsError(
            "integrity",
            f"{path} is not as it was written: wanted hash {part.hash} and "
            f"{part.bytes} bytes, found other bytes ({len(data)})",
            "restore the file from a copy, or replay the run from a checkpoint",
        )


def gone(path: Path) -> ForensicsError:
    """Say that a part is no longer there."""
    return ForensicsError(
        "integrity",
        f"the manifest names {path}, found no such file",
        "restore the file from a copy, or replay the run from a checkpoint",
    )


def rows(
    path: Path, part: Part, schema: pyarrow.Schema, *, always_hash: bool = False
) -> pyarrow.Table:
    """One part as a table of `schema`, NULL in columns it lacks. Errors: integrity;
    FileNotFoundError.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if always_hash:  # what is read to be written again must not give damaged bytes a fresh hash
        data = path.read_bytes()
        require_hash(path, part, data)
        source: Any = pa.BufferReader(data)
    else:
        check(path, part)
        source = str(path)
    with pq.ParquetFile(source) as file:
        have = set(file.schema_arrow.names)
        table = file.read([n for n in schema.names if n in have])
    nothing = [pa.nulls(part.rows, field.type) for field in schema]
    columns = [
        table.column(field.name).cast(field.type) if field.name in have else null
        for field, null in zip(schema, nothing)
    ]
    return pa.table(columns, schema=schema)
