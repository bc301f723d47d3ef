"""Whether a corpus's files still hold the bytes that were written: hashed once, then known again.

    require(folder, {"0-0.bin": "4f1c…"})     # before the file is read; raises where it changed

A file is hashed when it is first read, and its stamp (inode, size, times of the last change of
bytes and of inode) is written to `.intact.json` beside it. While the stamp is the same, no
process hashes it again: opening a corpus of many gigabytes costs a `stat` for each file that is
read. That guards against every change made through the file system, touched times included, for
the kernel alone sets the inode's. It does not guard against a disk that gives other bytes by
itself; `forensics doctor RUN` and `Corpus.verify` read every byte again.

A file that lies elsewhere and is too large to be read whole is hashed by a sample of it: its size
and SAMPLES stretches of SAMPLE_BYTES, spread evenly from its start to its end.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forensics.errors import ForensicsError
from forensics.store.writer import write_atomic

STAMPS = ".intact.json"
SAMPLED = "sampled-"  # begins the hash of a sample
SAMPLES, SAMPLE_BYTES = 16, 1 << 16
SETTLED_S = 2.0  # a file changed later than this before it was hashed may change within one tick

Stamp = tuple[int, int, int, int]
_known: dict[str, tuple[Stamp, str]] = {}  # path → stamp and hash, of this process
# path of the stamps → their file's inode, size and time, and what they say
_parsed: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {}


def hash_file(path: Path) -> str:
    """xxh3_128 of a file's bytes, read in pieces."""
    import xxhash

    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def sample_hash(path: Path) -> str:
    """Hash a file's size and evenly spread stretches of its bytes: SAMPLED and an xxh3_128."""
    import xxhash

    size = path.stat().st_size
    digest = xxhash.xxh3_128(size.to_bytes(8, "little"))
    last = max(size - SAMPLE_BYTES, 0)
    with path.open("rb") as file:
        for number in range(SAMPLES):
            file.seek(last * number // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return SAMPLED + digest.hexdigest()


def hash_as(path: Path, digest: str) -> str:
    """Hash a file as `digest` was made: by a sample, or whole."""
    return sample_hash(path) if digest.startswith(SAMPLED) else hash_file(path)


def require(folder: Path, digests: Mapping[str, str]) -> None:
    """Refuse where a file of these hashes holds other bytes by now. Errors: integrity."""
    unknown = {
        file: digest
        for file, digest in digests.items()
        if _known.get(str(folder / file)) != (_stamp(folder / file, folder), digest)
    }
    if not unknown:
        return
    written, fresh = _written(folder), {}
    for file, digest in unknown.items():
        path = folder / file
        stamp = _stamp(path, folder)
        if written.get(file) != [*stamp, digest]:
            found = hash_as(path, digest)
            if found != digest:
                raise changed(path, f"wanted hash {digest}, found {found}", folder)
            if time.time() - max(stamp[2:]) / 1e9 < SETTLED_S:
                continue
            fresh[file] = [*stamp, digest]
        _known[str(path)] = (stamp, digest)
    if fresh:
        # where the folder cannot be written, the next process hashes again
        with contextlib.suppress(ForensicsError):
            write_atomic(folder / STAMPS, json.dumps(_written(folder) | fresh).encode())


def remember(folder: Path, digests: Mapping[str, str], since: float) -> None:
    """Keep the stamps of files that were hashed after time `since` (seconds), to be known at once.

    A file that changed shortly before that time, or later, is left to be hashed again.
    """
    fresh = {}
    for file, digest in digests.items():
        stamp = _stamp(folder / file, folder)
        if max(stamp[2:]) / 1e9 < since - SETTLED_S:
            fresh[file] = [*stamp, digest]
            _known[str(folder / file)] = (stamp, digest)
    if fresh:
        with contextlib.suppress(ForensicsError):
            write_atomic(folder / STAMPS, json.dumps(_written(folder) | fresh).encode())


def changed(path: Path, how: str, folder: Path | None = None) -> ForensicsError:
    """Say that a file of a corpus in `folder` is no longer what was written."""
    linked = folder is not None and not path.is_relative_to(folder)
    return ForensicsError(
        "integrity",
        f"the data changed since it was prepared: {path}: {how}",
        "restore the file; or import the run again, with --data where its files lie now"
        if linked
        else "restore the file; or delete the folder, and `forensics train` prepares it again from"
        " the same text",
    )


def _stamp(path: Path, folder: Path) -> Stamp:
    try:
        stat = os.stat(path)
    except OSError as e:
        raise changed(path, f"it cannot be read: {e.strerror or e}", folder) from None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _written(folder: Path) -> dict[str, Any]:
    """Return the stamps kept in a folder, parsed once for each time they were written."""
    path = folder / STAMPS
    try:
        stat = path.stat()
        state = stat.st_ino, stat.st_size, stat.st_mtime_ns
        if _parsed.get(str(path), (None, {}))[0] != state:
            document = json.loads(path.read_bytes())
            _parsed[str(path)] = state, document if isinstance(document, dict) else {}
    except (OSError, ValueError):
        return {}
    return _parsed[str(path)][1]
