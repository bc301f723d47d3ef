"""One file of token ids: where its ids lie, and what it knows of its documents.

    open_all(TokenFiles(("data/part-0.npy",), "bare", "uint16"))   →  [TokenFile(…)]

The width of an id is what the run's configuration or the file's header says, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from forensics.errors import ForensicsError

if TYPE_CHECKING:
    from forensics.data.made_elsewhere import TokenFiles

DTYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")


@dataclass(frozen=True, eq=False)
class Boundaries:
    """Where the documents of a file begin, in tokens; the first at 0, in ascending order."""

    first_token: np.ndarray  # (D,) int64
    paths: list[str] | None = None  # of each document; None: they have no names of their own


@dataclass(frozen=True, eq=False)
class TokenFile:
    """One file of token ids, its size checked, its ids unread."""

    path: Path
    dtype: np.dtype  # little-endian
    offset: int  # bytes before the first id
    tokens: int
    # what an index beside the file says of its documents; None: its ids have to be looked through
    boundaries: Callable[[], Boundaries] | None = None

    def map(self) -> np.ndarray:
        """Map the ids into memory: (tokens,)."""
        if not self.tokens:
            return np.empty(0, self.dtype)
        return np.memmap(self.path, self.dtype, "r", self.offset, (self.tokens,))


def open_all(tokens: TokenFiles) -> list[TokenFile]:
    """Open the files of a run in their order. Errors: data, missing."""
    from forensics.data.token_files import array_file, datatrove, megatron

    dtype = None if tokens.dtype is None else id_dtype(tokens.dtype)
    paths = [Path(path) for path in tokens.paths]
    for path in paths:
        if not path.exists() and tokens.kind != "megatron":
            raise ForensicsError(
                "missing",
                f"wanted the token file {path}, found none",
                "--data PATH says where it lies now",
            )
    if tokens.kind == "megatron":
        return megatron.open_files(paths, dtype, tokens.joined)
    open_one = {
        "bare": array_file.open_file,
        "numpy": array_file.open_file,
        "datatrove": datatrove.open_file,
    }[tokens.kind]
    return [open_one(path, dtype) for path in paths]


def open_token_file(path: Path, dtype: str | None = None) -> TokenFile:
    """Open one file of ids, told apart by what lies beside it and by its first bytes.

    PREFIX.bin with PREFIX.idx is Megatron's, NAME.ds datatrove's; anything else is a .npy, or bare
    and of `dtype`. Errors: data, missing, usage (a bare one whose type nobody says).
    """
    from forensics.data.made_elsewhere import TokenFileKind, TokenFiles

    kind: TokenFileKind = "datatrove" if path.suffix == ".ds" else "bare"
    if path.with_suffix(".idx").is_file():
        kind = "megatron"
    return open_all(TokenFiles((str(path),), kind, dtype))[0]


def id_dtype(name: str) -> np.dtype:
    """Return the little-endian type of ids that a configuration names. Errors: usage."""
    name = name.rpartition(".")[2].strip().lower()  # numpy.uint16, NumpyDatasetDType.uint16
    if name not in DTYPES:
        raise ForensicsError(
            "usage",
            f"wanted the type of token ids, found {name!r}",
            "one of " + ", ".join(DTYPES),
        )
    return np.dtype(name).newbyteorder("<")


def whole_tokens(path: Path, dtype: np.dtype, offset: int = 0) -> int:
    """Count the ids of a file from a byte on. Errors: data, where its size is no multiple."""
    size = path.stat().st_size - offset
    if size % dtype.itemsize:
        raise ForensicsError(
            "data",
            f"{path}: wanted a multiple of {dtype.itemsize} bytes ({dtype.name}), found {size:,}",
            "cut short, or of another --dtype",
        )
    return size // dtype.itemsize
