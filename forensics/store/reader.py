"""Tables of runs as Arrow tables and DuckDB views, by their manifests only, beside any number of
writers.

con = connect("runs")
con.sql("select step, loss from steps where run = 'demo' order by step").to_arrow_table()
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from forensics.errors import ForensicsError
from forensics.records import TABLES
from forensics.store import manifest as m
from forensics.store import open_columns
from forensics.store.macros import MACROS
from forensics.table_schema import SQL_TYPES, Table

if TYPE_CHECKING:
    import duckdb
    import pyarrow

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# columns that name the run: its folder does, whatever was written before it was copied or renamed
FOLDER_COLUMNS = {("runs", "name"), ("forks", "fork")}
ATTEMPTS = 3  # a part can be merged away between reading the manifest and opening it

# What the views add to records.TABLES: name → (columns with type and meaning, sentence).
SOURCES = {
    "run": ("VARCHAR", "the run's folder"),
    "source": ("VARCHAR", "name of the source in the recipe"),
    "first_sequence": ("BIGINT", "id of its first sequence: ids are counted over all sources"),
    "sequences": ("BIGINT", "number of its sequences; number i of them is its tokens [i·T, i·T+T]"),
    "tokens": ("BIGINT", "length of its token stream"),
}


def check_run_name(name: str) -> str:
    """Return the name, if it can be a run's folder. Errors: usage."""
    if not RUN_NAME.fullmatch(name):
        raise ForensicsError(
            "usage",
            f"wanted a run's name, found {name!r}",
            "letters, digits, '.', '_' and '-', with a letter or digit first",
        )
    return name


def runs_in(runs_folder: str | Path) -> list[str]:
    """Names of the runs in a folder, sorted: its folders with a run.json."""
    try:
        with os.scandir(runs_folder) as entries:
            names = [e.name for e in entries if RUN_NAME.fullmatch(e.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(n for n in names if os.path.isfile(os.path.join(runs_folder, n, "run.json")))


def read(run_folder: str | Path, table: str, columns: Iterable[str] | None = None) -> pyarrow.Table:
    """One table of one run, rows as appended; empty and typed where it was never written. Errors:
    integrity.
    """
    import pyarrow as pa

    schema = TABLES[table].arrow_schema()
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns])
    place = m.folder(Path(run_folder), table)
    for attempt in range(ATTEMPTS):
        manifest = m.load(Path(run_folder), table, fresh=attempt > 0)
        try:
            parts = [m.rows(place / part.file, part, schema) for part in manifest.parts]
        except (FileNotFoundError, ForensicsError) as e:
            if attempt < ATTEMPTS - 1 and m.load(Path(run_folder), table, fresh=True) != manifest:
                continue  # a writer replaced the part after the manifest was read
            raise (m.gone(Path(e.filename)) if isinstance(e, FileNotFoundError) else e) from None
        return pa.concat_tables(parts) if parts else schema.empty_table()
    raise AssertionError("unreachable")


def check_parts(
    runs_folder: str | Path,
    tables: Iterable[str] | None = None,
    runs: Iterable[str] | None = None,
    steps: tuple[int, int] | None = None,
) -> None:
    """Hash every live part of these tables that this process has not hashed yet. Errors: integrity.

    `steps`, half-open, leaves out parts of tables keyed by step that hold none of them.
    """
    for run in runs_in(runs_folder) if runs is None else runs:
        for table in TABLES if tables is None else tables:
            for attempt in range(ATTEMPTS):
                manifest = m.load(Path(runs_folder, run), table, fresh=attempt > 0)
                try:
                    for part in manifest.parts:
                        if steps is None or not TABLES[table].stepped or _overlaps(part, steps):
                            m.check(m.folder(Path(runs_folder, run), table) / part.file, part)
                except (FileNotFoundError, ForensicsError) as e:
                    if (
                        attempt < ATTEMPTS - 1
                        and m.load(Path(runs_folder, run), table, fresh=True) != manifest
                    ):
                        continue
                    raise (
                        m.gone(Path(e.filename)) if isinstance(e, FileNotFoundError) else e
                    ) from None
                break


def _overlaps(part: m.Part, steps: tuple[int, int]) -> bool:
    return int(part.first) < steps[1] and int(part.last) >= steps[0]


class TablesRead(NamedTuple):
    """What reading every byte of a run's tables found."""

    files: int  # parts and manifests that were read and hold what they should
    problems: list[str]  # a sentence for each damaged or missing one
    unnamed: list[Path]  # that no manifest names: left over from a write that was cut off


def read_tables(run_folder: Path) -> TablesRead:
    """Read every manifest and every part of a run again, and hash what was hashed."""
    files, damaged, unnamed = 0, [], []
    folders = [path for path in Path(run_folder, "tables").glob("*") if path.is_dir()]
    for table in sorted({*TABLES, *(path.name for path in folders)}):
        place = m.folder(Path(run_folder), table)
        there = {path for path in place.glob("*") if path.name not in (m.FILE, ".lock")}
        if table not in TABLES:
            unnamed += sorted(there)
            continue
        if there and not (place / m.FILE).is_file():
            damaged.append(f"{place / m.FILE} is missing, {len(there)} files lie beside it")
            continue
        try:
            parts = m.load(Path(run_folder), table, fresh=True).parts
        except ForensicsError as e:
            damaged.append(str(e))
            continue
        files += (place / m.FILE).is_file()
        for part in parts:
            path = place / part.file
            there.discard(path)
            try:
                m.require_hash(path, part, path.read_bytes())
                files += 1
            except FileNotFoundError:
                damaged.append(str(m.gone(path)))
            except ForensicsError as e:
                damaged.append(str(e))
        unnamed += sorted(there)
    return TablesRead(files, damaged, unnamed)


def problems(run_folder: str | Path) -> list[str]:
    """One sentence for each damaged or missing part of a run, every byte read again."""
    return read_tables(Path(run_folder)).problems


def connect(
    runs_folder: str | Path,
    tables: Collection[str] | None = None,
    runs: Collection[str] | None = None,
) -> duckdb.DuckDBPyConnection:
    """Open an in-memory DuckDB with a view per table over all runs, `sources`, and the macros of
    `forensics.store.macros`.

    Views list the parts alive now: call `refresh` or connect again to see later ones. `tables` and
    `runs` limit what is looked up: other tables are then empty, their macros absent. One
    `con.cursor()` per thread; results by `to_arrow_table()` of `con.sql(…)`. Rows of views are not
    hashed: `check_parts` does that. Errors: missing, integrity.
    """
    import duckdb

    if not Path(runs_folder).is_dir():
        raise ForensicsError(
            "missing",
            f"wanted a folder of runs at {runs_folder}, found none",
            "`forensics train RECIPE` makes the first run; or set --runs",
        )
    quiet = {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "python_enable_replacements": False,
    }
    con = duckdb.connect(":memory:", config=quiet)  # type: ignore[arg-type]
    refresh(con, runs_folder, tables, runs)
    return con


def refresh(
    con: duckdb.DuckDBPyConnection,
    runs_folder: str | Path,
    tables: Collection[str] | None = None,
    runs: Collection[str] | None = None,
) -> None:
    """Let the views of a connection list the parts that are alive now. Errors: integrity."""
    folder = Path(runs_folder).absolute()
    names = runs_in(folder) if runs is None else sorted(runs)
    tables_to_refresh = {*TABLES, "sources"} if tables is None else {*tables}
    views = [
        _view(spec, folder, names if spec.name in tables_to_refresh else [])
        for spec in TABLES.values()
    ]
    views.append(_sources_view(folder, names if "sources" in tables_to_refresh else []))
    macros = [macro for macro in MACROS.values() if macro.reads <= {*tables_to_refresh, "runs"}]
    views += [macro.definition for macro in macros]
    views.append(f"create or replace macro runs_folder() as {_text(str(folder))}")
    con.execute(";\n".join(views))


def live_parts(runs_folder: str | Path, tables: Iterable[str], runs: Iterable[str]) -> list[Path]:
    """Paths of the parts that a connection over these tables and runs would read."""
    folder = Path(runs_folder).absolute()
    return [
        m.folder(folder / run, table) / part.file
        for run in runs
        for table in tables
        for part in m.load(folder / run, table).parts
    ]


def _view(spec: Table, folder: Path, runs: Iterable[str]) -> str:
    """Return the view of one table.

    Explicit lists of parts, one list for each set of columns that was ever written.
    """
    lists: dict[tuple[tuple[str, ...], open_columns.Fields], list[str]] = {}
    for run in runs:
        manifest = m.load(f"{folder}/{run}", spec.name)
        place = f"{folder}/{run}/tables/{spec.name}"
        files = [f"{place}/{part.file}" for part in manifest.parts]
        fields = open_columns.fields_of(spec, manifest.columns, files)
        lists.setdefault((manifest.columns, fields), []).extend(files)
    everywhere = open_columns.joined(fields for _, fields in lists)
    selects = []
    for (have, fields), files in lists.items():
        if files:
            # computed from the path, so that DuckDB opens only the files of `where run = …`
            of_folder = "list_extract(string_split(filename, '/'), -4)"
            run = f"{of_folder} as run"
            columns = [
                f'{of_folder} as "{c.name}"'
                if (spec.name, c.name) in FOLDER_COLUMNS
                else _column(c.name, SQL_TYPES[c.type], c.name in have)
                for c in spec.columns
            ]
            columns += open_columns.selected(spec, fields, everywhere)
            listed = ", ".join(_text(literal_path(f)) for f in files)
            selects.append(
                f"select {run}, {', '.join(columns)} from read_parquet([{listed}], filename = true)"
            )
    if not selects:
        columns = [_column(c.name, SQL_TYPES[c.type], False) for c in spec.columns]
        columns += open_columns.selected(spec, (), everywhere)
        selects = [f"select null::VARCHAR as run, {', '.join(columns)} where false"]
    return f'create or replace view "{spec.name}" as ' + " union all ".join(selects)


def _sources_view(folder: Path, runs: Iterable[str]) -> str:
    rows = []
    for run in runs:
        path = folder / run / "run.json"
        try:
            sources = json.loads(path.read_bytes()).get("corpus_sources") or []
            rows += [[run] + [s[name] for name in list(SOURCES)[1:]] for s in sources]
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise ForensicsError(
                "integrity",
                f"{path} cannot be read: {type(e).__name__} {e}",
                "restore this file from a copy",
            ) from None
    values = [[f"{_value(x)}::{t}" for x, (t, _) in zip(row, SOURCES.values())] for row in rows]
    listed = ", ".join(f"({', '.join(row)})" for row in values)
    empty = ", ".join(f"null::{t}" for t, _ in SOURCES.values())
    body = f"values {listed}" if values else f"select {empty} where false"
    return f"create or replace view sources as select * from ({body}) as s({', '.join(SOURCES)})"


def _column(name: str, type_: str, there: bool) -> str:
    return f'"{name}"::{type_} as "{name}"' if there else f'null::{type_} as "{name}"'


def _value(x: object) -> str:
    return "null" if x is None else str(int(x)) if isinstance(x, int) else _text(str(x))


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def literal_path(path: str) -> str:
    """Return a path in which DuckDB sees no pattern."""
    return re.sub(r"[*?\[]", lambda c: f"[{c[0]}]", path)
