"""Run a named query over a folder of runs.

run("runs", "spikes", {"run": "demo"})        # a pyarrow.Table
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forensics.errors import ForensicsError, nearest
from forensics.store import reader
from forensics.store.reader import connect
from forensics.store.select_check import one_line
from queries.entries import TYPES, Parameter, entry, load, tables_of

if TYPE_CHECKING:
    import duckdb
    import pyarrow

    Value = str | int | float


def run(
    where: duckdb.DuckDBPyConnection | str | Path,
    name: str,
    params: Mapping[str, Any] | None = None,
) -> pyarrow.Table:
    """Return the rows of a named query over a folder of runs or a connection of `connect`.

    The parts that it reads are hashed. `params` may hold strings, as from a command line. Errors:
    usage, missing, integrity.
    """
    import duckdb

    sql, tables = load(name), tables_of(name)
    connection = where if isinstance(where, duckdb.DuckDBPyConnection) else None
    folder = connection.sql("select runs_folder()").fetchall()[0][0] if connection else str(where)
    values = arguments(name, params or {}, folder)
    runs = _runs_to_open(folder, name, values)
    for attempt in range(reader.ATTEMPTS):
        reader.check_parts(folder, tables - {"sources"}, runs)
        con = connection.cursor() if connection else connect(folder, tables, runs)
        try:
            return con.sql(sql, params=values or None).to_arrow_table()
        except duckdb.IOException as error:  # a part merged away since the views were made
            if attempt == reader.ATTEMPTS - 1:
                raise ForensicsError(
                    "integrity", one_line(error), "run `forensics doctor RUN`"
                ) from None
            if connection:
                reader.refresh(con, folder)
        except duckdb.Error as error:
            raise ForensicsError(
                "sql", f"{name}: {one_line(error)}", "check its parameters"
            ) from None
        finally:
            con.close()
    raise AssertionError("unreachable")


def _runs_to_open(folder: str, name: str, values: Mapping[str, Value]) -> list[str] | None:
    """Return the runs that a query can need; None: all of them.

    With 200 runs in a folder, it opens only the parts of one run and its ancestors.
    """
    query = entry(name)
    listed = {run for key in query.names_of("runs") for run in names_in(str(values[key]))}
    if listed:
        return sorted(listed)
    chosen = [str(values[key]) for key in query.names_of("run")]
    if not chosen:
        return None
    con = connect(folder, {"runs"})
    try:
        rows = con.sql("select run from lineage($run)", params={"run": chosen[0]}).fetchall()
    finally:
        con.close()
    return sorted({*chosen, *(row[0] for row in rows)} & {*reader.runs_in(folder)})


def arguments(name: str, params: Mapping[str, Any], folder: str) -> dict[str, Value]:
    """Return a value of its type for every parameter of a query. Errors: usage, missing."""
    parameters = entry(name).parameters
    for key in params:
        if key not in parameters:
            raise ForensicsError(
                "usage", f"{name} has no parameter {key!r}", nearest(key, parameters)
            )
    values = {}
    for key, parameter in parameters.items():
        if key not in params and parameter.default is None:
            raise ForensicsError(
                "usage", f"{name} needs {key}: {parameter.meaning}", f"--param {key}=…"
            )
        values[key] = value = _typed(params.get(key, parameter.default), parameter, name)
        runs = {"run": [str(value)], "runs": names_in(str(value))}.get(parameter.type, [])
        for run in runs:
            if run not in (recorded := reader.runs_in(folder)):
                raise ForensicsError("missing", f"no run is called {run!r}", nearest(run, recorded))
    for key, parameter in parameters.items():
        if parameter.most is not None and float(values[key]) > float(values[parameter.most]):
            raise ForensicsError(
                "usage",
                f"{name}: wanted {key} of at most {parameter.most} = {values[parameter.most]},"
                f" found {values[key]}",
                parameter.meaning,
            )
    return values


def names_in(text: str) -> list[str]:
    """Return the names in a parameter of type runs; none where it asks for all runs."""
    names = [name.strip() for name in text.split(",")]
    return [] if names in (["*"], [""]) else names


def _typed(value: Any, parameter: Parameter, query: str) -> Value:
    try:
        typed: Value = TYPES[parameter.type](value)
        if parameter.low is not None and float(typed) < parameter.low:
            raise ValueError
    except (TypeError, ValueError):
        low = "" if parameter.low is None else f" of at least {parameter.low}"
        raise ForensicsError(
            "usage",
            f"{query}: {parameter.name}: wanted {parameter.type}{low}, found {value!r}",
            parameter.meaning,
        ) from None
    return typed
