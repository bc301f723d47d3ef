"""What can be asked: every table, macro and named query, as text, Markdown or values for JSON."""

from __future__ import annotations

import json
from typing import Any, TypedDict

from forensics.errors import ForensicsError, nearest
from forensics.records import TABLES
from forensics.store import reader
from forensics.store.macros import MACROS, Macro
from forensics.table_schema import SQL_TYPES
from queries.entries import Parameter, QueryEntry, catalog, load

Cells = list[list[str]]  # rows of a table of text
VIEW_HEAD = ["column", "type", "unit", "meaning"]
PARAMETER_HEAD = ["parameter", "type", "default", "meaning"]
COLUMN_HEAD = ["column", "unit", "meaning"]


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
            {
                "name": column.name,
                "type": SQL_TYPES[column.type],
                "unit": column.unit,
                "meaning": column.meaning,
            }
            for column in table.columns
        ]
        if table.open_column:
            columns.append(
                {
                    "name": table.open_column.name,
                    "type": "STRUCT",
                    "unit": table.open_column.unit,
                    "meaning": table.open_column.meaning,
                }
            )
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
    for parameter in query.parameters.values():
        limits = {"default": parameter.default, "low": parameter.low}
        parameters[parameter.name] = {
            "type": parameter.type,
            **{key: value for key, value in limits.items() if value is not None},
            "meaning": parameter.meaning,
        }
    columns = query.columns.values()
    values = {
        "sentence": query.sentence,
        "parameters": parameters,
        "columns": {column.name: column.meaning for column in columns},
        "units": {column.name: column.unit for column in columns if column.unit},
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
    words = [
        f"--param {parameter.name}={values.get(parameter.name, 0)}"
        for parameter in query.parameters.values()
        if parameter.default is None
    ]
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
        head = [f"{name}: one row per {values['row']}; key: {keys}.", ""]
        return "\n".join([*head, *_aligned(_view_rows(values["columns"]), VIEW_HEAD)])
    query = catalog()[name]
    lines = [f"{name}: {query.sentence}", ""]
    if query.parameters:
        lines += [*_aligned(_parameter_rows(query), PARAMETER_HEAD), ""]
    lines += [*_aligned(_column_rows(query), COLUMN_HEAD), ""]
    return "\n".join([*lines, f"Example: {values['example']}", "", values["sql"].rstrip()])


def _view_rows(columns: list[ViewColumn]) -> Cells:
    return [
        [column["name"], column["type"], column["unit"], column["meaning"]] for column in columns
    ]


def _parameter_rows(query: QueryEntry) -> Cells:
    return [
        [parameter.name, parameter.type, _default(parameter), parameter.meaning]
        for parameter in query.parameters.values()
    ]


def _column_rows(query: QueryEntry) -> Cells:
    return [[column.name, column.unit, column.meaning] for column in query.columns.values()]


def _aligned(rows: Cells, head: list[str] | None = None) -> list[str]:
    """Return the rows below their head, in columns of equal width; an empty column is left out."""
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
        lines += [
            f"## `{view['table']}`",
            "",
            f"One row per {view['row']}; key: run, {', '.join(view['key'])}.",
            "",
            *_markdown(VIEW_HEAD, _view_rows(view["columns"])),
        ]
    macros = [
        [macro.call, "rows" if macro.reads else "a value", macro.meaning]
        for macro in MACROS.values()
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
        *_markdown(["macro", "gives", "meaning"], macros),
        "# Named queries",
        "",
    ]
    for query in catalog().values():
        builds = f" Builds on `{query.builds_on}`." if query.builds_on else ""
        lines += [f"## `{query.name}`", "", query.sentence + builds, ""]
        if query.parameters:
            lines += _markdown(PARAMETER_HEAD, _parameter_rows(query))
        lines += _markdown(COLUMN_HEAD, _column_rows(query))
    return "\n".join(lines)


def _markdown(head: list[str], rows: Cells) -> list[str]:
    """Return a Markdown table, its first column as code, and an empty line."""
    cells = [[f"`{first}`", *cells_after] for first, *cells_after in rows]
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells),
        "",
    ]
