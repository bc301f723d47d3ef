"""A column whose fields are those of the data: `documents.attributes`, a STRUCT of its own per run.

Where a connection holds several runs, the view's STRUCT has the fields of all of them, each of one
type: whole numbers beside decimals are decimals, anything else that differs is text.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from forensics.table_schema import Table

Fields = tuple[tuple[str, str], ...]  # name and DuckDB's type of each field

ABSENT: Fields = (("these_runs_have_no_attributes", "BOOLEAN"),)  # a STRUCT cannot be empty


def fields_of(spec: Table, have: Sequence[str], files: Sequence[str]) -> Fields:
    """Return the fields of a table's open column in one run's parts; none where it was not
    written.
    """
    if spec.open_column is None or spec.open_column.name not in have or not files:
        return ()
    return _fields(files[0], spec.open_column.name)


@functools.lru_cache(maxsize=4096)
def _fields(file: str, column: str) -> Fields:
    """Read the fields from a part's schema; a part never changes under its name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        pa.bool_(): "BOOLEAN",
        pa.int64(): "BIGINT",
        pa.float64(): "DOUBLE",
        pa.string(): "VARCHAR",
    }
    struct = pq.read_schema(file).field(column).type
    return tuple((field.name, types.get(field.type, "VARCHAR[]")) for field in struct)


def joined(all_fields: Iterable[Fields]) -> Fields:
    """Return the fields of all runs, each of one type; capitals tell no names apart in SQL."""
    spelled: dict[str, str] = {}
    types: dict[str, str] = {}
    for fields in all_fields:
        for name, type_ in fields:
            name = spelled.setdefault(name.lower(), name)
            before = types.get(name, type_)
            types[name] = before if before == type_ else _common(before, type_)
    return tuple(types.items())


def _common(a: str, b: str) -> str:
    if {a, b} == {"BIGINT", "DOUBLE"}:
        return "DOUBLE"
    return "VARCHAR[]" if "VARCHAR[]" in (a, b) else "VARCHAR"


def selected(spec: Table, fields: Fields, everywhere: Fields) -> list[str]:
    """Return the open column of a view's SELECT over parts that have `fields`; none where the
    table has no such column.
    """
    if spec.open_column is None:
        return []
    column = spec.open_column.name
    wanted = everywhere or ABSENT
    struct = f"STRUCT({', '.join(f'{quoted(name)} {type_}' for name, type_ in wanted)})"
    if not fields:
        return [f"null::{struct} as {column}"]
    there = {name.lower(): (name, type_) for name, type_ in fields}
    values = [f"{quoted(name)} := {_value(column, there, name, type_)}" for name, type_ in wanted]
    packed = f"struct_pack({', '.join(values)})"
    return [f"(case when {column} is not null then {packed} end)::{struct} as {column}"]


def _value(column: str, there: dict[str, tuple[str, str]], name: str, wanted: str) -> str:
    if name.lower() not in there:
        return f"null::{wanted}"
    stored, type_ = there[name.lower()]
    value = f"struct_extract({column}, {_literal(stored)})"
    if type_ == wanted:
        return value
    if wanted == "VARCHAR[]":  # a value beside lists is a list of one
        return f"case when {value} is not null then [{value}::VARCHAR] end"
    return f"{value}::{wanted}"


def quoted(name: str) -> str:
    """Return a name as SQL quotes it."""
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
