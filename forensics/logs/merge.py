"""Rows of one run's files into series by step: which column counts, and which value wins.

The later row wins, by metric: a resumed run writes steps again. Steps that are odd are told, never
mended.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from forensics.errors import ForensicsError
from forensics.logs.log_table import LogSummary, LogTable, Series, spacing, union
from forensics.logs.logged_rows import Column, LoggedRows
from forensics.logs.names import (
    STEP_NAMES,
    Trainer,
    columns_of,
    plain_name,
    trainer_called,
    trainer_of,
)

# a counter may fall back at so many of its rows (a resumed run does); one that falls more often
# counts something inside a step or an epoch
MOST_FALLS = 0.01
LEAST_FALLS = 3  # that a short log may have all the same
MOST_LISTED = 5  # names in a note
EXACT = 2**53  # whole numbers up to here are exact in float64


class _Counted(NamedTuple):
    """The rows of a file with their steps."""

    rows: LoggedRows
    steps: np.ndarray  # int64, of each row; −1: it has none
    name: str  # of the column that counts


def merged(
    files: Sequence[LoggedRows], step_base: int | None = None, trainer: str | None = None
) -> LogTable:
    """Merge the rows of one run's files, in this order.

    `step_base` and `trainer` are what the caller knows; where they are None, the names of the
    metrics tell. Errors: data, where no column counts steps.
    """
    counted = [_counted(rows) for rows in files]
    cut: dict[str, list[np.ndarray]] = {}
    gathered = _gathered(counted, cut)
    metrics, again = {}, {}
    for name in sorted(gathered):
        metrics[name], again[name] = _latest(*gathered[name])
    known = _trainer(files, metrics, trainer)
    columns = columns_of(metrics)
    # other metrics can stand twice in one row's step: an epoch beside the loss and the evaluation
    judged = [columns["loss"]] if "loss" in columns else list(metrics)
    behind = union(steps for name in judged for steps in cut.get(name, ()))
    there = union(metrics[name].steps for name in judged)
    repeated = union([behind[np.isin(behind, there)], *(again[name] for name in judged)])
    abandoned = len(behind) - int(np.isin(behind, there).sum())
    steps = union(series.steps for series in metrics.values())
    every = spacing(metrics[columns["loss"]].steps if "loss" in columns else steps)
    base = step_base if step_base is not None else known.step_base if known else 0
    lost = sum(_without_step(each) for each in counted)
    summary = LogSummary(
        kinds=tuple(dict.fromkeys(rows.kind for rows in files)),
        trainer=known.kind if known else "",
        run=next((rows.run for rows in files if rows.run), ""),
        steps=len(steps),
        first=int(steps[0]) if len(steps) else None,
        last=int(steps[-1]) if len(steps) else None,
        every=every,
        metrics=len(metrics),
        columns=columns,
        step_name=", ".join(dict.fromkeys(each.name for each in counted)),
        step_base=base,
        step_base_known=step_base is not None or known is not None,
        repeated=len(repeated),
        sampled=sum(rows.sampled for rows in files),
        nonfinite=sum(int((~np.isfinite(each.values)).sum()) for each in metrics.values()),
        notes=(
            *_notes(files, known, columns, lost, abandoned),
            *_said_of_steps(every, step_base is not None or known is not None),
        ),
    )
    return LogTable(metrics, summary)


def _counted(rows: LoggedRows) -> _Counted:
    """Find the steps of a file's rows. Errors: data."""
    if rows.steps is not None:
        return _Counted(rows, rows.steps, "step")
    places = {plain_name(name): name for name in reversed(list(rows.columns))}
    candidates = [places[name] for name in STEP_NAMES if name in places]
    whole = [name for name in candidates if _counts(rows.columns[name])]
    needed = union(column.rows for name, column in rows.columns.items() if name not in candidates)
    chosen = next((name for name in whole if _covers(rows.columns[name], needed)), None)
    if chosen is None:  # none is in every row: the one in most of them
        chosen = max(whole, key=lambda name: len(rows.columns[name].rows), default=None)
    if chosen is None:
        names = [" ".join(name.split()) for name in [*rows.columns, *rows.not_numbers][:8]]
        found = ", ".join(names) or "no column of numbers"
        raise ForensicsError(
            "data",
            f"wanted a column that counts steps in a log ({rows.kind}), found {found}",
            "one called step, iter, iteration, global_step or _step; a chart is exported with Step"
            " on its x axis",
        )
    steps = np.full(rows.rows, -1, np.int64)
    column = rows.columns[chosen]
    steps[column.rows] = column.values.astype(np.int64)
    return _Counted(rows, steps, chosen)


def _counts(column: Column) -> bool:
    """Whether a column holds whole numbers that rise, but for a few falls."""
    values = column.values
    if not len(values) or not bool(np.isfinite(values).all()):
        return False
    if bool((values != np.floor(values)).any()) or values.min() < 0 or values.max() > EXACT:
        return False
    falls = int((np.diff(values) < 0).sum())
    return falls <= max(LEAST_FALLS, MOST_FALLS * len(values))


def _covers(column: Column, needed: np.ndarray) -> bool:
    return bool(np.isin(needed, column.rows, assume_unique=True).all())


def _gathered(
    counted: Sequence[_Counted], cut: dict[str, list[np.ndarray]]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Join the values of all files by name, as they came; a step column is no metric.

    Steps that a later file takes over come into `cut`, by name.
    """
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for each in counted:
        additions: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name, column in each.rows.columns.items():
            if name != each.name:
                steps = each.steps[column.rows]
                has_step = steps >= 0
                additions[name] = (steps[has_step], column.values[has_step])
        if each.rows.takes_over:
            _purge(parts, additions, cut)
        for name, addition in additions.items():
            if len(addition[0]):
                parts.setdefault(name, []).append(addition)
    return {
        name: (np.concatenate([p[0] for p in pieces]), np.concatenate([p[1] for p in pieces]))
        for name, pieces in parts.items()
    }


def _purge(
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]],
    additions: dict[str, tuple[np.ndarray, np.ndarray]],
    cut: dict[str, list[np.ndarray]],
) -> None:
    """Cut all that came before at the step from which a later file goes on with some of it."""
    starts = [int(additions[name][0].min()) for name in additions if name in parts]
    if not starts:
        return  # another writer's file beside it
    start = min(starts)
    for name, pieces in parts.items():
        cut.setdefault(name, []).extend(steps[steps >= start] for steps, _ in pieces)
        parts[name] = [(steps[steps < start], values[steps < start]) for steps, values in pieces]


def _latest(steps: np.ndarray, values: np.ndarray) -> tuple[Series, np.ndarray]:
    """Sort by step and keep the last value of each; also return the steps that had several."""
    if len(steps) < 2 or bool((np.diff(steps) > 0).all()):
        return Series(steps, values), np.empty(0, np.int64)
    order = np.argsort(steps, kind="stable")
    ordered = steps[order]
    last = np.append(ordered[1:] != ordered[:-1], True)
    return Series(ordered[last], values[order][last]), np.unique(ordered[~last])


def _without_step(counted: _Counted) -> int:
    """Count the rows that hold a metric and no step."""
    columns = counted.rows.columns.items()
    held = union(column.rows for name, column in columns if name != counted.name)
    return int((counted.steps[held] < 0).sum())


def _trainer(
    files: Sequence[LoggedRows], metrics: Iterable[str], known: str | None
) -> Trainer | None:
    said = [known or "", *(rows.trainer for rows in files)]
    found = next((trainer for kind in said if (trainer := trainer_called(kind))), None)
    # a step column is among the marks of some, and no metric any more
    names = {*metrics, *(name for rows in files for name in rows.columns)}
    return found or trainer_of(names)


def _said_of_steps(every: int, base_known: bool) -> Iterable[str]:
    if every > 1:
        yield f"it has a row every {every:,} steps, mostly"
    if not base_known:
        yield (
            "from which number its steps count is not known: a value logged at n is taken as that"
            " of batch n (--log-step-base 1: of batch n − 1)"
        )


def _notes(
    files: Sequence[LoggedRows],
    known: Trainer | None,
    columns: dict[str, str],
    lost: int,
    abandoned: int,
) -> Iterable[str]:
    for rows in files:
        yield from rows.notes
    if known and known.note:
        yield f"{known.title}: {known.note}"
    if "loss" not in columns:
        yield "none of its metrics is called as a loss is"
    if abandoned:
        yield f"{abandoned:,} steps that a resumed run did not come to again are left out"
    if lost:
        yield f"{lost:,} rows without a step are left out"
    texts = list(dict.fromkeys(name for rows in files for name in rows.not_numbers))
    if texts:
        more = f" and {len(texts) - MOST_LISTED} more" * (len(texts) > MOST_LISTED)
        yield f"left out, for they hold no numbers: {', '.join(texts[:MOST_LISTED])}{more}"
