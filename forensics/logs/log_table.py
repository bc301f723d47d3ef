"""What a log holds, whoever wrote it: each metric by step, and what was assumed of it.

table = read_logs([Path("wandb_export.csv")])  # forensics.logs.read
table.metrics[table.columns["loss"]].values    # as the log holds them
table.batches("loss")                          # the batches, counted as ours, that they are of
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


def spacing(steps: np.ndarray | list[int]) -> int:
    """Return the most usual distance between neighbouring steps, rising; 1 where there is none."""
    return int(np.median(np.diff(steps))) if len(steps) > 1 else 1


def union(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """Return the numbers of all arrays, sorted, each once; columns of one log are mostly alike."""
    distinct: dict[tuple[int, ...], list[np.ndarray]] = {}
    for each in arrays:
        if len(each):
            alike = distinct.setdefault((len(each), each[0], each[len(each) // 2], each[-1]), [])
            if not any(np.array_equal(each, other) for other in alike):
                alike.append(each)
    several = [each for alike in distinct.values() for each in alike]
    if not several:
        return np.empty(0, np.int64)
    ordered = several[0] if len(several) == 1 else np.concatenate(several)
    rises = np.diff(ordered) > 0
    if not bool(rises.all()):
        ordered = np.sort(ordered, kind="stable")
        rises = np.diff(ordered) > 0
    return ordered[np.append(True, rises)]


class Series(NamedTuple):
    """One metric: a value for each of some steps."""

    steps: np.ndarray  # int64, rising, as the log counts them
    values: np.ndarray  # float64; NaN and infinities are values


@dataclass(frozen=True)
class LogSummary:
    """What is kept of a log beside its numbers: how it was read, and what was found odd."""

    kinds: tuple[str, ...]  # of the files: wandb-chart, history, tensorboard, …
    trainer: str  # whose names and counting they are; empty where that is not known
    run: str  # as the log names it; empty where it does not
    steps: int  # distinct steps
    first: int | None  # as the log counts; None: it holds none
    last: int | None
    every: int  # steps from one value of the loss to the next, mostly
    metrics: int  # series
    columns: dict[str, str]  # loss, grad_norm, lr, z_loss, tokens → the name in the log
    step_name: str  # the column that counts the steps
    step_base: int  # a value logged at n is batch n − step_base, as ours count
    step_base_known: bool  # False: taken as 0
    repeated: int  # steps with more than one loss (any metric where none is), the later one taken
    sampled: int  # rows that stand for several steps each
    nonfinite: int  # values that are NaN or infinite
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class LogTable:
    """The metrics of one run, from one or several files."""

    metrics: Mapping[str, Series]  # by their names in the log, in order of these
    summary: LogSummary

    @property
    def columns(self) -> dict[str, str]:
        """Name the series that is our loss, grad_norm, lr, z_loss, tokens, where there is one."""
        return self.summary.columns

    def series(self, column: str) -> Series | None:
        """Return the series of one of our names, if the log has it."""
        name = self.columns.get(column)
        return None if name is None else self.metrics[name]

    def batches(self, column: str) -> np.ndarray:
        """Return which batches, counted as ours from 0, a column's values belong to (int64)."""
        series = self.series(column)
        return np.empty(0, np.int64) if series is None else series.steps - self.summary.step_base
