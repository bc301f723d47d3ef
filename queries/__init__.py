"""Named queries over the runs: each a readable .sql file, with what it means in catalog.toml.

from queries import run
run("runs", "spikes", {"run": "demo"})        # a pyarrow.Table
"""

from __future__ import annotations

import functools
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forensics.errors import ForensicsError, nearest
from forensics.records import SQL_TYPES, TABLES
from forensics.store import reader
from forensics.store.reader import connect
from forensics.store.sandbox import one_line, used_tables

if TYPE_CHECKING:
    import duckdb
    import pyarrow

__all__ = ["arguments", "catalog", "connect", "describe", "load", "run", "schema", "tables_of"]

FOLDER = Path(__file__).parent


@functools.cache
def catalog() -> dict[str, dict[str, Any]]:
    """name → {"sentence", "parameters": {name: {"type", "default"?, "meaning"}}, "columns": {name:
    meaning}}.

    A query with "builds_on" names another whose rows it reads.
    """
    return tomllib.loads((FOLDER / "catalog.toml").read_text(encoding="utf-8"))


@functools.cache
def load(name: str) -> str:
    """The SQL of a named query, whole: what it builds on stands before it as a CTE. Errors:
    usage.
    """
    if name not in catalog():
        raise ForensicsError("usage", f"no query is called {name!r}", nearest(name, catalog()))
    sql = (FOLDER / f"{name}.sql").read_text(encoding="utf-8")
    base = catalog()[name].get("builds_on")
    return f"with {base} as (\n{load(base)}),\n{sql.removeprefix('with ')}" if base else sql


def run(
    where: duckdb.DuckDBPyConnection | str | Path,
    name: str,
    params: Mapping[str, Any] | None = None,
) -> pyarrow.Table:
    """The rows of a named query over a folder of runs or a connection of `connect`; parts it reads
    are hashed.

    `params` may hold strings, as from a command line. Errors: usage, missing, integrity.
    """
    import duckdb

    sql, tables = load(name), tables_of(name)
    on_connection = isinstance(where, duckdb.DuckDBPyConnection)
    folder = where.sql("select runs_folder()").fetchall()[0][0] if on_connection else str(where)  # type: ignore[union-attr]
    values = arguments(name, params or {}, folder)
    runs = _ancestry(folder, name, values)
    for attempt in range(reader.ATTEMPTS):
        reader.check_parts(folder, tables - {"sources"}, runs)
        con = where.cursor() if on_connection else connect(folder, tables, runs)  # type: ignore[union-attr]
        try:
            return con.sql(sql, params=values or None).to_arrow_table()
        except duckdb.IOException as e:  # a part merged away since the views were made
            if attempt == reader.ATTEMPTS - 1:
                raise ForensicsError(
                    "integrity", one_line(e), "run `forensics doctor RUN`"
                ) from None
            if on_connection:
                reader.refresh(con, folder)
        except duckdb.Error as e:
            raise ForensicsError("sql", f"{name}: {one_line(e)}", "check its parameters") from None
        finally:
            con.close()
    raise AssertionError("unreachable")


@functools.cache
def tables_of(name: str) -> set[str]:
    """The tables that a named query reads. Errors: usage."""
    return used_tables(load(name))


def _ancestry(folder: str, name: str, values: dict[str, Any]) -> list[str] | None:
    """The runs a query can need: with 200 runs in a folder, it opens only the parts of one run and
    its ancestors.
    """
    parameters = catalog()[name]["parameters"]
    listed = {
        run
        for p, about in parameters.items()
        if about["type"] == "runs"
        for run in _listed(values[p])
    }
    if listed:
        return sorted(listed)
    chosen = [values[p] for p, about in parameters.items() if about["type"] == "run"]
    if not chosen:
        return None
    con = connect(folder, {"runs"})
    try:
        rows = con.sql("select run from lineage($run)", params={"run": chosen[0]}).fetchall()
    finally:
        con.close()
    return sorted({*chosen, *(row[0] for row in rows)} & {*reader.runs_in(folder)})


def arguments(name: str, given: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Every parameter with its type. Errors: usage, missing."""
    known = catalog()[name]["parameters"]
    for parameter in given:
        if parameter not in known:
            raise ForensicsError(
                "usage", f"{name} has no parameter {parameter!r}", nearest(parameter, known)
            )
    values = {}
    for parameter, about in known.items():
        if parameter not in given and "default" not in about:
            raise ForensicsError(
                "usage", f"{name} needs {parameter}: {about['meaning']}", f"--param {parameter}=…"
            )
        value = _typed(given.get(parameter, about.get("default")), about, f"{name}: {parameter}")
        wanted = {"run": [value], "runs": _listed(str(value))}.get(about["type"], [])
        for run in wanted:
            if run not in (runs := reader.runs_in(folder)):
                raise ForensicsError(
                    "missing", f"no run is called {run!r}", nearest(str(run), runs)
                )
        values[parameter] = value
    return values


def _listed(runs: str) -> list[str]:
    """The names in a parameter of type runs; none where it asks for all."""
    names = [name.strip() for name in runs.split(",")]
    return [] if names in (["*"], [""]) else names


def _typed(value: Any, about: dict[str, Any], where: str) -> Any:
    kinds = {"int": int, "float": float, "text": str, "run": str, "runs": str}
    try:
        typed = kinds[about["type"]](value)
        if "low" in about and typed < about["low"]:
            raise ValueError
    except (TypeError, ValueError):
        low = f" of at least {about['low']}" if "low" in about else ""
        raise ForensicsError(
            "usage", f"{where}: wanted {about['type']}{low}, found {value!r}", about["meaning"]
        ) from None
    return typed


def schema() -> list[dict[str, Any]]:
    """Every view: {"table", "row", "key", "columns": [{"name", "type", "unit", "meaning"}]}, `run`
    first.
    """
    run_column = {"name": "run", "type": "VARCHAR", "unit": "", "meaning": "the run's folder"}
    views: list[dict[str, Any]] = []
    for table in TABLES.values():
        columns = [
            {"name": c.name, "type": SQL_TYPES[c.type], "unit": c.unit, "meaning": c.meaning}
            for c in table.columns
        ]
        views.append(
            {
                "table": table.name,
                "row": table.meaning,
                "key": list(table.key),
                "columns": [run_column, *columns],
            }
        )
    columns = [
        {"name": n, "type": t, "unit": "", "meaning": meaning}
        for n, (t, meaning) in reader.SOURCES.items()
    ]
    views.append(
        {
            "table": "sources",
            "row": "source of a run's corpus",
            "key": ["source"],
            "columns": columns,
        }
    )
    return views


def describe() -> str:
    """Markdown: every table and column, the macro, every named query."""
    lines = [
        "# Tables and queries",
        "",
        "Made from `forensics/records.py` and `queries/catalog.toml`.",
        "",
    ]
    for view in schema():
        lines += [
            f"## `{view['table']}`",
            "",
            f"One row per {view['row']}; key: run, {', '.join(view['key'])}.",
            "",
        ]
        lines += ["| column | type | unit | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{c['name']}` | {c['type']} | {_cell(c['unit'])} | {_cell(c['meaning'])} |"
            for c in view["columns"]
        ]
        lines.append("")
    lines += [
        "## `lineage(run)`",
        "",
        (
            "A table macro: (run, first_step, last_step), one row for the run and for each"
            " ancestor, with the half-open range of steps in which its rows belong to the"
            f" trajectory of that run. A run's own rows have no end ({reader.FOREVER}). Views never"
            " mix parent and fork; this joins them:"
        ),
        "",
        "```sql",
        "select s.step, s.loss from steps as s",
        (
            "join lineage('my-fork') as l on l.run = s.run and s.step >= l.first_step and s.step <"
            " l.last_step"
        ),
        "```",
        "",
        "# Named queries",
        "",
    ]
    for name, about in catalog().items():
        lines += [
            f"## `{name}`",
            "",
            about["sentence"]
            + (f" Builds on `{about['builds_on']}`." if "builds_on" in about else ""),
            "",
            "| parameter | type | default | meaning |",
            "|---|---|---|---|",
        ]
        for parameter, p in about["parameters"].items():
            default = json.dumps(p["default"]) if "default" in p else "must be given"
            lines.append(f"| `{parameter}` | {p['type']} | {default} | {_cell(p['meaning'])} |")
        lines += ["", "| column | meaning |", "|---|---|"]
        lines += [
            f"| `{column}` | {_cell(meaning)} |" for column, meaning in about["columns"].items()
        ]
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
