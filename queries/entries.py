"""What each named query answers, with its parameters, columns and SQL, as its file says.

A query is one file `NAME.sql`. It begins with a comment that holds TOML: `sentence`, a table
`[parameters]` and a table `[columns]`. Its SQL follows: a chain of named CTEs, the last of them
called `final`. A line `-- include FILE.sql` stands for the SQL of another file of this folder.
"""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from forensics.errors import ForensicsError, nearest
from forensics.store.select_check import used_tables

FOLDER = Path(__file__).parent
TYPES = {"run": str, "runs": str, "text": str, "int": int, "float": float}
INCLUDE = re.compile(r"^-- include (shared/)?(\w+)\.sql$", re.MULTILINE)
FRONT = re.compile(r"/\*\n(.*?)\n\*/\n", re.DOTALL)


@dataclass(frozen=True)
class Parameter:
    """A value that a query takes, `$name` in its SQL."""

    name: str
    type: str  # a key of TYPES; run: a run's name; runs: names with commas, empty or *: all
    meaning: str
    default: str | int | float | None = None  # None: it must be given
    low: int | None = None  # its least value
    most: str | None = None  # the parameter whose value it may not exceed


@dataclass(frozen=True)
class ResultColumn:
    """A column of a query's rows."""

    name: str
    unit: str  # empty: none
    meaning: str


@dataclass(frozen=True)
class QueryEntry:
    """A named query as its file says."""

    name: str
    sentence: str  # what it answers
    parameters: dict[str, Parameter]
    columns: dict[str, ResultColumn]
    sql: str  # as it is written; `load` puts in what it includes

    def names_of(self, parameter_type: str) -> list[str]:
        """Return the names of the parameters of a type."""
        return [p.name for p in self.parameters.values() if p.type == parameter_type]

    @property
    def builds_on(self) -> str | None:
        """The named query whose rows it reads, if there is one."""
        return next((name for shared, name in INCLUDE.findall(self.sql) if not shared), None)


@functools.cache
def catalog() -> dict[str, QueryEntry]:
    """Return every named query by its name, in alphabetical order."""
    return {path.stem: read_entry(path) for path in sorted(FOLDER.glob("*.sql"))}


def read_entry(path: Path) -> QueryEntry:
    """Read a query's file.

    Raise ValueError, with the file's name, where its front comment is not as described above.
    """
    text = path.read_text(encoding="utf-8")
    front = FRONT.match(text)
    if front is None:
        raise ValueError(f"{path.name}: wanted a comment with TOML at the top, found {text[:40]!r}")
    try:
        about = tomllib.loads(front[1])
        return QueryEntry(
            path.stem,
            about.pop("sentence"),
            {
                name: Parameter(name, **fields)
                for name, fields in about.pop("parameters", {}).items()
            },
            {name: _column(name, fields) for name, fields in about.pop("columns").items()},
            text[front.end() :],
            **about,  # anything else is refused
        )
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path.name}: its front comment cannot be read: {error}") from None


def _column(name: str, about: str | dict[str, str]) -> ResultColumn:
    """Return a column as written: its meaning alone, or {unit, meaning}."""
    if isinstance(about, str):
        return ResultColumn(name, "", about)
    return ResultColumn(name, **about)


def entry(name: str) -> QueryEntry:
    """Return the named query. Errors: usage, with the nearest name."""
    if name not in catalog():
        raise ForensicsError("usage", f"no query is called {name!r}", nearest(name, catalog()))
    return catalog()[name]


@functools.cache
def load(name: str) -> str:
    """Return the SQL of a named query with all that it includes. Errors: usage."""
    return _with_includes(entry(name).sql)


def _with_includes(sql: str) -> str:
    def included(line: re.Match[str]) -> str:
        shared, name = line.groups()
        text = (
            _with_includes((FOLDER / "shared" / f"{name}.sql").read_text(encoding="utf-8"))
            if shared
            else load(name)
        )
        return text.rstrip("\n")

    return INCLUDE.sub(included, sql)


@functools.cache
def tables_of(name: str) -> set[str]:
    """Return the tables that a named query reads. Errors: usage."""
    return used_tables(load(name))
