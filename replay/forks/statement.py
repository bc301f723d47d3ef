"""Run the SELECT of an intervention over the tables of its parent's lineage, and fill its field."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forensics.coercion import coerce
from forensics.errors import ForensicsError
from forensics.store.sandbox import run_sandboxed
from forensics.train.run import Run
from replay.interventions.base import Windowed
from replay.interventions.fields import Columns, Rows, fields_of
from replay.interventions.registry import KINDS, SEE, kind_of, read_window
from replay.lineage import own_steps

MOST_ROWS = 1_000_000


def with_choice(
    runs: Path, run: Run, keys: Mapping[str, Any], first: int, last: int
) -> dict[str, Any]:
    """Return a fork file's intervention with its window, and with what its SQL chose under the key
    that it fills. Errors: usage, sql.
    """
    kind = kind_of(keys)
    fields = fields_of(KINDS[kind])
    for field in fields:  # what is asked for before all keys are read
        if field.name in ("first", "last", "sql") and field.name in keys:
            coerce(field.type, keys[field.name], f"{kind}.{field.name}", SEE)
    filled, where = read_window(keys), (first, last)
    if issubclass(KINDS[kind], Windowed):
        where = filled.setdefault("first", first), filled.setdefault("last", last)
    choices = {columns: field.name for field in fields for columns in field.about.columns}
    by_hand = {field.name for field in fields if field.about.columns or field.about.instead_of_sql}
    if choices and filled.get("sql") and not by_hand & filled.keys():
        Windowed(*where).check(run, first, last)
        columns, rows = select(runs, run, str(filled["sql"]), list(choices), where)
        value = columns.read(run, rows, *where)
        if not value:
            raise ForensicsError(
                "sql",
                f"{kind}: the statement selected nothing inside {where[0]}:{where[1]}",
                "try it with `forensics query --sql`",
            )
        filled[choices[columns]] = value
    return filled


def select(
    runs: Path, run: Run, sql: str, choices: Sequence[Columns], where: tuple[int, int]
) -> tuple[Columns, Rows]:
    """Run a SELECT over the tables of the run's lineage: the key columns that it returns, and their
    rows in its order; rows with a NULL are left out.

    Of several sets of columns that it returns whole, the longest holds. Where it returns `run` too,
    a step counts only in the run whose window it lies in: an ancestor's steps after the fork left
    it are not of this lineage. Errors: sql, where it lacks the columns or selects nothing.
    """
    lineage = own_steps(run)
    params = {"run": run.name, "first": where[0], "last": where[1]}
    params = {name: value for name, value in params.items() if re.search(rf"\${name}\b", sql)}
    with tempfile.TemporaryDirectory() as folder:
        for name in lineage:  # the other runs' rows cannot be meant
            Path(folder, name).symlink_to((runs / name).absolute(), target_is_directory=True)
        table = run_sandboxed(folder, sql, params=params or None, limit=MOST_ROWS)
    choices = sorted(choices, key=lambda choice: -len(choice.names))
    chosen = next((c for c in choices if set(c.names) <= set(table.column_names)), None)
    if chosen is None:
        sets = " or ".join(" and ".join(repr(name) for name in c.names) for c in choices)
        raise ForensicsError(
            "sql",
            f"wanted a column {sets}, found {', '.join(table.column_names)}",
            f"select {', '.join(choices[0].names)} from …",
        )
    if table.schema.metadata and table.schema.metadata.get(b"truncated") == b"true":
        raise ForensicsError(
            "sql", f"the statement selects more than {MOST_ROWS:,} rows", "narrow it down"
        )
    columns, has_run = chosen.names, "run" in table.column_names
    if len(lineage) > 1 and "step" in columns and not has_run:
        raise ForensicsError(
            "sql", f"wanted a column 'run' too, because {run.name} is a fork", "select run, step, …"
        )
    rows = [
        row
        for row in table.select([*columns, "run"] if has_run else list(columns)).to_pylist()
        if None not in (row[c] for c in columns) and (not has_run or _in_lineage(row, lineage))
    ]
    for column in columns:
        if column != "rank" and any(isinstance(row[column], str) for row in rows):
            raise ForensicsError(
                "sql", f"wanted whole numbers as {column!r}, found text", "select the id itself"
            )
    if not rows:
        raise ForensicsError(
            "sql", "the statement selected nothing", "try it with `forensics query --sql`"
        )
    return chosen, {column: [row[column] for row in rows] for column in columns}


def _in_lineage(row: Mapping[str, Any], lineage: Mapping[str, tuple[int, float]]) -> bool:
    if row["run"] not in lineage:
        return False
    first, last = lineage[row["run"]]
    return "step" not in row or first <= row["step"] < last
