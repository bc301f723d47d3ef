"""Rows of a log as its file holds them, column by column: sparse, in order, nothing merged yet.

rows = RowCollector("jsonl")
rows.add({"step": 7, "loss": "NaN", "optim": {"lr": 3e-4}})
rows.collected().columns["optim/lr"]  # Column(rows=[0], values=[0.0003])
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

DEEPEST = 8  # tables inside tables that a row's names are joined through


class Column(NamedTuple):
    """The numbers of one column, and the rows that have one."""

    rows: np.ndarray  # int64, rising
    values: np.ndarray  # float64


@dataclass(frozen=True, eq=False)
class LoggedRows:
    """The rows of one run in one file."""

    kind: str  # of the file
    rows: int
    columns: dict[str, Column]
    run: str = ""  # as the file names it; empty where it does not
    steps: np.ndarray | None = None  # int64, of each row, where the format itself counts them
    takes_over: bool = False  # its steps replace an earlier file's from its first step on
    sampled: int = 0  # rows that stand for several steps each
    trainer: str = ""  # where the form of the file says whose it is
    notes: tuple[str, ...] = ()
    not_numbers: tuple[str, ...] = ()  # columns that hold none

    def named(self, run: str) -> LoggedRows:
        """Return the same rows as those of a run of this name."""
        return replace(self, run=run)


def as_number(value: Any) -> float | None:
    """Read a number as loggers write them, "NaN" and "-Infinity" included; None: it is none."""
    if isinstance(value, (bool, int, float)):
        try:
            return float(value)
        except OverflowError:  # a whole number of more than 308 digits
            return math.inf if value > 0 else -math.inf
    if not isinstance(value, str) or "_" in value:  # Python reads 1_000, no logger writes it
        return None
    try:
        return float(value)
    except ValueError:
        return None


def flattened(row: Mapping[str, Any], above: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield names and values of a row; a table inside it gives names joined by a slash."""
    for name, value in row.items():
        if isinstance(value, Mapping) and depth < DEEPEST:
            yield from flattened(value, f"{above}{name}/", depth + 1)
        else:
            yield f"{above}{name}", value


@dataclass
class RowCollector:
    """Gathers rows one by one, 16 bytes a number."""

    kind: str
    run: str = ""
    _rows: int = 0
    _numbers: dict[str, tuple[array[int], array[float]]] = field(default_factory=dict)
    _texts: dict[str, None] = field(default_factory=dict)
    _steps: array[int] | None = None

    def add(self, row: Mapping[str, Any], step: int | None = None) -> None:
        """Take a row; `step` where the format itself counts (then in every row)."""
        for name, value in flattened(row):
            number = as_number(value)
            if number is not None:
                rows, values = self._numbers.setdefault(name, (array("q"), array("d")))
                rows.append(self._rows)
                values.append(number)
            elif value is not None and value != "":
                self._texts[name] = None
        if step is not None:
            self._steps = array("q") if self._steps is None else self._steps
            self._steps.append(step)
        self._rows += 1

    @property
    def filled(self) -> bool:
        """Whether any number was gathered."""
        return bool(self._numbers)

    def collected(self, **about: Any) -> LoggedRows:
        """Return what was gathered; `about` are further fields of LoggedRows."""
        columns = {
            name: Column(np.frombuffer(rows, np.int64), np.frombuffer(values, np.float64))
            for name, (rows, values) in self._numbers.items()
        }
        steps = None if self._steps is None else np.frombuffer(self._steps, np.int64)
        texts = tuple(name for name in self._texts if name not in columns)
        return LoggedRows(
            self.kind, self._rows, columns, self.run, steps, not_numbers=texts, **about
        )
