"""Megatron's and GPT-NeoX's PREFIX.bin with PREFIX.idx; Pythia's shards of one .bin.

Source: NVIDIA/Megatron-LM megatron/core/datasets/indexed_dataset.py, EleutherAI/gpt-neox
megatron/data/indexed_dataset.py. The two number the floating types otherwise and all integers
alike.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from forensics.data.token_files.token_file import Boundaries, TokenFile
from forensics.errors import ForensicsError

MAGIC = b"MMIDIDX\x00\x00"
OLD_MAGIC = b"TNTIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")  # magic, version, code of the type, sequences, documents
CODES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


@dataclass(frozen=True)
class Index:
    """An .idx file: S sequences, each a stretch of the .bin, and where documents begin."""

    path: Path
    dtype: np.dtype
    sequences: int  # S
    entries: int  # D, of the documents' table

    @cached_property
    def lengths(self) -> np.ndarray:
        """The sequences' lengths in tokens: (S,) int32, mapped."""
        return np.memmap(self.path, "<i4", "r", HEADER.size, (self.sequences,))

    @cached_property
    def places(self) -> np.ndarray:
        """The sequences' places in the .bin, in bytes: (S,) int64, mapped."""
        after = HEADER.size + 4 * self.sequences
        return np.memmap(self.path, "<i8", "r", after, (self.sequences,))

    @cached_property
    def documents(self) -> np.ndarray:
        """The sequence each document begins with: (D,) int64, mapped; the last is the end."""
        after = HEADER.size + 12 * self.sequences
        return np.memmap(self.path, "<i8", "r", after, (self.entries,))

    @property
    def tokens(self) -> int:
        """Count the tokens of all sequences."""
        return int(self.lengths.sum(dtype=np.int64))

    def first_tokens(self) -> np.ndarray:
        """Return where each sequence begins in the .bin, in tokens: (S,) int64."""
        return self.places // self.dtype.itemsize

    def boundaries(self) -> Boundaries:
        """Return where documents begin, in tokens."""
        begins = self.documents[self.documents < self.sequences]
        return Boundaries(np.unique(np.concatenate(([0], self.first_tokens()[begins]))))


def read_index(path: Path) -> Index:
    """Read an .idx's header and check its size. Errors: data, missing."""
    if not path.is_file():
        raise ForensicsError(
            "missing", f"wanted the index {path}, found none", "it lies beside the .bin"
        )
    with path.open("rb") as file:
        head = file.read(HEADER.size)
    if head.startswith(OLD_MAGIC):
        raise ForensicsError(
            "data",
            f"{path.name} is an old TNTIDX index (fairseq's), which is not read",
            "preprocess the text again with --dataset-impl mmap",
        )
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        raise ForensicsError(
            "data",
            f"{path.name}: wanted an index that begins MMIDIDX, found {head[:9]!r}",
            "an index of Megatron's or GPT-NeoX's `mmap` data",
        )
    _, version, code, sequences, entries = HEADER.unpack(head)
    if version != 1 or code not in CODES:
        raise ForensicsError(
            "data",
            f"{path.name}: wanted version 1 and a code of integers, found version {version}, code"
            f" {code}" + (" (floating-point numbers)" if code in (6, 7) else ""),
            "token ids have one of the codes " + ", ".join(map(str, CODES)),
        )
    whole = HEADER.size + 12 * sequences + 8 * entries
    size = path.stat().st_size
    # a multimodal index has a byte more for each sequence
    if size not in (whole, whole + sequences) or not sequences:
        raise ForensicsError(
            "data",
            f"{path.name}: wanted {whole:,} bytes for its {sequences:,} sequences, found {size:,}",
            "cut short?" if size < whole else "another kind of index?",
        )
    return Index(path, np.dtype(CODES[code]), sequences, entries)


def open_files(paths: list[Path], dtype: np.dtype | None, joined: bool) -> list[TokenFile]:
    """Open PREFIX, PREFIX.bin or PREFIX.idx, one a file; or the shards of one .bin with the one
    index beside them.

    Errors: data, missing.
    """
    if joined:
        return _shards(paths, dtype)
    return [_one(path, dtype) for path in paths]


def index_of(path: Path, joined: bool = False) -> Path:
    """Return where the index of a .bin lies: beside it, or the one beside all shards of one.

    Errors: missing.
    """
    if not joined:
        prefix = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
        return Path(f"{prefix}.idx")
    indexes = sorted(path.parent.glob("*.idx"))
    if len(indexes) != 1:
        raise ForensicsError(
            "missing",
            f"wanted the one .idx of the shards in {path.parent}, found {len(indexes)}",
            "document.idx lies beside document-00000-of-00020.bin",
        )
    return indexes[0]


def _one(path: Path, dtype: np.dtype | None) -> TokenFile:
    index = read_index(index_of(path))
    file = index.path.with_suffix(".bin")
    if not file.is_file():
        raise ForensicsError(
            "missing", f"wanted the token file {file}, found none", "it lies beside the .idx"
        )
    _require(index, file.stat().st_size, file.name, dtype)
    return TokenFile(file, index.dtype, 0, index.tokens, partial(index.boundaries))


def _shards(paths: list[Path], dtype: np.dtype | None) -> list[TokenFile]:
    lacking = [str(path) for path in paths if not path.is_file()]
    if lacking:
        raise ForensicsError(
            "missing",
            f"wanted {len(paths)} shards, lacking: {', '.join(lacking)}",
            "all shards are needed: they are one stream",
        )
    index = read_index(index_of(paths[0], joined=True))
    sizes = [path.stat().st_size for path in paths]
    _require(index, sum(sizes), f"the {len(paths)} shards", dtype)
    for path, size in zip(paths, sizes):
        if size % index.dtype.itemsize:
            raise ForensicsError(
                "data",
                f"{path.name}: wanted whole ids of {index.dtype.itemsize} bytes, found {size:,}"
                " bytes: an id lies across two shards",
                "join the shards into one .bin",
            )
    return [
        TokenFile(path, index.dtype, 0, size // index.dtype.itemsize)
        for path, size in zip(paths, sizes)
    ]


def _require(index: Index, size: int, where: str, dtype: np.dtype | None) -> None:
    """Refuse a .bin that is not what its index says. Errors: data."""
    if dtype is not None and dtype != index.dtype:
        raise ForensicsError(
            "data",
            f"{where}: wanted {dtype.name}, found {index.dtype.name} in its index",
            "leave --dtype out",
        )
    wanted = index.tokens * index.dtype.itemsize
    if size != wanted:
        raise ForensicsError(
            "data",
            f"{where}: wanted the {wanted:,} bytes that its index names, found {size:,}",
            "cut short?" if size < wanted else "the index of another file?",
        )
    places = np.cumsum(index.lengths, dtype=np.int64)[:-1] * index.dtype.itemsize
    if index.places[0] != 0 or (index.places[1:] != places).any():
        raise ForensicsError(
            "data",
            f"{index.path.name}: wanted sequences one after another in the .bin, found others",
            "merge the data sets with the trainer's own tool",
        )
