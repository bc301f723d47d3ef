"""Which sequences each rank read at each step, as OLMo writes them down: data-indices/rankR.tsv.gz.

A line is the logged step, then the rank's ids, between tabs; logged step n is batch n − 1
(allenai/OLMo olmo/train.py). Rank r of W takes entries r, r + W, … of a batch.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from forensics.errors import ForensicsError


def batches(paths: tuple[Path, ...]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (batch, its ids in the order of the whole run) for every step that all ranks logged.

    Where not all ranks' logs are given, these ranks' share of each batch. Errors: data.
    """
    paths = tuple(sorted(paths, key=_rank))
    for lines in zip(*map(_lines, paths)):
        steps = {step for step, _ in lines}
        if len(steps) != 1:
            raise ForensicsError(
                "data",
                f"the ranks' logs differ in their steps: {sorted(steps)} stand beside each other",
                "are they of one run?",
            )
        shares = [ids for _, ids in lines]
        if len({len(ids) for ids in shares}) != 1:
            raise ForensicsError(
                "data",
                f"logged step {lines[0][0]}: ranks read different numbers of sequences",
                "is a log cut short?",
            )
        yield lines[0][0] - 1, np.stack(shares, 1).reshape(-1)


def _lines(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    number = 0
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            for line in file:
                number += 1
                fields = [int(field) for field in line.split("\t")]
                yield fields[0], np.array(fields[1:], np.int64)
    except (ValueError, OSError, EOFError, zlib.error) as e:
        if isinstance(e, EOFError) or "end-of-stream" in str(e):
            return  # a run that was stopped leaves its last block unfinished
        raise ForensicsError(
            "data",
            f"{path}: wanted lines of a step and ids, found another in line {number}: {e}",
            "a log of OLMo's save_data_indices",
        ) from None


def _rank(path: Path) -> int:
    named = re.match(r"rank(\d+)\.tsv\.gz$", path.name)
    if named is None:
        raise ForensicsError("data", f"wanted rankR.tsv.gz, found {path.name}", "")
    return int(named[1])
