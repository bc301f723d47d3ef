"""What can be asked: every table, macro and named query, as text, Markdown or plain values for JSON."""

from __future__ import annotations

import json
from typing import Any, TypedDict

from forensics.errors import ForensicsError, nearest
from forensics.records import SQL_TYPES, TABLES
from forensics.store import reader
from forensics.store.macros import MACROS, Macro
from queries.entries import Parameter, QueryEntry, catalog, load

Cells = list[list[str]]  # rows of a table of text


class ViewColumn(TypedDict):
    """A column of a view."""

    name: str
    type: str  # as in SQL
    unit: str
    meaning: str


class View(TypedDict):
    """A table as SQL sees it: the rows of all runs, with the run's name."""

    table: str
    row: str  # one row per …
    key: list[str]  # besides run
    columns: list[ViewColumn]


def schema() -> list[View]:
    """Return every view with its columns, `run` first."""
    run: ViewColumn = {
        "name": "run",
        "type": "VARCHAR",
        "unit": "",
        "meaning": "the run's folder",
    }
    views: list[View] = []
    for table in TABLES.values():
        columns: list[ViewColumn] = [
            {"name": c.name, "type": SQL_TYPES[c.type], "unit": c.unit, "meaning": c.meaning}
            for c in table.columns
        ]
        views.append(
            {
                "table": table.name,
                "row": table.meaning,
                "key": list(table.key),
                "columns": [run, *columns],
            }
        )
    views.append(
        {
            "table": "sources",
            "row": "source of a run's corpus",
            "key": ["source"],
            "columns": [
                {"name": name, "type": type_, "unit": "", "meaning": meaning}
                for name, (type_, meaning) in reader.SOURCES.items()
            ],
        }
    )
    return views


# ---- plain values for JSON


def listing() -> dict[str, Any]:
    """Return all that can be asked as plain values: tables, macros and named queries."""
    return {
        "tables": schema(),
        "macros": [_macro_values(macro) for macro in MACROS.values()],
        "queries": {query.name: _query_values(query) for query in catalog().values()},
    }


def _macro_values(macro: Macro) -> dict[str, str]:
    return {
        "macro": macro.call,
        "gives": "rows" if macro.reads else "a value",
        "meaning": macro.meaning,
    }


def _query_values(query: QueryEntry) -> dict[str, Any]:
    parameters = {}
    for p in query.parameters.values():
        limits = {"default": p.default, "low": p.low}
        parameters[p.name] = {
            "type": p.type,
            **{key: value for key, value in limits.items() if value is not None},
            "meaning": p.meaning,
        }
    values = {
        "sentence": query.sentence,
        "parameters": parameters,
        "columns": {c.name: c.meaning for c in query.columns.values()},
        "units": {c.name: c.unit for c in query.columns.values() if c.unit},
    }
    return values | ({"builds_on": query.builds_on} if query.builds_on else {})


def about(name: str) -> dict[str, Any]:
    """Return one query, table or macro as plain values; of a query its SQL and an example too.

    Errors: usage, with the nearest name.
    """
    if name in catalog():
        query = catalog()[name]
        return {
            "query": name,
            **_query_values(query),
            "example": example(query),
            "sql": load(name),
        }
    if name in MACROS:
        return {**_macro_values(MACROS[name])}
    for view in schema():
        if view["table"] == name:
            return dict(view)
    names = [*catalog(), *(view["table"] for view in schema()), *MACROS]
    raise ForensicsError(
        "usage", f"no query, table or macro is called {name!r}", nearest(name, names)
    )


def example(query: QueryEntry) -> str:
    """Return a command that runs the query, with all that must be given."""
    values = {"run": "demo", "parent": "demo", "step": 400, "first": 390, "last": 410}
    needed = (p.name for p in query.parameters.values() if p.default is None)
    words = [f"--param {name}={values.get(name, 0)}" for name in needed]
    return " ".join([f"forensics query {query.name}", *words])


# ---- text for a terminal


def names_text() -> str:
    """Return the names of all that can be asked, each in one line with what it answers or holds."""
    sections = {
        "Named queries": [[query.name, query.sentence] for query in catalog().values()],
        "Tables": [[view["table"], f"one row per {view['row']}"] for view in schema()],
        "Macros": [[macro.call, macro.meaning.partition(". ")[0]] for macro in MACROS.values()],
    }
    lines = []
    for title, rows in sections.items():
        lines += [f"{title}:", *_aligned(rows), ""]
    return "\n".join([*lines, "`forensics query --list NAME` shows one of them whole."])


def about_text(name: str) -> str:
    """Return one query, table or macro as text: what it answers or holds, column by column.

    Errors: usage, with the nearest name.
    """
    values = about(name)
    if "macro" in values:
        return f"{values['macro']}: {values['meaning']}."
    if "table" in values:
        keys = ", ".join(["run", *values["key"]])
        rows = [[c["name"], c["type"], c["unit"], c["meaning"]] for c in values["columns"]]
        head = [f"{name}: one row per {values['row']}; key: {keys}.", ""]
        return "\n".join([*head, *_aligned(rows, ["column", "type", "unit", "meaning"])])
    query = catalog()[name]
    lines = [f"{name}: {query.sentence}", ""]
    if query.parameters:
        rows = [[p.name, p.type, _default(p), p.meaning] for p in query.parameters.values()]
        lines += [*_aligned(rows, ["parameter", "type", "default", "meaning"]), ""]
    rows = [[c.name, c.unit, c.meaning] for c in query.columns.values()]
    lines += [*_aligned(rows, ["column", "unit", "meaning"]), ""]
    return "\n".join([*lines, f"Example: {values['example']}", "", values["sql"].rstrip()])


def _aligned(rows: Cells, head: list[str] | None = None) -> list[str]:
    """The rows below their head, in columns of equal width; an empty column is left out."""
    filled = [i for i in range(len(rows[0])) if any(row[i] for row in rows)] if rows else []
    table = [[row[i] for i in filled] for row in ([head] if head else []) + rows]
    widths = [max(map(len, column)) for column in zip(*table)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in table
    ]


def _default(parameter: Parameter) -> str:
    default = parameter.default
    if default is None:
        return "must be given"
    return "no end" if default == 2**63 - 1 else json.dumps(default)


# ---- Markdown for the documentation


def describe() -> str:
    """Return Markdown: every table and column, every macro, every named query."""
    lines = [
        "# Tables and queries",
        "",
        "Made from `forensics/records.py`, `forensics/store/macros.py` and `queries/*.sql`.",
        "",
    ]
    for view in schema():
        rows = [[f"`{c['name']}`", c["type"], c["unit"], c["meaning"]] for c in view["columns"]]
        lines += [
            f"## `{view['table']}`",
            "",
            f"One row per {view['row']}; key: run, {', '.join(view['key'])}.",
            "",
            *_markdown(["column", "type", "unit", "meaning"], rows),
        ]
    lines += [
        "# Macros",
        "",
        "SQL functions beside the tables. Views never mix parent and fork; these join them:",
        "",
        "```sql",
        "select step, loss from steps_along('my-fork') order by step",
        "```",
        "",
        *_markdown(
            ["macro", "gives", "meaning"],
            [[f"`{m.call}`", "rows" if m.reads else "a value", m.meaning] for m in MACROS.values()],
        ),
        "# Named queries",
        "",
    ]
    for query in catalog().values():
        builds = f" Builds on `{query.builds_on}`." if query.builds_on else ""
        lines += [f"## `{query.name}`", "", query.sentence + builds, ""]
        if query.parameters:
            rows = [
                [f"`{p.name}`", p.type, _default(p), p.meaning] for p in query.parameters.values()
            ]
            lines += _markdown(["parameter", "type", "default", "meaning"], rows)
        rows = [[f"`{c.name}`", c.unit, c.meaning] for c in query.columns.values()]
        lines += _markdown(["column", "unit", "meaning"], rows)
    return "\n".join(lines)


def _markdown(head: list[str], rows: Cells) -> list[str]:
    """A Markdown table and an empty line."""
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows),
        "",
    ]
