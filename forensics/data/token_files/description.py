"""What files of ids are, where no configuration says it: by what lies beside them and first bytes.

described([Path("document-00000-of-00020.bin"), …])   →  TokenFiles(…, "megatron", joined=True)
row_length(…)                                          →  2049: each row is one sample (Pythia)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from forensics.data.made_elsewhere import TokenFileKind, TokenFiles
from forensics.data.token_files.array_file import is_numpy
from forensics.data.token_files.megatron import index_of, read_index
from forensics.errors import ForensicsError

SHARD = re.compile(r"-\d+-of-\d+\.bin$")  # of one .bin
SUFFIXES: dict[str, TokenFileKind] = {".bin": "bare", ".ds": "datatrove", ".npy": "bare"}
LINE = b'{"token_ids"'  # begins Amber's


def described(places: Sequence[Path], dtype: str | None = None) -> TokenFiles | None:
    """Return the token files of these places, folders searched; None: they are something else.

    Errors: usage (files of several kinds).
    """
    files = [file for place in places for file in _in_folder(place)]
    kinds = {_kind(file) for file in files}
    if not files or None in kinds:
        return None
    if len(kinds) > 1:
        raise ForensicsError(
            "usage",
            "--data: wanted token files of one kind, found " + ", ".join(sorted(map(str, kinds))),
            "import them one by one",
        )
    (kind,) = kinds
    assert kind is not None, "asked above"
    joined = kind == "megatron" and all(SHARD.search(file.name) for file in files)
    return TokenFiles(tuple(map(str, files)), kind, dtype, joined=joined)


def row_length(tokens: TokenFiles) -> int | None:
    """Return how many tokens each sequence of a Megatron index has; None: they differ, or it is
    none.

    Where all have as many, each is one training sample, written in the order of training (Pythia's
    pre-shuffled data). Errors: data, missing.
    """
    if tokens.kind != "megatron" or not tokens.paths:
        return None
    lengths = read_index(index_of(Path(tokens.paths[0]), tokens.joined)).lengths
    first = int(lengths[0])
    return first if first > 1 and len(lengths) > 1 and bool(np.all(lengths == first)) else None


def _in_folder(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    return sorted(
        file for file in place.iterdir() if file.suffix in SUFFIXES or _kind(file) is not None
    )


def _kind(file: Path) -> TokenFileKind | None:
    if file.with_suffix(".idx").is_file() and not file.is_file():
        return "megatron"  # a prefix
    if not file.is_file():
        return None
    if file.suffix in (".jsonl", ".json"):
        with file.open("rb") as opened:
            return "jsonl" if opened.read(len(LINE)) == LINE else None
    if file.suffix not in SUFFIXES:
        return None
    if is_numpy(file):
        return "numpy"
    shard = SHARD.search(file.name) and len([*file.parent.glob("*.idx")]) == 1
    return "megatron" if shard or file.with_suffix(".idx").is_file() else SUFFIXES[file.suffix]
