"""trackio's SQLite files, read from a copy: with what its log of writes still holds, never written.

gradio-app/trackio trackio/sqlite_storage.py: a table `metrics` of rows with a step and JSON.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from pathlib import Path

from forensics.errors import ForensicsError, first_line
from forensics.logs.logged_rows import LoggedRows, RowCollector

MAGIC = b"SQLite format 3\x00"
BESIDE = ("-wal",)  # what is written and not yet in the file itself


def read_trackio(path: Path) -> list[LoggedRows]:
    """Read the runs of a project. Errors: data."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "copy.db"
        shutil.copyfile(path, copy)
        for suffix in BESIDE:
            if path.with_name(path.name + suffix).is_file():
                shutil.copyfile(path.with_name(path.name + suffix), Path(place, "copy.db" + suffix))
        try:
            connection = sqlite3.connect(copy)
            try:
                return _runs(connection, path)
            finally:
                connection.close()
        except sqlite3.Error as e:
            raise ForensicsError(
                "data",
                f"wanted a whole SQLite file, found {path.name}: {first_line(e)}",
                "copy it again, with its -wal beside it",
            ) from None


def _runs(connection: sqlite3.Connection, path: Path) -> list[LoggedRows]:
    columns = [row[1] for row in connection.execute("pragma table_info(metrics)")]
    if not {"run_name", "step", "metrics"} <= set(columns):
        tables = [row[0] for row in connection.execute("select name from sqlite_master")]
        raise ForensicsError(
            "data",
            f"wanted trackio's table `metrics` in {path.name}, found"
            f" {', '.join(sorted(tables)[:6]) or 'no table'}",
            "other trackers' files: export a CSV",
        )
    # files of before run_id have the name alone; two runs can be called alike
    key = "coalesce(run_id, run_name)" if "run_id" in columns else "run_name"
    runs: dict[str, RowCollector] = {}
    broken = 0
    order = "id" if "id" in columns else "rowid"
    for of_run, name, step, text in connection.execute(
        f"select {key}, run_name, step, metrics from metrics order by {order}"
    ):
        rows = runs.setdefault(of_run, RowCollector("trackio", name))
        try:
            values = json.loads(text)
        except (ValueError, TypeError):
            values = None
        if isinstance(values, dict) and isinstance(step, int):
            rows.add(values, step=step)
        else:
            broken += 1
    if not any(rows.filled for rows in runs.values()):
        raise ForensicsError(
            "data", f"wanted logged numbers in {path.name}, found none", "is it the right project?"
        )
    notes = (f"{path.name}: {broken} rows that are no JSON are left out",) if broken else ()
    names = [rows.run for rows in runs.values()]
    return [
        rows.collected(notes=notes)
        if names.count(rows.run) == 1
        else rows.collected(notes=notes).named(f"{rows.run} ({key_of})")
        for key_of, rows in runs.items()
        if rows.filled
    ]
