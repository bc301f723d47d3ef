"""One pass over a token file: its documents by the id that ends them, its largest id, its hash.

    scanned = scan(file, eot=50279, vocabulary=50304, folder=runs / "_data" / ".scans")

What a pass found is kept beside the corpora, under the file's place, size and times: an import that
was interrupted goes on with the next file, and a second one reads nothing again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forensics.data.token_files.token_file import Boundaries, TokenFile
from forensics.errors import ForensicsError

PIECE = 1 << 22  # ids looked through at once


@dataclass(frozen=True, eq=False)
class Scan:
    """What one pass over a file found."""

    digest: str  # xxh3_128 of its ids' bytes
    limits: np.ndarray  # smallest and largest id
    ends: np.ndarray  # places of the id that ends documents: (n,) int64


def scan(
    file: TokenFile,
    eot: int | None,
    vocabulary: int,
    folder: Path,
    advance: Callable[[int], None] = lambda ids: None,
) -> Scan:
    """Read a file once. Errors: data, where an id has no row of `vocabulary`.

    `eot` None: nobody needs to know where documents end. `advance` is told how many ids more were
    read.
    """
    found = folder / f"{_key(file, eot)}.npz"
    kept = _kept(found)
    if kept is None:
        kept = _read(file, eot, advance)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = found.with_name(f".{found.stem}-{os.getpid()}.npz")
        np.savez(temporary, digest=kept.digest, limits=kept.limits, ends=kept.ends)
        temporary.rename(found)
    else:
        advance(file.tokens)
    if kept.limits[0] < 0 or kept.limits[1] >= vocabulary:
        raise beyond_table(file.path, file.map(), vocabulary)
    return kept


def beyond_table(path: Path, ids: np.ndarray, vocabulary: int, first: int = 0) -> ForensicsError:
    """Say which id of a file has no row in the model's table, and where it stands.

    `ids` are the file's from its id number `first` on.
    """
    for start in range(0, len(ids), PIECE):
        piece = ids[start : start + PIECE]
        outside = np.flatnonzero((piece < 0) | (piece >= vocabulary))
        if len(outside):
            place = start + int(outside[0])
            return ForensicsError(
                "data",
                f"{path}: token {int(ids[place])} at place {first + place:,}; the model has"
                f" {vocabulary:,} rows, ids 0 to {vocabulary - 1}",
                "of another tokenizer, or another --dtype?",
            )
    raise AssertionError("no id is beyond the table")


def refuse_outside(boundaries: Boundaries, file: TokenFile) -> None:
    """Refuse documents that begin beyond the file's end. Errors: data."""
    last = int(boundaries.first_token[-1])
    if last >= max(file.tokens, 1):
        raise ForensicsError(
            "data",
            f"{file.path.name}: wanted documents within its {file.tokens:,} tokens, found one that"
            f" begins at {last:,}",
            "is the index beside it another file's, or the file cut short?",
        )


def _read(file: TokenFile, eot: int | None, advance: Callable[[int], None]) -> Scan:
    import xxhash

    digest, ends, limits = xxhash.xxh3_128(), [np.empty(0, np.int64)], [0, -1]
    ids = file.map()
    for start in range(0, len(ids), PIECE):
        piece = np.ascontiguousarray(ids[start : start + PIECE])
        digest.update(piece.data)
        low, high = int(piece.min()), int(piece.max())
        limits = [min(limits[0], low), max(limits[1], high)]
        if eot is not None:
            ends.append(np.flatnonzero(piece == eot) + start)
        advance(len(piece))
    return Scan(digest.hexdigest(), np.array(limits), np.concatenate(ends))


def _key(file: TokenFile, eot: int | None) -> str:
    import xxhash

    stat = file.path.stat()
    stamp = [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    shape = [file.dtype.str, file.offset, file.tokens, eot]
    return xxhash.xxh3_128_hexdigest(json.dumps([str(file.path), stamp, shape]).encode())


def _kept(path: Path) -> Scan | None:
    try:
        with np.load(path, allow_pickle=False) as kept:
            return Scan(str(kept["digest"]), kept["limits"], kept["ends"])
    except (OSError, ValueError, KeyError, EOFError):
        return None
