"""The rows that a query found: table, downloads, chart."""

from __future__ import annotations

import io
from typing import Any

import streamlit as st

from app import safe_html, theme
from app.views.sql import charts

SHOWN = 5_000  # rows of the table on the page; a download has all


def draw_result(rows: Any) -> None:
    """Draw the rows as a table, as downloads and as a chart."""
    cut = (rows.schema.metadata or {}).get(b"truncated") == b"true"
    words = f"{rows.num_rows:,} rows" + (
        ", cut there: group the rows, or filter by run and step, to see all" if cut else ""
    )
    safe_html.heading(words + (f"; the first {SHOWN:,} are shown" if rows.num_rows > SHOWN else ""))
    if not rows.num_rows:
        safe_html.nothing(
            "The query returned no row.",
            hint="Another run or step may have some: see the parameters above.",
        )
        return
    plain = unique(safe_html.plain(rows))
    safe_html.frame(
        unique(safe_html.readable(plain.slice(0, SHOWN))),
        tallest=420,
    )
    with st.container(horizontal=True):
        st.download_button(
            "Download Parquet",
            lambda: written(rows, "parquet"),
            "result.parquet",
            on_click="ignore",
        )
        st.download_button(
            "Download CSV",
            lambda: written(rows, "csv"),
            "result.csv",
            "text/csv",
            on_click="ignore",
        )
    _chart(plain)


def unique(rows: Any) -> Any:
    """Return the table with columns of different names; SQL may return two of one name."""
    names: list[str] = []
    for name in rows.column_names:
        number, fresh = 2, name
        while fresh in names:
            number, fresh = number + 1, f"{name}_{number}"
        names.append(fresh)
    return rows.rename_columns(names)


def written(rows: Any, shape: str) -> bytes:
    """Return the whole result as a file; CSV has no lists and structs: there they are JSON."""
    import pyarrow.csv
    import pyarrow.parquet

    out = io.BytesIO()
    if shape == "csv":
        pyarrow.csv.write_csv(safe_html.plain(rows), out)
    else:
        pyarrow.parquet.write_table(rows, out)
    return out.getvalue()


def axes(rows: Any) -> tuple[list[str], list[str]]:
    """Columns that can be x (numbers, then texts) and y (numbers), the likeliest first."""
    import pyarrow as pa

    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    numbers = [field.name for field in rows.schema if any(is_it(field.type) for is_it in kinds)]
    texts = [field.name for field in rows.schema if pa.types.is_string(field.type)]
    likely = [name for name in ("step", "bucket", "offset") if name in numbers]
    across = [*likely, *(name for name in numbers if name not in likely), *texts]
    up = [name for name in numbers if name not in likely]
    return across, [name for name in up if "loss" in name] + [
        name for name in up if "loss" not in name
    ]


def _chart(rows: Any) -> None:
    across_columns, up_columns = axes(rows)
    if not up_columns or len(across_columns) < 2 or rows.num_rows < 2:
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        across = st.selectbox(
            "Across", across_columns, key=f"x-{hash(tuple(across_columns))}", width=220
        )
        up = st.selectbox(
            "Up",
            [name for name in up_columns if name != across] or up_columns,
            key=f"y-{hash(tuple(up_columns))}",
            width=220,
        )
    safe_html.caption(f"{up} by {across}")
    points, numeric = plotted(rows, across, up)
    theme.draw(
        (charts.curve if numeric else charts.bars)(safe_html.dark()),
        {"rows": points},
        key=f"result-{numeric}",
    )


def plotted(rows: Any, across: str, up: str) -> tuple[Any, bool]:
    """Return the two columns as (x, y) and whether x is a number.

    More rows than fit are rolled up to the largest y of each stretch.
    """
    import numpy as np
    import pyarrow as pa

    picked = pa.table({"x": rows[across], "y": rows[up].cast(pa.float64())})
    if pa.types.is_string(picked["x"].type):
        return picked.slice(0, 60), False
    if picked.num_rows > theme.STEPS_MOST:
        picked = picked.sort_by("x")
        stretch = np.arange(picked.num_rows) * (theme.STEPS_MOST // 2) // picked.num_rows
        grouped = (
            picked.append_column("stretch", pa.array(stretch))
            .group_by("stretch")
            .aggregate([("x", "min"), ("y", "max")])
        )
        picked = pa.table({"x": grouped["x_min"], "y": grouped["y_max"]})
    return picked, True
