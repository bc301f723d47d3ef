"""The first step at which something went wrong, over every column that a run recorded.

    found = first_bad_step_of(runs, "demo")        # a FirstBadStep

A fork is looked at along its trajectory: what it records after its start is judged by what its
ancestors recorded before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from forensics.detect.first_bad import BadStep, first_bad_step
from forensics.errors import ForensicsError
from forensics.records import TABLES
from forensics.result_records import ResultRecord
from forensics.store import reader
from replay.lineage import open_trajectory

if TYPE_CHECKING:
    import duckdb

PLACES = {  # table → what its rows are of, as SQL
    "steps": "'whole model'",
    "layers": "'layer ' || layer",
    "heads": "'layer ' || layer || ' head ' || head",
    "tensors": "tensor",
}
NOT_OF_THE_MODEL = {"seconds", "held_out_loss"}  # how long it took, and what few steps have


@dataclass(frozen=True)
class FirstBadStep(ResultRecord):
    """The first bad step of a run; `found` is None where no step is bad."""

    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "first bad step"
    AGAIN: ClassVar[str] = "run `forensics first-bad-step` again"

    run: str
    first: int  # the steps that were looked at: first … last−1
    last: int
    series: int  # columns at their places
    found: BadStep | None


class _Series(NamedTuple):
    """Every recorded column at every place."""

    steps: NDArray[np.int64]
    names: list[str]
    values: NDArray[np.float64]  # (S, N), NaN where nothing was recorded


def first_bad_step_of(runs: Path, name: str) -> FirstBadStep:
    """Find the first step of a run at which something went wrong. Errors: missing."""
    open_trajectory(runs, name)
    series = _series(runs, name)
    if not len(series.steps):
        raise ForensicsError(
            "missing", f"{name} has no recorded step yet", "`forensics show` tells its status"
        )
    bad_step = first_bad_step(series.steps.tolist(), series.names, series.values)
    first, last = int(series.steps[0]), int(series.steps[-1]) + 1
    return FirstBadStep(name, first, last, len(series.names), bad_step)


def _series(runs: Path, name: str) -> _Series:
    connection = reader.connect(runs, {*PLACES, "runs"})
    try:
        steps = np.array(
            [
                row[0]
                for row in connection.execute(
                    "select distinct step from steps_along($run) order by step", {"run": name}
                ).fetchall()
            ],
            np.int64,
        )
        parts = [
            part
            for table, place in PLACES.items()
            for part in _columns(connection, table, place, name, steps)
        ]
    finally:
        connection.close()
    names = [part_name for part_name, _ in parts]
    values = np.stack([column for _, column in parts], 1) if parts else np.empty((len(steps), 0))
    return _Series(steps, names, values)


def _columns(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    place: str,
    name: str,
    steps: NDArray[np.int64],
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yield (name, values) of each column of a table at each place, where it was recorded."""
    columns = [
        column.name
        for column in TABLES[table].columns
        if column.type.startswith("float") and column.name not in NOT_OF_THE_MODEL
    ]
    rows = connection.sql(
        f"select step, {place} as place, {', '.join(columns)} from {table}_along($run)",
        params={"run": name},
    ).to_arrow_table()
    at = np.searchsorted(steps, rows["step"].to_numpy())
    places, numbers = np.unique(rows["place"].to_numpy(), return_inverse=True)
    for column in columns:
        values = np.full((len(steps), len(places)), np.nan)
        values[at, numbers] = rows[column].to_numpy().astype(np.float64)
        for number, where in enumerate(places):
            if np.isfinite(values[:, number]).any():
                yield f"{column} of {where}", values[:, number]
