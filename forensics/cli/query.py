"""`forensics query`: a named query, or any one SELECT, over all that was recorded."""

from __future__ import annotations

from typing import Any

import click

from forensics.cli.console import Command, cell, emit, runs_folder, say, settings, table
from forensics.errors import ForensicsError
from forensics.json_documents import plain


@click.command(
    cls=Command, example="forensics query worst_sequences --param run=demo --param step=401"
)
@click.argument("name", required=False)
@click.option(
    "--param",
    "parameters",
    multiple=True,
    metavar="k=v",
    help="A parameter of the named query; may be repeated.",
)
@click.option("--sql", metavar="TEXT", help="Any one SELECT over the tables, in a sandbox.")
@click.option(
    "--list",
    "listing",
    is_flag=True,
    help="Names of the queries, tables and macros; with NAME, one of them whole.",
)
@click.option(
    "--format",
    "shape",
    type=click.Choice(["table", "json", "csv", "parquet"]),
    default=None,
    help="How rows come out; table where it is left out.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=100_000, show_default=True, help="Rows at most."
)
def query(
    name: str | None,
    parameters: tuple[str, ...],
    sql: str | None,
    listing: bool,
    shape: str | None,
    limit: int,
) -> None:
    """Ask a named query, or any read-only SQL, over all that was recorded."""
    import queries
    from forensics.store.sandbox import run_sandboxed

    if (sql is not None) + (listing or name is not None) != 1:
        raise ForensicsError(
            "usage",
            "wanted one of NAME, --sql TEXT and --list",
            "`forensics query --list` shows what there is",
        )
    if listing:
        _list_queries(name, as_json=shape == "json")
        return
    if sql is not None:
        rows = run_sandboxed(runs_folder(), sql, limit=limit)
    else:
        assert name is not None
        values = dict(_pair(text) for text in parameters)
        rows = queries.run(runs_folder(), name, values).slice(0, limit)
    _write_rows(rows, shape or ("json" if settings().json else "table"))


def _list_queries(name: str | None, *, as_json: bool) -> None:
    """Print the names of all that can be asked, or one query, table or macro whole."""
    import queries

    settings().json |= as_json
    if name is None:
        emit(queries.listing(), lambda: say(queries.names_text()))
    else:
        emit(queries.about(name), lambda: say(queries.about_text(name)))


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ForensicsError(
            "usage", f"wanted --param name=value, found {text!r}", "e.g. --param run=demo"
        )
    return key, value


def _write_rows(rows: Any, shape: str) -> None:
    if shape == "json":
        import json

        click.echo(json.dumps(plain(rows.to_pylist()), default=str))
    elif shape == "table":
        table(rows.column_names, [[_shown(v) for v in row.values()] for row in rows.to_pylist()])
    else:
        import pyarrow.csv
        import pyarrow.parquet

        write = pyarrow.csv.write_csv if shape == "csv" else pyarrow.parquet.write_table
        with click.open_file("-", "wb") as stream:
            write(rows, stream)
    if (rows.schema.metadata or {}).get(b"truncated") == b"true":
        click.echo("warning: cut at --limit rows", err=True)


def _shown(value: Any) -> Any:
    return value if value is None or isinstance(value, (int, float, str)) else cell(value)
