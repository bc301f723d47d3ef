"""What a fork would do, by a dry run, and launching it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import streamlit as st

from app import formatting, jobs, safe_html
from app.safe_html import Part, code, strong
from app.selection import goto
from app.views.forks.state import launch
from forensics.errors import ForensicsError
from forensics.visible import visible
from replay.forks.result import ForkPlan

AGAIN = 0.5  # seconds between looks at a dry run
MOST_STEPS = 200  # rows of the table


def draw_plan(run: str, text: str) -> None:
    """Draw the dry run of this very file, if there was one; else the button that starts it."""
    tried = planned(run, text)
    if tried is None:
        st.button(
            "Dry run",
            type="primary",
            on_click=partial(_dry_run, run, text),
            help="Checks the file, runs its SQL and counts what it changes. It trains nothing.",
        )
        return
    if tried.status == "running":
        _wait(run, tried.id)
        return
    document = tried.result()
    try:
        plan = ForkPlan.from_document(document, "the dry run") if tried.status == "done" else None
    except ForensicsError as error:
        safe_html.amber(*safe_html.spoken(f"{error.message}."))
        st.button("Dry run again", on_click=partial(_dry_run, run, text))
        return
    if plan is None:
        _refused(document, tried)
        st.button("Dry run again", on_click=partial(_dry_run, run, text))
        return
    _draw_planned(plan)
    columns = st.columns(2)
    columns[0].button("Launch", type="primary", on_click=partial(_launch, run, plan.fork, text))
    columns[1].button("Dry run again", on_click=partial(_dry_run, run, text))


def planned(run: str, text: str) -> jobs.Job | None:
    """Return the newest dry run of exactly this file."""
    for job in jobs.listed(run):
        if (
            job.program == "replay"
            and job.arguments[:1] == ("fork",)
            and "--dry-run" in job.arguments
        ):
            try:
                if (job.folder / "spec.toml").read_text(encoding="utf-8") == text:
                    return job
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
    safe_html.note("Checking the file and counting what it changes …")


def _refused(document: Any, tried: jobs.Job) -> None:
    error = document.get("error") if isinstance(document, Mapping) else None
    if error:
        message = safe_html.spoken(f"{error.get('message')}.")
        safe_html.amber(strong("This fork cannot be run: "), *message)
        if error.get("hint"):
            safe_html.note(*safe_html.spoken(str(error["hint"])))
        return
    safe_html.amber(strong("The dry run did not finish: "), tried.status)
    st.code(visible(tried.log()[-800:]) or "it wrote nothing", language=None)


def _draw_planned(plan: ForkPlan) -> None:
    """Draw the plan in words, and how many sequences of each step it touches."""
    safe_html.heading("The plan")
    safe_html.note(code(plan.fork), ": ", *sentence_of(plan))
    if plan.sequences:
        steps = sorted(plan.sequences_by_step)
        safe_html.frame(
            [
                {"step": step, "sequences": plan.sequences_by_step[step]}
                for step in steps[:MOST_STEPS]
            ],
            tallest=180,
        )


def sentence_of(plan: ForkPlan) -> list[Part]:
    """Say what a fork would touch, and its arms, steps, time and memory."""
    touched: list[Part] = []
    if plan.sequences:
        steps = sorted(plan.sequences_by_step)
        where = (
            f"step {formatting.count(steps[0])}"
            if len(steps) == 1
            else f"{len(steps)} steps, {formatting.count(steps[0])} to"
            f" {formatting.count(steps[-1])}"
        )
        documents = f", {len(plan.documents)} documents" if plan.documents else ""
        touched = [
            "It changes ",
            strong(f"{formatting.count(plan.sequences)} sequences"),
            f" of {where}: {formatting.count(plan.tokens)} predicted tokens{documents}. ",
        ]
    return [
        f"{plan.does}. ",
        *touched,
        f"It trains {plan.arms} copies of the model (control, fork and null forks),"
        f" {formatting.count(plan.steps_to_compute)} steps in all, and reads the probes"
        f" {formatting.count(plan.probe_readings)} times: about ",
        strong(duration(plan.hours)),
        f", and {plan.memory_bytes / 2**20:,.0f} MiB of memory.",
    ]


def duration(hours: float) -> str:
    """Write a time in the unit that a person would use."""
    seconds = hours * 3600
    if not math.isfinite(seconds):
        return "an unknown time"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{hours:.1f} h"
