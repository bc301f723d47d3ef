"""Ask anything: the named queries first, then any one SELECT in the sandbox; table, chart,
download.
"""

from __future__ import annotations

import functools
from typing import Any

import streamlit as st

import queries
from app import data, safe_html
from app.controls import pick
from app.navigation import chosen_run
from app.safe_html import code, strong
from app.selection import LONGEST, Selection, goto, shown
from app.views.sql.result import draw_result
from forensics.errors import ForensicsError

OWN = "your own SELECT"
START = "select step, loss, grad_norm from steps where run = '{run}' order by step"


def page() -> None:
    """Draw the page: a named query or a SELECT, its rows, and the tables there are."""
    selection = chosen_run()
    if selection is None:
        return
    catalog = queries.catalog()
    safe_html.verdict(
        f"{len(catalog)} named queries, or a SELECT of your own, over {len(queries.schema())}"
        " tables",
        "A statement can only read: it runs in a process of its own that can open nothing but the"
        " tables of the runs.",
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
            safe_html.nothing(
                ["No named query is called ", code(selection.query), "."], "forensics query --list"
            )
        pick(
            "Named query",
            [*catalog, OWN],
            name,
            key="named",
            choose=_chose_query,
            label_visibility="visible",
        )
        result = _own(selection) if name == OWN else _named(name, selection)
        if result is not None:
            draw_result(result)


def _chose_query(name: str) -> None:
    if name == OWN:
        goto(sql=START.format(run=shown().run or "demo"))
    else:
        goto(query=name, sql=None)


# ---- what is asked


def given(text: str | None) -> dict[str, str]:
    """Read the parameters that stand in the URL, "every=50;top=8", as a dictionary."""
    pairs = (pair.partition("=") for pair in (text or "").split(";"))
    return {key: value for key, equals, value in pairs if equals}


def filled_in(name: str, selection: Selection) -> dict[str, str]:
    """Return a value for every parameter of a named query; empty: the default, if it has one."""
    parameters, url = queries.catalog()[name].parameters, given(selection.values)
    step = selection.step if selection.step is not None else selection.spike
    selected = {**selection.params(), **({"step": str(step)} if step is not None else {})}
    values = {}
    for parameter, about in parameters.items():
        values[parameter] = url.get(
            parameter,
            selected.get(parameter, "") if about.default is None else "",
        )
    return values


def _named(name: str, selection: Selection) -> Any:
    about, values = queries.catalog()[name], filled_in(name, selection)
    safe_html.note(about.sentence)
    keys = {parameter: f"{name}-{parameter}" for parameter in values}
    columns = st.columns(min(4, max(1, len(values)))) if values else []
    for index, (parameter, value) in enumerate(values.items()):
        st.session_state[keys[parameter]] = value
        its = about.parameters[parameter]
        columns[index % len(columns)].text_input(
            parameter,
            key=keys[parameter],
            help=its.meaning,
            placeholder=_default(its),
            on_change=_set_values,
            args=(keys,),
        )
    with st.expander("The SQL of this query"):
        st.code(queries.load(name), language="sql")
        st.button(
            "Edit it",
            on_click=lambda: goto(sql=queries.load(name)),
            disabled=bool(values),
            help="A SELECT of your own has no parameters: write values in their place.",
        )
    absent = [
        parameter_name
        for parameter_name, value in values.items()
        if value == "" and about.parameters[parameter_name].default is None
    ]
    if absent:
        safe_html.nothing(
            [f"{name} needs a value for ", strong(", ".join(absent)), "."],
            f"forensics query {name} "
            + " ".join(f"--param {parameter_name}=…" for parameter_name in absent),
        )
        return None
    parameters: dict[str, Any] = {
        parameter_name: value for parameter_name, value in values.items() if value != ""
    }
    return data.table(name, **parameters)


def _default(about: queries.Parameter) -> str:
    default = about.default
    return (
        "needed" if default is None else "no end" if default == 2**63 - 1 else str(default) or "all"
    )


def _set_values(keys: dict[str, str]) -> None:
    values = {
        parameter: str(st.session_state[key]).replace(";", "") for parameter, key in keys.items()
    }
    goto(values=";".join(f"{parameter}={value}" for parameter, value in values.items()))


def _own(selection: Selection) -> Any:
    st.session_state["editor"] = (selection.sql or "").strip()
    st.text_area(
        "Your SELECT",
        key="editor",
        height=170,
        max_chars=LONGEST,
        help="Ctrl+Enter runs it.",
        on_change=lambda: goto(sql=kept_text(st.session_state["editor"])),
    )
    st.button(
        "Run", type="primary", help="Runs the statement above."
    )  # leaving the editor has already written the URL
    text = (selection.sql or "").strip()
    if not text:
        safe_html.nothing("There is nothing to run yet. Try:", START.format(run=selection.run))
        return None
    with st.spinner("running"):
        try:
            return _answer(text, data.stamp(data.reader.runs_in(data.runs_folder()), data.TABLES))
        except ForensicsError as e:
            safe_html.failed(e)
            return None


def kept_text(text: str) -> str:
    """Return the statement as the URL keeps it, where an empty one would be none at all."""
    return text if text.strip() else " "


@functools.lru_cache(8)
def _answer(text: str, stamp: Any) -> Any:
    """Return the rows, found again only when a manifest changed."""
    return data.sql(text)


# ---- what comes back


def _catalog() -> None:
    safe_html.heading("Tables")
    views = {value["table"]: value for value in queries.schema()}
    name = st.selectbox("Table", list(views), key="catalog-table", label_visibility="collapsed")
    view = views[name]
    safe_html.caption(f"One row per {view['row']} · key: run, {', '.join(view['key'])}")
    safe_html.frame(
        [
            {
                "column": column["name"],
                "type": column["type"],
                "unit": column["unit"],
                "meaning": column["meaning"],
            }
            for column in view["columns"]
        ],
        height=480,
    )
    safe_html.caption(
        "lineage(run) is a table macro: a run and its ancestors, with the steps that are theirs."
    )
