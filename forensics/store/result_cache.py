"""A computed result, kept in a file under a key: read whole or not at all, written atomically.

    path = path_of(run.folder / "exposure", f"{step:06d}-", "all that it depends on", ".npy")
    counts = read_array(path)              # None where there is none, or a damaged one
    write_array(path, counts)

The key is a hash of all that the result depends on, so that a result of anything else is not there
rather than wrong. A damaged file is as if it were not there: what it held is computed again. Where
a measurement has many parts, each is kept as it comes: forensics.store.resumable.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from forensics.errors import ForensicsError
from forensics.store.parts import write_atomic


def key_of(identity: str) -> str:
    """Return the 16 hexadecimal digits that stand for all that a result depends on."""
    import xxhash

    return xxhash.xxh3_64_hexdigest(identity.encode())


def path_of(folder: Path, prefix: str, identity: str, suffix: str) -> Path:
    """Return the file of `folder` in which the result that depends on `identity` is kept."""
    return folder / f"{prefix}{key_of(identity)}{suffix}"


def write(path: Path, content: bytes) -> None:
    """Write a file, at once or not at all, in a folder that is made. Errors: storage."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ForensicsError(
            "storage",
            f"could not write {path}: {e.strerror or e}",
            "is there space, and may this user write there?",
        ) from None
    write_atomic(path, content)


def read_array(path: Path) -> np.ndarray | None:
    """Read one array; None where there is none, or a damaged one."""
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError):
        return None


def write_array(path: Path, array: np.ndarray) -> None:
    """Write one array as `.npy`. Errors: storage."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    write(path, content.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Read arrays by name; None where there are none, or damaged ones."""
    try:
        # opened here: of a torn file numpy would leave it open
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile):
        return None


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name as `.npz`. Errors: storage."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write(path, content.getvalue())


def read_document(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None where there is none, or a damaged one."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None
