"""Which step a page looks at: that of the URL, else of its spike, else of the run's largest spike,
else the last.

selection = chosen_step(selection)          # with its step filled in, under a row of steps
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import streamlit as st

from app import data, formatting, safe_html
from app.selection import Selection, goto, shows

MOST = 5  # spikes offered


def chosen_step(selection: Selection) -> Selection | None:
    """Return the selection with a recorded step, under a row to go from step to step.

    None, with what is missing drawn, where the run recorded none.
    """
    run = str(selection.run)
    reached = data.reached(run)
    first = data.header(run).get("first_step") or 0
    end = max(reached or 0, first)
    if end == 0:
        safe_html.nothing(
            [safe_html.strong(run), " has recorded no step yet."],
            f"forensics show {run}",
            "This page fills while it trains.",
        )
        return None
    spikes = data.rows("spikes", run=run)
    step = step_of(selection, spikes, end)
    if selection.step is not None and selection.step != step:
        safe_html.nothing(
            [
                f"Step {formatting.count(selection.step)} was not trained. ",
                safe_html.code(run),
                f" has steps 0 to {end - 1:,}.",
            ]
        )
    shows(step=step)
    _row(step, end, spikes)
    return (
        replace(selection, step=step) if selection.step is None else selection.replacing(step=step)
    )


def step_of(selection: Selection, spikes: Sequence[dict[str, Any]], end: int) -> int:
    """Return the step to look at, below `end`."""
    if selection.step is not None:
        return min(selection.step, end - 1)
    if selection.spike is not None:
        return min(selection.spike, end - 1)
    order = sorted(
        spikes,
        key=lambda s: (
            s["metric"] != "loss",
            -(s["sigma"] if s["sigma"] is not None else math.inf),
        ),
    )
    return int(order[0]["step"]) if order else end - 1


def _row(step: int, end: int, spikes: Sequence[dict[str, Any]]) -> None:
    """Back, a number, on; and the spikes."""
    st.session_state["step-chosen"] = step
    with st.container(horizontal=True, gap="small", vertical_alignment="center", key="step-row"):
        st.button(
            f"‹ {max(step - 1, 0):,}",
            key="step-back",
            disabled=step == 0,
            on_click=goto,
            kwargs={"step": step - 1},
        )
        st.number_input(
            "Step",
            0,
            end - 1,
            key="step-chosen",
            width=130,
            label_visibility="collapsed",
            on_change=lambda: goto(step=int(st.session_state["step-chosen"])),
        )
        st.button(
            f"{min(step + 1, end - 1):,} ›",
            key="step-on",
            disabled=step >= end - 1,
            on_click=goto,
            kwargs={"step": step + 1},
        )
        strongest = sorted(
            {row["step"]: row["sigma"] or math.inf for row in spikes}.items(),
            key=lambda row: -row[1],
        )
        for spike, _ in sorted(strongest[:MOST]):
            if spike != step:
                st.button(
                    f"Spike {spike:,}",
                    key=f"step-spike-{spike}",
                    type="tertiary",
                    on_click=goto,
                    kwargs={"spike": spike, "step": spike},
                )
