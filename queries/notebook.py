"""What each notebook begins with: the runs' tables, by SQL or by a named query, as pandas frames.

runs = setup()
runs.sql("select step, loss from steps where run = $run", run="demo")
runs.query("first_to_move", run="demo", step=400)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forensics.store.reader import connect
from queries.execute import run as run_query

if TYPE_CHECKING:
    import duckdb
    import pandas


@dataclass(frozen=True)
class Runs:
    """A folder of runs as a notebook asks it."""

    connection: duckdb.DuckDBPyConnection

    def sql(self, text: str, **parameters: Any) -> pandas.DataFrame:
        """Return the rows of a SELECT, in which `$name` is the parameter of that name."""
        return self.connection.sql(text, params=parameters or None).df()

    def query(self, name: str, /, **parameters: Any) -> pandas.DataFrame:
        """Return the rows of a named query. Errors: usage, missing, integrity."""
        return run_query(self.connection, name, parameters).to_pandas()


def setup() -> Runs:
    """Open the folder of runs that FORENSICS_RUNS names, else `runs`. Errors: missing."""
    return Runs(connect(os.environ.get("FORENSICS_RUNS", "runs")))
