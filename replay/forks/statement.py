"""Run the SELECT of an intervention over the tables of its parent's lineage, and fill its field."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forensics.coercion import coerce
from forensics.errors import ForensicsError
from forensics.store.sandbox import run_sandboxed
from forensics.train.run import Run
from replay.forks.draft import Draft
from replay.interventions.base import Windowed
from replay.interventions.fields import Choice, Columns, Rows, fields_of
from replay.interventions.registry import KINDS, SEE, kind_of, read_window
from replay.interventions.rows import Place, standing
from replay.lineage import own_steps

MOST_ROWS = 1_000_000


def with_choice(runs: Path, draft: Draft, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return a fork file's intervention with its window, and with what its SQL chose under the key
    that it fills. Errors: config, usage, sql.
    """
    kind, run = kind_of(keys), draft.run
    fields = fields_of(KINDS[kind])
    for field in fields:  # what is asked for before all keys are read
        if field.name in ("first", "last", "sql") and field.name in keys:
            coerce(field.type, keys[field.name], f"{kind}.{field.name}", SEE)
    filled, where = read_window(keys), (draft.first, draft.last)
    if issubclass(KINDS[kind], Windowed):
        where = filled.setdefault("first", draft.first), filled.setdefault("last", draft.last)
    choices = {columns: field.name for field in fields for columns in field.about.columns}
    by_hand = {field.name for field in fields if field.about.columns or field.about.instead_of_sql}
    for field in fields:
        if field.about.chooses and filled.get(field.name) and not by_hand & filled.keys():
            text = coerce(field.type, filled[field.name], f"{kind}.{field.name}", SEE)
            filled[field.about.chooses.fills] = _found(field.about.chooses, run, text, kind)
    if choices and filled.get("sql") and not by_hand & filled.keys():
        Windowed(*where).check(run, draft.first, draft.last)
        columns, rows = select(runs, run, str(filled["sql"]), list(choices), where)
        if draft.moved:
            rows = carried(rows, draft, where, kind)
            run = copy.copy(run)
            run.stream = draft.stream  # where sequences are looked for by their id
        value = columns.read(run, rows, *where)
        if not value:
            raise ForensicsError(
                "sql",
                f"{kind}: the statement selected nothing inside {where[0]}:{where[1]}",
                "try it with `forensics query --sql`",
            )
        filled[choices[columns]] = value
    return filled


def _found(choice: Choice, run: Run, text: str, kind: str) -> list[int]:
    """Return what a text chooses of a run's data. Errors: usage, where nothing holds it."""
    ids = choice.find(run, text)
    if not ids:
        raise ForensicsError(
            "usage",
            f"{kind}: wanted {choice.fills} of {run.name} that hold {text[:60]!r}, found none",
            "`forensics where RUN TEXT` finds where a text stands",
        )
    return ids


def carried(rows: Rows, draft: Draft, where: tuple[int, int], kind: str) -> Rows:
    """Return rows chosen by step and slot, which are the parent's, with the places at which they
    stand in the stream that the intervention is given; a row that comes again, at each of them.

    A row of another step than the window's that does not stand in it does not count. Errors: usage,
    where one of the window's is not there any more, or a position of one whose text was edited.
    """
    if not {"step", "slot"} <= rows.keys():
        return rows
    standing_places = standing(draft.stream, *where)
    columns: Rows = {name: [] for name in rows}
    for values in zip(*rows.values()):
        row = dict(zip(rows, values))
        place = int(row["step"]), int(row["slot"])
        places = standing_places.get(place, [])
        if not places and where[0] <= place[0] < where[1]:
            raise ForensicsError(
                "usage",
                f"{kind}: wanted rows that are seen in {where[0]}:{where[1]}, found step"
                f" {place[0]}, slot {place[1]}, which the interventions before it take away or move"
                " out of it",
                "leave the row out of the SQL, or list this intervention first",
            )
        for step, slot in places:
            if "position" in row and not _same_tokens(draft, place, (step, slot)):
                raise ForensicsError(
                    "usage",
                    f"{kind}: wanted a position in a row of the parent, found step {place[0]}, slot"
                    f" {place[1]}, whose text an intervention before it edits",
                    "list this intervention first",
                )
            for name, value in (row | {"step": step, "slot": slot}).items():
                columns[name].append(value)
    return columns


def _same_tokens(draft: Draft, own: Place, place: Place) -> bool:
    """Return whether the parent's row has the tokens of the row that it became."""
    before = draft.run.stream(own[0]).tokens[own[1]]
    return bool((before == draft.stream(place[0]).tokens[place[1]]).all())


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
