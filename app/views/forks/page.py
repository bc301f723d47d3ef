"""A real effect or chaos? Over when? A fork beside its null forks; building one; sweeps, the
matrix, blame.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import streamlit as st

from app import data, formatting, jobs, safe_html
from app.controls import switch
from app.navigation import chosen_run
from app.selection import Selection, goto, picked_row
from app.views.blame import page as _fork_blame
from app.views.forks import build, fork, matrix, sweep
from forensics.visible import visible

PARTS = {
    "fork": "A fork",
    "build": "Build a fork",
    "sweep": "Early against late",
    "matrix": "Data or state",
    "blame": "Blame",
}
MOST = 200  # forks in the list, newest first


def page() -> None:
    selection = chosen_run()
    if selection is None:
        return
    selection = _fork_as_run(selection)
    run = str(selection.run)
    forks = [h for h in data.headers() if h.get("parent") == run][::-1][:MOST]
    part = _part(selection, bool(forks))
    switch(
        "Part",
        PARTS,
        part,
        key="fork-part",
        choose=lambda name: goto(run=run, fork=selection.fork, part=name),
    )
    if part == "build":
        build.draw(run, selection)
    elif part == "sweep":
        sweep.sweeps(run, selection)
    elif part == "matrix":
        matrix.matrices(run, selection)
    elif part == "blame":
        _fork_blame.draw(run, selection)
    else:
        _forks(run, selection, forks)


def _fork_as_run(selection: Selection) -> Selection:
    """Where the run of the URL is itself a fork, and nothing is to be built on it, that fork is
    what is looked at.
    """
    parent = data.header(str(selection.run)).get("parent")
    if parent and selection.fork is None and selection.part is None and data.header(parent):
        return selection.replacing(run=parent).replacing(fork=selection.run)
    return selection


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
    """The fork of the URL, or the newest that is done; below it all of them."""
    if selection.fork is None and not forks:
        safe_html.verdict(
            "No fork has left this run yet.",
            "A fork replays a window of it with something altered, beside an "
            "unaltered control: what differs in the end is what the alteration did, or chaos.",
        )
        first, last = build.window_of(run, selection)
        safe_html.nothing(
            "From the command line:",
            f"replay fork {run} --from {first} --to {last} --skip {first}:{first + 1} --placebos 3",
        )
        st.button("Build a fork", type="primary", on_click=partial(goto, run=run, part="build"))
        return
    finished = (
        {r["fork"]: r for r in data.rows("forks_of", runs=",".join(h["name"] for h in forks))}
        if forks
        else {}
    )
    chosen = selection.fork or next(
        (h["name"] for h in forks if h["name"] in finished), forks[0]["name"]
    )
    fork.draw(run, chosen)
    _list(run, forks, finished, chosen)
    if jobs.listed(run):
        safe_html.heading("Work on this run")
        jobs.panel(run)


def _list(
    run: str, forks: list[dict[str, Any]], finished: dict[str, dict[str, Any]], chosen: str
) -> None:
    if not forks:
        return
    safe_html.heading(f"Forks of this run: {len(forks)}, newest first; choose a row")
    rows = [_row(h, finished.get(h["name"]), h["name"] == chosen) for h in forks]
    number = st.column_config.NumberColumn
    columns = {
        "": st.column_config.TextColumn(width=24),
        "what it does": st.column_config.TextColumn(width="large"),
        "KL": number(format="%.2e"),
        "gap": number(format="%+.3f", help="nats/token, probe set, at the end"),
        "p": number(format="%.2g"),
        "effect": st.column_config.TextColumn(help="over the placebos' median"),
    }
    names = [h["name"] for h in forks]
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
                [i.get("kind") for i in header.get("interventions") or []]
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
        else f"{f['control_level']}: tolerance only",
    }


def _picked(run: str, names: list[str], key: str) -> None:
    """The row that was clicked becomes the fork of the URL."""
    name = picked_row(st.session_state[key], names)
    if name is not None:
        goto(run=run, fork=name, part="fork")
