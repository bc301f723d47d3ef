"""Which runs are healthy, what forked where? The tree on the axis of steps; below it the chosen
run.
"""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import data, jobs, safe_html
from app.navigation import chosen_run
from app.views.runs.health import is_alive
from app.views.runs.run import draw_certificates, draw_configuration, draw_events, draw_header
from app.views.runs.tree import draw_overview
from forensics.records import TABLES
from forensics.store.reader import runs_in

BUSY_S, IDLE_S = 2.0, 10.0  # seconds between looks at whether anything was written


def page() -> None:
    """Draw the page: all runs as a tree, and the chosen one."""
    selection = chosen_run()
    if selection is None:
        return
    run = str(selection.run)
    drawn_state = state_of(run)
    draw_overview(run)
    left, right = st.columns([1, 1.15], gap="medium")
    with left:
        draw_header(run)
        draw_configuration(run)
    with right:
        draw_events(run)
        draw_certificates(run)
        if jobs.listed(run):
            safe_html.heading("Work on this run")
            jobs.panel(run)
    busy = any(is_alive(header) for header in data.headers())
    st.fragment(_look_again, run_every=BUSY_S if busy else IDLE_S)(run, drawn_state)


def state_of(run: str) -> tuple[Any, ...]:
    """Return what changes when anything that the page shows was written, or a run falls silent."""
    names = runs_in(data.runs_folder())
    alive = [header["name"] for header in data.headers() if is_alive(header)]
    return data.stamp(names, {"steps", "events", "forks"}), data.stamp([run], TABLES), alive


def _look_again(run: str, seen: tuple[Any, ...]) -> None:
    """Draws nothing: the page is drawn again when there is something new to see."""
    if state_of(run) != seen:
        st.rerun()
