"""Ask anything: the named queries first, then any one SELECT in the sandbox; table, chart,
download.
"""

from __future__ import annotations

import functools
import io
from typing import Any

import streamlit as st

import queries
from app import data, show
from app.charts import sql as charts
from app.charts import theme
from app.pages import chosen_run
from app.selection import LONGEST, Selection, goto, shown
from app.show import code, strong
from forensics.errors import ForensicsError

SHOWN = 5_000  # rows of the table on the page; a download has all
OWN = "your own SELECT"
START = "select step, loss, grad_norm from steps where run = '{run}' order by step"


def page() -> None:
    selection = chosen_run()
    if selection is None:
        return
    catalog = queries.catalog()
    show.verdict(
        f"{len(catalog)} named queries, or any one SELECT, over {len(queries.schema())} tables",
        "Read only: a statement runs in a process of its own that can open nothing but the runs'"
        " tables.",
    )
    left, right = st.columns([1.7, 1], gap="medium")
    with right:
        _catalog()
    with left:
        name = (
            OWN
            if selection.sql is not None
            else selection.query
            if selection.query in catalog
            else "run_summary"
        )
        if selection.query is not None and selection.query not in catalog:
            show.nothing(
                ["No named query is called ", code(selection.query), "."], "forensics query --list"
            )
        st.session_state["named"] = name
        st.selectbox("Named query", [*catalog, OWN], key="named", on_change=_chose_query)
        result = _own(selection) if name == OWN else _named(name, selection)
        if result is not None:
            _result(result)


def _chose_query() -> None:
    name = st.session_state["named"]
    if name == OWN:
        goto(sql=START.format(run=shown().run or "demo"))
    else:
        goto(query=name, sql=None)


# ---- what is asked


def given(text: str | None) -> dict[str, str]:
    """The parameters that stand in the URL: "every=50;top=8" as a dictionary."""
    pairs = (part.partition("=") for part in (text or "").split(";"))
    return {key: value for key, equals, value in pairs if equals}


def filled_in(name: str, selection: Selection) -> dict[str, str]:
    """A value for every parameter of a named query: the URL's, else what is selected; empty: the
    default, if it has one.
    """
    parameters, url = queries.catalog()[name]["parameters"], given(selection.values)
    step = selection.step if selection.step is not None else selection.spike
    selected = {**selection.params(), **({"step": str(step)} if step is not None else {})}
    values = {}
    for parameter, about in parameters.items():
        values[parameter] = url.get(
            parameter, "" if "default" in about else selected.get(parameter, "")
        )
    return values


def _named(name: str, selection: Selection) -> Any:
    about, values = queries.catalog()[name], filled_in(name, selection)
    show.note(about["sentence"])
    keys = {parameter: f"{name}-{parameter}" for parameter in values}
    columns = st.columns(min(4, max(1, len(values)))) if values else []
    for i, (parameter, value) in enumerate(values.items()):
        st.session_state[keys[parameter]] = value
        its = about["parameters"][parameter]
        columns[i % len(columns)].text_input(
            parameter,
            key=keys[parameter],
            help=its["meaning"],
            placeholder=_default(its),
            on_change=_set_values,
            args=(keys,),
        )
    with st.expander("Its SQL"):
        st.code(queries.load(name), language="sql")
        st.button(
            "Write on from it",
            on_click=lambda: goto(sql=queries.load(name)),
            disabled=bool(values),
            help="A statement of your own has no parameters: put values in their place.",
        )
    absent = [
        p for p, value in values.items() if value == "" and "default" not in about["parameters"][p]
    ]
    if absent:
        show.nothing(
            [f"{name} needs ", strong(", ".join(absent)), "."],
            f"forensics query {name} " + " ".join(f"--param {p}=…" for p in absent),
        )
        return None
    asked: dict[str, Any] = {p: value for p, value in values.items() if value != ""}
    return data.table(name, **asked)


def _default(about: dict[str, Any]) -> str:
    default = about.get("default")
    return (
        "must be given"
        if default is None
        else "no end"
        if default == 2**63 - 1
        else str(default) or "all"
    )


def _set_values(keys: dict[str, str]) -> None:
    values = {
        parameter: str(st.session_state[key]).replace(";", "") for parameter, key in keys.items()
    }
    goto(values=";".join(f"{p}={v}" for p, v in values.items()))


def _own(selection: Selection) -> Any:
    st.session_state["editor"] = (selection.sql or "").strip()
    st.text_area(
        "One SELECT",
        key="editor",
        height=170,
        max_chars=LONGEST,
        help="Ctrl+Enter runs it.",
        on_change=lambda: goto(sql=kept_text(st.session_state["editor"])),
    )
    st.button(
        "Run", type="primary", help="Runs what stands above."
    )  # leaving the editor has already written the URL
    text = (selection.sql or "").strip()
    if not text:
        show.nothing("Nothing to run yet.", START.format(run=selection.run))
        return None
    with st.spinner("running"):
        try:
            return _answer(text, data.stamp(data.reader.runs_in(data.runs_folder()), data.TABLES))
        except ForensicsError as e:
            show.failed(e)
            return None


def kept_text(text: str) -> str:
    """The statement as it stands in the URL, where an empty one would be none at all: the page
    stays at the editor.
    """
    return text if text.strip() else " "


@functools.lru_cache(8)
def _answer(text: str, stamp: Any) -> Any:
    """The rows, found again only when a manifest changed."""
    return data.sql(text)


# ---- what comes back


def _result(rows: Any) -> None:
    cut = (rows.schema.metadata or {}).get(b"truncated") == b"true"
    said = f"{rows.num_rows:,} rows" + (
        ", cut there: aggregate, or filter by run and step" if cut else ""
    )
    show.heading(said + (f"; the first {SHOWN:,} are shown" if rows.num_rows > SHOWN else ""))
    if not rows.num_rows:
        show.nothing(
            "The query found no row.",
            hint="Another run or step may have some: see its parameters above.",
        )
        return
    plain = unique(show.plain(rows))
    show.frame(
        unique(show.readable(plain.slice(0, SHOWN))),
        height=min(420, 36 * (min(rows.num_rows, 12) + 1) + 2),
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
    """The table with columns of different names: SQL may return two of one name, a page cannot show
    them.
    """
    names: list[str] = []
    for name in rows.column_names:
        number, fresh = 2, name
        while fresh in names:
            number, fresh = number + 1, f"{name}_{number}"
        names.append(fresh)
    return rows.rename_columns(names)


def written(rows: Any, shape: str) -> bytes:
    """The whole result as a file; CSV has no lists and structs: there they are JSON."""
    import pyarrow.csv
    import pyarrow.parquet

    out = io.BytesIO()
    if shape == "csv":
        pyarrow.csv.write_csv(show.plain(rows), out)
    else:
        pyarrow.parquet.write_table(rows, out)
    return out.getvalue()


def axes(rows: Any) -> tuple[list[str], list[str]]:
    """Columns that can be x (numbers, then texts) and y (numbers), the likeliest first."""
    import pyarrow as pa

    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    numbers = [f.name for f in rows.schema if any(is_it(f.type) for is_it in kinds)]
    texts = [f.name for f in rows.schema if pa.types.is_string(f.type)]
    likely = [n for n in ("step", "bucket", "offset") if n in numbers]
    x = [*likely, *(n for n in numbers if n not in likely), *texts]
    y = [n for n in numbers if n not in likely]
    return x, [n for n in y if "loss" in n] + [n for n in y if "loss" not in n]


def _chart(rows: Any) -> None:
    x, y = axes(rows)
    if not y or len(x) < 2 or rows.num_rows < 2:
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        across = st.selectbox("Across", x, key=f"x-{hash(tuple(x))}", width=220)
        up = st.selectbox(
            "Up", [n for n in y if n != across] or y, key=f"y-{hash(tuple(y))}", width=220
        )
    show.caption(f"{up} by {across}")
    points, numeric = plotted(rows, across, up)
    theme.draw(
        (charts.curve if numeric else charts.bars)(show.dark()),
        {"rows": points},
        key=f"result-{numeric}",
    )


def plotted(rows: Any, across: str, up: str) -> tuple[Any, bool]:
    """The two columns as (x, y) and whether x is a number; more than fit are rolled up to the
    largest y of each stretch.
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


def _catalog() -> None:
    show.heading("Tables")
    views = {v["table"]: v for v in queries.schema()}
    name = st.selectbox("Table", list(views), key="catalog-table", label_visibility="collapsed")
    view = views[name]
    show.caption(f"one row per {view['row']}; key: run, {', '.join(view['key'])}")
    show.frame(
        [
            {"column": c["name"], "type": c["type"], "unit": c["unit"], "meaning": c["meaning"]}
            for c in view["columns"]
        ],
        height=480,
    )
    show.caption(
        "lineage(run): a table macro of a run and its ancestors, with the steps that are theirs"
    )
