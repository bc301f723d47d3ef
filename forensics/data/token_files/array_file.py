"""Bare memory maps of token ids, and real .npy files; told apart by their first bytes.

OLMo's and OLMo-core's token files are called .npy and are none: no magic, no header, no shape, no
type (allenai/OLMo olmo/data/memmap_dataset.py). Beside them may lie `NAME.csv.gz` with the
documents: start, end in tokens, then where each came from.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from functools import partial
from pathlib import Path

import numpy as np

from forensics.data.token_files.token_file import Boundaries, TokenFile, whole_tokens
from forensics.errors import ForensicsError

NUMPY_MAGIC = b"\x93NUMPY"
LOOKED_AT = 1 << 16  # ids at a file's start by which its type is told to be wrong
LEAST = 64  # ids below which nothing is told


def open_file(path: Path, dtype: np.dtype | None = None) -> TokenFile:
    """Open a file of ids; `dtype` is of a bare one, and is held against a real .npy's own.

    Errors: data, usage (a bare one whose type nobody says).
    """
    beside = boundaries_beside(path)
    if is_numpy(path):
        return _numpy(path, dtype, beside)
    if dtype is None:
        raise ForensicsError(
            "usage",
            f"{path.name} has no NumPy header: a bare memory map? Its type is not said anywhere",
            "say --dtype uint32 or --dtype uint16",
        )
    file = TokenFile(path, dtype, 0, whole_tokens(path, dtype), beside)
    refuse_wider(file)
    return file


def is_numpy(path: Path) -> bool:
    """Whether a file begins as NumPy's own format does, whatever it is called."""
    with path.open("rb") as file:
        return file.read(len(NUMPY_MAGIC)) == NUMPY_MAGIC


def refuse_wider(file: TokenFile) -> None:
    """Refuse 2-byte ids every second of which is 0: the halves of 4-byte ones. Errors: data."""
    if file.dtype.itemsize != 2:
        return
    ids = file.map()[: LOOKED_AT // 2 * 2]
    low, high = ids[0 : len(ids) // 2 * 2 : 2], ids[1::2]
    if len(high) >= LEAST and not high.any() and low.any():
        raise ForensicsError(
            "data",
            f"{file.path.name}: every second of its first {len(ids):,} ids is 0 as"
            f" {file.dtype.name}: it looks like uint32",
            "say --dtype uint32",
        )


def _numpy(path: Path, dtype: np.dtype | None, beside: partial[Boundaries] | None) -> TokenFile:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as e:
        raise ForensicsError(
            "data", f"{path.name} is a .npy, but none of token ids: {e}", "cut short, or of objects"
        ) from None
    if array.ndim != 1 or array.dtype.kind not in "iu" or array.dtype.byteorder == ">":
        raise ForensicsError(
            "data",
            f"{path.name}: wanted one row of integers, found {array.dtype} {array.shape}",
            "numpy.save(path, ids.reshape(-1))",
        )
    if dtype is not None and array.dtype != dtype:
        raise ForensicsError(
            "data",
            f"{path.name}: wanted {dtype.name}, found {array.dtype.name} in its own header",
            "leave --dtype out: a real .npy says its type",
        )
    offset = int(getattr(array, "offset", 0))
    return TokenFile(path, array.dtype.newbyteorder("<"), offset, len(array), beside)


def boundaries_beside(path: Path) -> partial[Boundaries] | None:
    """Return the reader of the `.csv.gz` beside a file; None: there is none."""
    for candidate in (Path(f"{path}.csv.gz"), path.with_suffix(".csv.gz")):
        if candidate.is_file():
            return partial(read_boundaries, candidate)
    return None


def read_boundaries(path: Path) -> Boundaries:
    """Read start, end and what says where each document came from. Errors: data."""
    first, stops, paths = [], [], []
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            for row in rows:
                if not row or (rows.line_num == 1 and not row[0].strip().isdigit()):
                    continue  # a heading
                first.append(int(row[0]))
                stops.append(int(row[1]))
                # dolma writes start, end, id, source file, its line
                named = f"{row[3]}:{row[4]}" if len(row) >= 5 and row[3] else "".join(row[2:3])
                paths.append(named)
    except (OSError, EOFError, ValueError, IndexError, csv.Error, zlib.error) as e:
        raise ForensicsError(
            "data",
            f"{path}: wanted rows that begin start,end in tokens, found none in line"
            f" {len(first) + 1}: {e}",
            "move it away, and documents are found by the id that ends them",
        ) from None
    starts = np.array(first, np.int64)
    if len(starts) and (
        (np.diff(starts) <= 0).any() or starts[0] < 0 or (np.array(stops) < starts).any()
    ):
        raise ForensicsError(
            "data",
            f"{path}: wanted documents in ascending order, found others",
            "move it away, and documents are found by the id that ends them",
        )
    if not len(starts) or starts[0] > 0:  # what stands before the first is a document too
        starts, paths = np.concatenate(([0], starts)), ["", *paths]
    return Boundaries(starts, paths)
