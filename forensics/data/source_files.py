"""The files of a source: which a folder has, what each holds, and their bytes, unpacked.

listed(Path("corpus"))         names in order, and what is said of others
format_of(Path("a.jsonl.zst")) Format(holds="jsonl", packed="zst")
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Literal, cast

from forensics.errors import ForensicsError

Holds = Literal["text", "jsonl", "json", "parquet"]

PACKED = {".gz": "gz", ".gzip": "gz", ".bz2": "bz2", ".xz": "xz", ".zst": "zst", ".zstd": "zst"}
RECORDS: dict[str, Holds] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".json": "json",  # records or any other JSON: its first line tells
    ".parquet": "parquet",
    ".pq": "parquet",
}
KINDS_OF_NO_FILE = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True)
class Format:
    """What a file holds, by its name: in capitals or not."""

    holds: Holds
    packed: str | None  # gz | bz2 | xz | zst


def format_of(path: Path) -> Format:
    """Tell what a file holds by the ends of its name."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    packed = PACKED.get(suffixes[-1]) if suffixes else None
    inner = suffixes[:-1] if packed else suffixes
    holds = RECORDS.get(inner[-1], "text") if inner else "text"
    if packed and holds == "text" and (not inner or inner[-1] not in (".txt", ".md")):
        holds = "json"  # `part-00.zst`: records or text, its first line tells
    return Format(holds, packed)


@dataclass
class Listing:
    """The files of a folder, in the order in which they are read."""

    names: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # "path: why"
    notes: list[str] = field(default_factory=list)  # "path: what is odd about it"


def listed(root: Path) -> Listing:
    """List the files below a folder, sorted; hidden names are passed over.

    A link to a file is read, and said where it leads out of the folder; a link to a folder is not
    followed. What is no file (a pipe, a device) is left out.
    """
    listing, inside = Listing(), root.resolve()
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [name for name in folders if (here / name).is_symlink()]:
            listing.left_out.append(f"{_shown(here / name, root)}: a link to a folder")
        for name in files:
            path = here / name
            if name.startswith("."):
                continue
            if what := no_file(path):
                listing.left_out.append(f"{_shown(path, root)}: {what}, not a file")
                continue
            if path.is_symlink() and not _resolved(path).is_relative_to(inside):
                listing.notes.append(f"{_shown(path, root)}: read through a link out of the folder")
            listing.names.append(path.relative_to(root).as_posix())
    listing.names.sort()
    listing.left_out.sort()
    listing.notes.sort()
    return listing


def no_file(path: Path) -> str:
    """Say what a path is that can never be read to its end; empty for all else."""
    try:
        mode = os.stat(path).st_mode
    except OSError:  # a broken link, a loop: opening it says so
        return ""
    return next((what for is_it, what in KINDS_OF_NO_FILE if is_it(mode)), "")


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a loop of links
        return path.absolute()


def _shown(path: Path, root: Path) -> str:
    """Return a path below the folder as text; a file's name may be any bytes."""
    return os.fsencode(path.relative_to(root)).decode("utf-8", "replace")


@contextmanager
def unpacked(path: Path, packed: str | None) -> Iterator[IO[bytes]]:
    """Open a file's bytes for reading, unpacked as they are read. Errors: data, where damaged."""
    try:
        with _opened(path, packed) as file:
            yield file
    except (EOFError, lzma.LZMAError, zlib.error, OSError) as e:
        if packed is None or (isinstance(e, OSError) and e.errno is not None):
            raise
        raise ForensicsError(
            "data",
            f"{path.name}: wanted {packed} data, found it damaged or cut short: {e}",
            "fetch or write the file again",
        ) from None


def _opened(path: Path, packed: str | None) -> IO[bytes]:
    if packed == "gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if packed == "bz2":
        return cast(IO[bytes], bz2.open(path, "rb"))
    if packed == "xz":
        return cast(IO[bytes], lzma.open(path, "rb"))
    if packed == "zst":
        import pyarrow as pa

        stream: Any = pa.CompressedInputStream(pa.OSFile(str(path), "rb"), "zstd")
        return cast(IO[bytes], BufferedReader(stream))
    return path.open("rb")
