"""Named queries over the runs: each a readable .sql file that says what its columns mean.

from queries import run
run("runs", "spikes", {"run": "demo"})        # a pyarrow.Table
"""

from forensics.store.reader import connect
from queries.entries import FOLDER, Parameter, QueryEntry, catalog, load, tables_of
from queries.execute import arguments, names_in, run
from queries.reference import about, about_text, describe, example, listing, names_text, schema

__all__ = [
    "FOLDER",
    "Parameter",
    "QueryEntry",
    "about",
    "about_text",
    "arguments",
    "catalog",
    "connect",
    "describe",
    "example",
    "listing",
    "load",
    "names_in",
    "names_text",
    "run",
    "schema",
    "tables_of",
]
