"""datatrove's tokenised files: NAME.ds, bare ids; NAME.ds.index, where each document ends;
NAME.ds.metadata, a few lines of text.

Source: huggingface/datatrove src/datatrove/pipeline/tokens/tokenizer.py: the first line is
TOKENIZER|BYTES, the second the number of ids.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np

from forensics.data.token_files.array_file import refuse_wider
from forensics.data.token_files.token_file import Boundaries, TokenFile, whole_tokens
from forensics.errors import ForensicsError

OF_SIZE: dict[int, np.dtype] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}  # bytes of an id → its type


def open_file(path: Path, dtype: np.dtype | None = None) -> TokenFile:
    """Open NAME.ds; its metadata say how wide an id is, else `dtype` does. Errors: data, usage."""
    stated, count = _metadata(path)
    if stated is not None and dtype is not None and stated.itemsize != dtype.itemsize:
        raise ForensicsError(
            "data",
            f"{path.name}: wanted {dtype.name}, its metadata say {stated.itemsize} bytes an id",
            "leave --dtype out",
        )
    dtype = dtype or stated
    if dtype is None:
        raise ForensicsError(
            "usage",
            f"{path.name} has no metadata beside it that say how wide an id is",
            "say --dtype uint16 or --dtype uint32",
        )
    tokens = whole_tokens(path, dtype)
    if count is not None and count != tokens:
        raise ForensicsError(
            "data",
            f"{path.name}: wanted the {count:,} ids that its metadata name, found {tokens:,}",
            "cut short?",
        )
    index = Path(f"{path}.index")
    boundaries = partial(read_index, index, tokens) if index.is_file() else None
    file = TokenFile(path, dtype, 0, tokens, boundaries)
    refuse_wider(file)
    return file


def tokenizer_of(path: Path) -> str | None:
    """Return the tokenizer that a file's metadata name; None: they name none."""
    try:
        line = Path(f"{path}.metadata").read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError, UnicodeDecodeError):
        return None
    name = line.rpartition("|")[0]
    return None if not name or name.startswith("Unknown") else name


def _metadata(path: Path) -> tuple[np.dtype | None, int | None]:
    try:
        lines = Path(f"{path}.metadata").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None, None
    width = re.search(r"\|(\d+)$", lines[0].strip()) if lines else None
    count = lines[1].strip() if len(lines) > 1 else ""
    dtype = OF_SIZE.get(int(width[1])) if width else None
    return dtype, int(count) if count.isdigit() else None


def read_index(path: Path, tokens: int) -> Boundaries:
    """Read the documents' ends: u64, in tokens, the last one the file's. Errors: data."""
    if path.stat().st_size % 8:
        raise ForensicsError(
            "data", f"{path}: wanted 8 bytes a document, found {path.stat().st_size:,}", "cut short"
        )
    ends = np.fromfile(path, "<u8").astype(np.int64)
    if len(ends) and ((np.diff(ends, prepend=0) < 0).any() or ends[-1] != tokens):
        raise ForensicsError(
            "data",
            f"{path}: wanted ascending ends, the last {tokens:,}, found {int(ends[-1]):,}",
            "the index of another file?",
        )
    return Boundaries(np.unique(np.concatenate(([0], ends[:-1]))))
