"""A log's numbers into a run's tables: loss, lr, grad_norm into `steps`, all else into `metrics`.

write_rows(runs / "theirs", read_logs([path]))
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from forensics.logs.log_table import LogTable, union
from forensics.store import parts
from forensics.store.writer import Writer

STEP_COLUMNS = ("loss", "grad_norm", "lr")  # of the table `steps`, which logs have too
ROWS_A_PART = 1_000_000  # written at once: 8 million numbers in memory


def write_rows(run_folder: Path, table: LogTable) -> None:
    """Write a log into the tables `steps` and `metrics` of a run's folder, steps as ours count.

    A step has a row in `steps` where the log has a loss, learning rate or gradient norm of it.
    Values are as logged. Errors: storage.
    """
    with Writer(run_folder) as writer:
        _write_steps(writer, table)
        _write_metrics(run_folder, table)


def step_span(table: LogTable) -> tuple[int, int]:
    """Return the first step that a log's run has, and the one after its last, as ours count."""
    summary = table.summary
    if summary.first is None or summary.last is None:
        return 0, 0
    first, last = summary.first - summary.step_base, summary.last - summary.step_base
    return max(first, 0), max(last, 0) + 1


def _write_steps(writer: Writer, table: LogTable) -> None:
    batches = {column: table.batches(column) for column in STEP_COLUMNS}
    steps = union(batches.values())
    steps = steps[steps >= 0]
    for start in range(0, len(steps), ROWS_A_PART):
        of_part = steps[start : start + ROWS_A_PART]
        columns: dict[str, object] = {}
        for column in STEP_COLUMNS:
            series = table.series(column)
            if series is not None:
                columns[column] = _where_logged(of_part, batches[column], series.values)
        writer.append("steps", step=of_part, **columns)
        writer.flush()


def _where_logged(steps: np.ndarray, logged: np.ndarray, values: np.ndarray) -> object:
    """Return a value for each step, None where none was logged; NaN stays a value."""
    places = np.searchsorted(logged, steps)
    inside = places < len(logged)
    there = inside & (logged[np.minimum(places, len(logged) - 1)] == steps)
    if bool(there.all()):
        return values[places]
    numbers = np.full(len(steps), None, object)
    numbers[there] = values[places[there]]
    return numbers.tolist()


def _write_metrics(run_folder: Path, table: LogTable) -> None:
    """Write what `steps` has no column for, sorted by step."""
    import pyarrow as pa

    from forensics.records import METRICS

    in_steps = {table.columns[column] for column in STEP_COLUMNS if column in table.columns}
    base = table.summary.step_base
    names = [name for name in table.metrics if name not in in_steps]
    early = {
        name: series.steps < base for name, series in table.metrics.items() if name in in_steps
    }
    names += [name for name, before in early.items() if bool(before.any())]
    if not names:
        return
    pieces = [
        (table.metrics[name], early.get(name, np.ones(len(table.metrics[name].steps), bool)))
        for name in names
    ]
    logged = np.concatenate([series.steps[which] for series, which in pieces])
    values = np.concatenate([series.values[which] for series, which in pieces])
    codes = np.repeat(
        np.arange(len(names), dtype=np.int32), [int(which.sum()) for _, which in pieces]
    )
    order = np.argsort(logged, kind="stable")
    dictionary = pa.array(names, pa.string())
    for start in range(0, len(order), ROWS_A_PART):
        rows = order[start : start + ROWS_A_PART]
        texts = pa.DictionaryArray.from_arrays(pa.array(codes[rows]), dictionary)
        arrays = [
            pa.array(logged[rows] - base),
            texts.cast(pa.string()),
            pa.array(values[rows]),
            pa.array(logged[rows]),
        ]
        parts.add(run_folder, METRICS, pa.table(arrays, schema=METRICS.arrow_schema()))
