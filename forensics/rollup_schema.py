"""Roll-ups: what is kept of 100 steps of a table, so that a long run is drawn at once."""

from __future__ import annotations

from forensics.table_schema import Column, Table

BUCKET = 100  # steps of one row of a roll-up

NUMERIC = ("int64", "int32", "float64", "float32")


def rollup(table: Table, means: bool = False) -> Table:
    """Make the schema of `<table>_by100`: extremes (and means) of every numeric column."""
    assert table.stepped
    columns = [
        Column(
            "bucket",
            "int64",
            "step",
            f"first of the {BUCKET} steps: steps bucket to bucket + {BUCKET - 1}",
        ),
        *(table.column(name) for name in table.key[1:]),
        Column(
            "rows",
            "int64",
            "count",
            f"rows of `{table.name}` in it; of the newest bucket it may hold a part only",
        ),
        Column(
            "nonfinite", "int64", "count", "NaN and infinite values in these rows, over all columns"
        ),
    ]
    for c in summarised(table):
        columns += [
            Column(
                f"{c.name}_min",
                c.type,
                c.unit,
                f"smallest finite `{c.name}`; NULL where there is none",
            ),
            Column(f"{c.name}_max", c.type, c.unit, f"largest finite `{c.name}`"),
        ]
        if means:
            columns.append(
                Column(f"{c.name}_mean", "float64", c.unit, f"mean of the finite `{c.name}`")
            )
    key = ("bucket", *table.key[1:])
    meaning = " × ".join([f"{BUCKET} steps", *table.key[1:]])
    return Table(
        f"{table.name}_by{BUCKET}", f"{meaning}: `{table.name}` rolled up", key, tuple(columns)
    )


def summarised(table: Table) -> list[Column]:
    """Columns of a table that its roll-up tells of: the numeric ones outside the key."""
    return [c for c in table.columns if c.type in NUMERIC and c.name not in table.key]
