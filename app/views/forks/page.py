"""A real effect or chaos? Over when? A fork beside its null forks; building one; sweeps, the
matrix, blame.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import streamlit as st

from app import data, formatting, jobs, safe_html
from app.controls import switch
from app.navigation import chosen_run, link
from app.selection import Selection, goto, picked_row
from app.views.blame import page as blame
from app.views.forks import build, fork, matrix, sweep
from forensics.visible import visible

PARTS = {
    "fork": "A fork",
    "build": "Build a fork",
    "sweep": "Early against late",
    "matrix": "Data or state",
}
MOST = 200  # forks in the list, newest first


def page() -> None:
    """Draw the page: a fork, the form of one, a sweep or a matrix."""
    selection = chosen_run(of_model=True)
    if selection is None:
        return
    selection = _fork_as_run(selection)
    run = str(selection.run)
    forks = data.forks_of(run)[::-1][:MOST]
    if selection.part == "blame":  # links from before blame was a page of its own
        blame.draw(run, selection)
        return
    tab = _part(selection, bool(forks))
    parts, blame_link = st.columns([4, 1], vertical_alignment="center")
    with parts:
        switch(
            "Part",
            PARTS,
            tab,
            key="fork-part",
            choose=lambda name: goto(run=run, fork=selection.fork, part=name),
        )
    with blame_link:
        link("blame", "Which data made the spike?", run=run)
    if tab == "build":
        build.draw(run, selection)
    elif tab == "sweep":
        sweep.sweeps(run, selection)
    elif tab == "matrix":
        matrix.matrices(run, selection)
    else:
        _forks(run, selection, forks)


def _fork_as_run(selection: Selection) -> Selection:
    """Where the run of the URL is itself a fork, and nothing is to be built on it, that fork is
    what is looked at.
    """
    parent = data.header(str(selection.run)).get("parent")
    if (
        parent
        and selection.fork is None
        and selection.part is None
        and _is_there(parent, selection)
    ):
        return selection.replacing(run=parent).replacing(fork=selection.run)
    return selection


def _is_there(parent: str, selection: Selection) -> bool:
    """Whether the run that this fork left is still there under its name."""
    return any(fork["name"] == selection.run for fork in data.forks_of(parent))


def _part(selection: Selection, any_fork: bool) -> str:
    if selection.part in PARTS:
        return str(selection.part)
    chosen = (
        selection.kind
        or selection.document is not None
        or selection.step is not None
        or selection.token is not None
    )
    return "build" if selection.fork is None and (chosen or not any_fork) else "fork"


def _forks(run: str, selection: Selection, forks: list[dict[str, Any]]) -> None:
    """Draw the fork of the URL, or the newest that is done; below it all of them."""
    if selection.fork is None and not forks:
        safe_html.verdict(
            "This run has no fork yet",
            "A fork trains a part of the run again with something altered, beside a control with"
            " nothing altered. Where they differ at the end, it is by the alteration, or by chaos:"
            " null forks tell which.",
        )
        first, last = build.window_of(run, selection)
        safe_html.nothing(
            "This command makes one:",
            f"replay fork {run} --from {first} --to {last} --skip {first}:{first + 1} --placebos 3",
        )
        st.button("Build a fork", type="primary", on_click=partial(goto, run=run, part="build"))
        return
    finished = (
        {
            row["fork"]: row
            for row in data.rows("forks_of", runs=",".join(header["name"] for header in forks))
        }
        if forks
        else {}
    )
    chosen = selection.fork or next(
        (header["name"] for header in forks if header["name"] in finished), forks[0]["name"]
    )
    fork.draw(run, chosen)
    _list(run, forks, finished, chosen)
    if jobs.listed(run):
        safe_html.heading("Commands started here on this run")
        jobs.panel(run)


def _list(
    run: str, forks: list[dict[str, Any]], finished: dict[str, dict[str, Any]], chosen: str
) -> None:
    if not forks:
        return
    safe_html.heading(f"Forks of this run: {len(forks)}, newest first. Choose a row to see it.")
    rows = [
        _row(header, finished.get(header["name"]), header["name"] == chosen) for header in forks
    ]
    number = st.column_config.NumberColumn
    columns = {
        "": st.column_config.TextColumn(width=24),
        "what it does": st.column_config.TextColumn(width="large"),
        "KL": number(format="%.2e"),
        "gap": number(
            format="%+.3f", help="loss above the control's at the end, nats/token, on the probe set"
        ),
        "p": number(format="%.2g"),
        "effect": st.column_config.TextColumn(
            help="distance from the control, as a multiple of the median placebo"
        ),
    }
    names = [header["name"] for header in forks]
    # of this choice: the tick of another, from before Back, would not go away
    key = f"fork-list-{run}-{chosen}"
    safe_html.frame(
        rows,
        key=key,
        on_select=partial(_picked, run, names, key),
        selection_mode="single-row",
        column_config=columns,
        tallest=420,
    )


def _row(header: dict[str, Any], f: dict[str, Any] | None, chosen: bool) -> dict[str, Any]:
    window = (
        f"{formatting.count(header.get('parent_step'))} to {formatting.count(header.get('steps'))}"
    )
    base: dict[str, Any] = {"": "●" if chosen else "", "fork": header["name"], "window": window}
    if f is None:
        return base | {
            "what it does": formatting.listed(
                [intervention.get("kind") for intervention in header.get("interventions") or []]
            )
            or "nothing",
            "effect": None,
            "p": None,
            "N": None,
            "KL": None,
            "gap": None,
            "back after": None,
            "control": header.get("status"),
        }
    back = (
        f"{f['time_to_reconverge']} steps"
        if f["time_to_reconverge"] is not None
        else f"> {f['last'] - f['first']}"
        if f["placebos"]
        else None
    )
    return base | {
        "what it does": visible(f["sentence"]),
        "effect": formatting.ratio(f["effect"]),
        "p": f["p"],
        "N": f["placebos"],
        "KL": f["logit_kl"],
        "gap": f["loss_gap"],
        "back after": back,
        "control": "bit for bit"
        if f["control_bitwise"]
        else f"within tolerance ({f['control_level']})",
    }


def _picked(run: str, names: list[str], key: str) -> None:
    """Make the row that was clicked the fork of the URL."""
    name = picked_row(st.session_state[key], names)
    if name is not None:
        goto(run=run, fork=name, part="fork")
