"""Rows for the pages: named queries over the runs folder, cached until a manifest they read
changes.

rows("spikes", run="demo")                       # a list of dictionaries
table("heads_heat", run="demo", step=400)        # a pyarrow.Table: goes into a chart as it is

One DuckDB for the process. Each lineage (a run and its ancestors) has a schema in it with the views
over its parts, so that a query opens no other run's files; each query has its own cursor, on
whichever thread it comes.
"""

from __future__ import annotations

import functools
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import queries
from forensics.errors import ForensicsError, nearest
from forensics.records import TABLES
from forensics.sequence_window import SequenceWindow, window_of
from forensics.store import manifest, reader
from forensics.store.sandbox import run_sandboxed
from forensics.store.select_check import one_line
from forensics.train.header import is_parent

if TYPE_CHECKING:
    import duckdb
    import pyarrow

KEPT_BYTES = 256 << 20  # of results
Stamp = tuple[Any, ...]  # what tells that manifests changed

_lock = threading.RLock()
_kept: OrderedDict[tuple[Any, ...], pyarrow.Table] = OrderedDict()
_views: dict[str, Stamp] = {}  # schema → the manifests its views list


def runs_folder() -> Path:
    """Return the folder of runs that the app was started for."""
    return Path(os.environ.get("FORENSICS_RUNS", "runs")).absolute()


def headers() -> list[dict[str, Any]]:
    """run.json of every run, oldest first; one that cannot be read is left out (`forensics doctor`
    tells).
    """
    every = [header(name) for name in reader.runs_in(runs_folder())]
    return sorted((h for h in every if h), key=lambda h: (h.get("created") or "", h["name"]))


def header(run: str) -> dict[str, Any]:
    """run.json of a run as a dictionary; empty where there is none that can be read."""
    path = runs_folder() / reader.check_run_name(run) / "run.json"
    try:
        stat = path.stat()
        return _header(str(path), stat.st_mtime_ns, stat.st_size)
    except (OSError, ValueError):
        return {}


def cut_of(header: dict[str, Any]) -> SequenceWindow:
    """Return how the corpus of a run is cut into sequences, by its header.

    KeyError, TypeError or ValueError where that does not say.
    """
    keys = header["config"]["data"]
    # headers of runs that are older than the key know one window
    return window_of(keys.get("window", "shared"), int(keys["sequence_length"]))


def is_log_alone(run: str) -> bool:
    """Whether a run is what another trainer logged, without its model and its data."""
    return header(run).get("shape") == {}


@functools.lru_cache(512)
def _header(path: str, mtime: int, size: int) -> dict[str, Any]:
    document = json.loads(Path(path).read_bytes())
    return {**document, "name": Path(path).parent.name} if isinstance(document, dict) else {}


def document(path: Path) -> dict[str, Any]:
    """Read a JSON object again when its file changes; empty where there is none."""
    try:
        return _document(path, path.stat().st_mtime_ns)
    except (OSError, ValueError):
        return {}


@functools.lru_cache(64)
def _document(path: Path, stamp: int) -> dict[str, Any]:
    content = json.loads(path.read_bytes())
    return content if isinstance(content, dict) else {}


def lineage(run: str) -> list[str]:
    """Return the run, then its ancestors that are there, nearest first."""
    chain: list[str] = []
    name: Any = run
    while (
        isinstance(name, str)
        and reader.RUN_NAME.fullmatch(name)
        and name not in chain
        and header(name)
        and (not chain or is_parent(header(name), header(chain[-1])))
    ):
        chain.append(name)
        name = header(name).get("parent")
    return chain


def forks_of(run: str) -> list[dict[str, Any]]:
    """Return run.json of the forks that left this very run, oldest first; not of another run that
    had its name.
    """
    parent = header(run)
    return [fork for fork in headers() if fork.get("parent") == run and is_parent(parent, fork)]


def reached(run: str) -> int | None:
    """Return the step that a run's own tables reached; None where none was recorded."""
    parts = manifest.load(runs_folder() / run, "steps").parts
    return int(parts[-1].last) + 1 if parts else None


def table(query: str, *, window: tuple[int, int] | None = None, **parameters: Any) -> pyarrow.Table:
    """Return the rows of a named query.

    `window`: the half-open steps it reads, so that only their parts are hashed. Errors: usage,
    missing, integrity, sql.
    """
    folder = runs_folder()
    values = queries.arguments(query, parameters, str(folder))
    runs = _runs_of(queries.catalog()[query], values)
    return _answer(query, queries.load(query), values, queries.tables_of(query), runs, window)


def rows(
    query: str, *, window: tuple[int, int] | None = None, **parameters: Any
) -> list[dict[str, Any]]:
    """Return the rows of a named query as dictionaries."""
    return list(table(query, window=window, **parameters).to_pylist())


def recorded(name: str, run: str, columns: Collection[str] = ()) -> list[dict[str, Any]]:
    """Return a short table (events, certificates …) of one run's own rows, as dictionaries."""
    assert name in TABLES
    runs = [require(run)]
    listed = (
        ", ".join(f'"{TABLES[name].column(column).name}"' for column in columns)
        or "* exclude (run)"
    )
    rows = _answer(
        f"table {name} {listed}", f'select {listed} from "{name}"', {}, {name}, runs, None
    )
    return list(rows.to_pylist())


def sql(text: str, limit: int = 10_000) -> pyarrow.Table:
    """Run a user's SELECT in the sandbox. Errors: sql, missing, integrity."""
    return run_sandboxed(runs_folder(), text, limit=limit)


def require(run: str) -> str:
    """Return the name, if there is such a run. Errors: usage, missing."""
    reader.check_run_name(run)
    if not (runs_folder() / run / "run.json").is_file():
        raise ForensicsError(
            "missing", f"no run is called {run!r}", nearest(run, reader.runs_in(runs_folder()))
        )
    return run


def stamp(runs: Collection[str], tables: Collection[str]) -> Stamp:
    """Return what changes with every manifest of these tables that is replaced."""
    folder = runs_folder()
    names = [
        *(f"tables/{table}/manifest.json" for table in sorted({*tables} & {*TABLES})),
        "run.json",
    ]
    return (
        str(folder),
        *((run, name, *_stat(f"{folder}/{run}/{name}")) for run in runs for name in names),
    )


def _stat(path: str) -> tuple[int, ...]:
    try:
        stat = os.stat(path)
    except OSError:
        return ()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _runs_of(query: queries.QueryEntry, values: dict[str, Any]) -> list[str]:
    """Return the runs whose parts a query reads: those it lists, else a run and its ancestors."""
    listed = {run for key in query.names_of("runs") for run in queries.names_in(str(values[key]))}
    if listed:
        return sorted(listed)
    chosen = [values[key] for key in query.names_of("run")]
    if chosen:
        return sorted({ancestor for run in chosen for ancestor in lineage(require(run))})
    return reader.runs_in(runs_folder())


def _answer(
    name: str,
    text: str,
    values: dict[str, Any],
    tables: set[str],
    runs: list[str],
    window: tuple[int, int] | None,
) -> pyarrow.Table:
    import duckdb

    for attempt in range(reader.ATTEMPTS):
        state = stamp(runs, tables)
        key = (name, tuple(sorted(values.items())), state)
        with _lock:
            if key in _kept:
                _kept.move_to_end(key)
                return _kept[key]
        reader.check_parts(runs_folder(), tables - {"sources"}, runs, window)
        cursor = _cursor(runs, again=attempt > 0)
        try:
            return _keep(key, cursor.sql(text, params=values or None).to_arrow_table())
        except duckdb.IOException as e:  # a part was merged away since the views were made
            if attempt == reader.ATTEMPTS - 1:
                raise ForensicsError(
                    "integrity", one_line(e), "run `forensics doctor RUN`"
                ) from None
        except duckdb.Error as e:
            raise ForensicsError("sql", f"{name}: {one_line(e)}", "check its parameters") from None
        finally:
            cursor.close()
    raise AssertionError("unreachable")


def forget() -> None:
    """Drop every kept result, as a benchmark wants it."""
    with _lock:
        _kept.clear()


def _keep(key: tuple[Any, ...], result: pyarrow.Table) -> pyarrow.Table:
    with _lock:
        _kept[key] = result
        while sum(t.nbytes for t in _kept.values()) > KEPT_BYTES and len(_kept) > 1:
            _kept.popitem(last=False)
    return result


@functools.cache
def _database() -> duckdb.DuckDBPyConnection:
    import duckdb

    quiet = {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "python_enable_replacements": False,
        "enable_external_file_cache": True,
    }
    return duckdb.connect(":memory:", config=quiet)  # type: ignore[arg-type]


def _cursor(runs: list[str], *, again: bool) -> duckdb.DuckDBPyConnection:
    """Return a cursor in the schema of these runs, its views as the manifests are now."""
    schema = f"s{abs(hash((str(runs_folder()), *runs)))}"
    with _lock:
        cursor = _database().cursor()
        now = stamp(runs, TABLES)
        if again or _views.get(schema) != now:
            cursor.execute(f"create schema if not exists {schema}; use {schema}")
            reader.refresh(cursor, runs_folder(), None, runs)
            _views[schema] = now
        else:
            cursor.execute(f"use {schema}")
    return cursor
