"""Lines of JSON that hold token ids, as Amber's chunks do: written as a bare file of ours, once.

    {"token_ids": [1, 278, …], "source": "c4"}

Source: LLM360/amber-train main.py. A line is one sequence, T + 1 ids that it shares with no other.
"""

from __future__ import annotations

import gzip
import json
import os
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from forensics.data.made_elsewhere import TokenFiles
from forensics.data.token_files.token_file import Boundaries, TokenFile
from forensics.errors import ForensicsError

IDS, SOURCE = "token_ids", "source"  # keys of a line


def as_token_files(tokens: TokenFiles, vocabulary: int, folder: Path) -> list[TokenFile]:
    """Return each file of lines as a bare one in `folder`, written where it is not there yet.

    Errors: data (a line that is none, an id without a row), missing.
    """
    dtype = np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")
    folder.mkdir(parents=True, exist_ok=True)
    return [_as_token_file(Path(path), dtype, vocabulary, folder) for path in tokens.paths]


def _as_token_file(path: Path, dtype: np.dtype, vocabulary: int, folder: Path) -> TokenFile:
    if not path.is_file():
        raise ForensicsError(
            "missing", f"wanted the token file {path}, found none", "--data PATH says where it is"
        )
    converted = folder / f"{path.name.partition('.')[0]}-{_key(path, dtype)}.bin"
    lines = converted.with_suffix(".json")
    if not (converted.is_file() and lines.is_file()):
        temporary = converted.with_name(f".{converted.name}-{os.getpid()}")
        firsts, names, at = [], [], 0
        with temporary.open("wb") as out, _open(path) as file:
            for number, line in enumerate(file, 1):
                ids, source = _parsed(line, f"{path}:{number}", vocabulary)
                firsts.append(at)
                names.append(f"{path.name}:{number}" + (f" {source}" if source else ""))
                out.write(np.array(ids, dtype).tobytes())
                at += len(ids)
        lines.write_text(json.dumps({"first_token": firsts, "paths": names}), encoding="utf-8")
        temporary.rename(converted)
    tokens = converted.stat().st_size // dtype.itemsize
    return TokenFile(converted.absolute(), dtype, 0, tokens, partial(_boundaries, lines))


def _boundaries(lines: Path) -> Boundaries:
    document = json.loads(lines.read_text(encoding="utf-8"))
    return Boundaries(np.array(document["first_token"], np.int64), document["paths"])


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _parsed(line: str, place: str, vocabulary: int) -> tuple[list[int], str]:
    """Return a line's ids and the source that it names. Errors: data."""
    try:
        record: Any = json.loads(line)
        ids = record[IDS]
        whole = isinstance(ids, list) and all(type(token) is int for token in ids) and ids
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise ForensicsError(
            "data", f'{place}: wanted {{"{IDS}": [ids]}}, found {line[:60]!r}', "cut short?"
        )
    outside = next((n for n, token in enumerate(ids) if not 0 <= token < vocabulary), None)
    if outside is not None:
        raise ForensicsError(
            "data",
            f"{place}: token {ids[outside]} at place {outside} of the line; the model has"
            f" {vocabulary:,} rows",
            "of another tokenizer?",
        )
    return ids, str(record.get(SOURCE, ""))


def _key(path: Path, dtype: np.dtype) -> str:
    import xxhash

    stat = path.stat()
    told = [str(path.absolute()), stat.st_size, stat.st_mtime_ns, dtype.str]
    return xxhash.xxh3_64_hexdigest(json.dumps(told).encode())
