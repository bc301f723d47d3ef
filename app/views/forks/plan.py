"""What a fork would do, by a dry run, and launching it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import streamlit as st

from app import formatting, jobs, safe_html
from app.safe_html import Part, code, strong
from app.selection import goto
from app.views.forks.state import launch
from forensics.visible import visible

AGAIN = 0.5  # seconds between looks at a dry run


def draw_plan(run: str, text: str) -> None:
    """The dry run of this very file, if there was one; else the button that starts it."""
    tried = planned(run, text)
    if tried is None:
        st.button(
            "Dry run",
            type="primary",
            on_click=partial(_dry_run, run, text),
            help="Checks the file, runs its SQL, counts what it touches; runs no step.",
        )
        return
    if tried.status == "running":
        _wait(run, tried.id)
        return
    document = tried.result()
    if tried.status != "done" or not isinstance(document, dict) or "fork" not in document:
        _refused(document, tried)
        st.button("Dry run again", on_click=partial(_dry_run, run, text))
        return
    _planned(document)
    columns = st.columns(2)
    columns[0].button(
        "Launch", type="primary", on_click=partial(_launch, run, document["fork"], text)
    )
    columns[1].button("Dry run again", on_click=partial(_dry_run, run, text))


def planned(run: str, text: str) -> jobs.Work | None:
    """The newest dry run of exactly this file."""
    for w in jobs.listed(run):
        if w.program == "replay" and w.arguments[:1] == ("fork",) and "--dry-run" in w.arguments:
            try:
                if (w.folder / "spec.toml").read_text(encoding="utf-8") == text:
                    return w
            except OSError:
                continue
    return None


def _dry_run(run: str, text: str) -> None:
    jobs.start(run, "replay", ["fork", "{folder}/spec.toml", "--dry-run"], {"spec.toml": text})


def _launch(run: str, fork: str, text: str) -> None:
    launch(run, fork, text)
    goto(run=run, fork=fork, part="fork", kind=None, first=None, last=None, values=None)


@st.fragment(run_every=AGAIN)
def _wait(run: str, id_: str) -> None:
    if jobs.opened(run, id_).status != "running":
        st.rerun()
    safe_html.note("Checking the file and counting what it touches …")


def _refused(document: Any, tried: jobs.Work) -> None:
    error = document.get("error") if isinstance(document, Mapping) else None
    if error:
        safe_html.amber(strong("This fork cannot be run: "), str(error.get("message")), ".")
        if error.get("hint"):
            safe_html.note(str(error["hint"]))
        return
    safe_html.amber(strong("The dry run did not end: "), tried.status)
    st.code(visible(tried.log()[-800:]) or "it wrote nothing", language=None)


def _planned(p: dict[str, Any]) -> None:
    """The plan in words: what is touched, how long it takes."""
    safe_html.heading("The plan")
    safe_html.note(code(p["fork"]), ": ", *sentence_of(p))
    if p["sequences"]:
        steps = sorted(int(s) for s in p["sequences_by_step"])
        safe_html.frame(
            [{"step": s, "sequences": p["sequences_by_step"][str(s)]} for s in steps[:200]],
            tallest=180,
        )


def sentence_of(p: Mapping[str, Any]) -> list[Part]:
    """What a plan says: what it touches, arms, steps, minutes and memory."""
    said: list[Part] = [f"{p['does']}. "]
    if p["sequences"]:
        steps = sorted(int(s) for s in p["sequences_by_step"])
        where = (
            f"step {formatting.count(steps[0])}"
            if len(steps) == 1
            else f"{len(steps)} steps ({formatting.count(steps[0])} to {formatting.count(steps[-1])})"
        )
        said += [
            strong(f"{formatting.count(p['sequences'])} sequences"),
            f" of {where} are touched, {formatting.count(p['tokens'])} targets",
        ]
        said += [f", {len(p['documents'])} documents. "] if p["documents"] else [". "]
    seconds = (p["hours"] or 0) * 3600
    time = (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )
    said += [
        f"{p['arms']} arms, {formatting.count(p['steps_to_compute'])} steps: about ",
        strong(time),
        f", {p['memory_bytes'] / 2**20:,.0f} MiB of states.",
    ]
    return said
