"""Which spike, data or state, who moved first? The sentence, the whole run, then panels around one
spike.
"""

from __future__ import annotations

import math
from typing import Any

import streamlit as st

from app import data, formatting, safe_html
from app.navigation import chosen_run
from app.safe_html import code, strong
from app.selection import Selection, shows
from app.views.spikes.lists import draw_batch, draw_first_alarms
from app.views.spikes.overview import draw_overview
from app.views.spikes.panels import draw_panels, window_of
from app.views.spikes.summary import draw_next_steps, draw_verdict
from forensics.detect.spikes import MINIMUM as FEWEST


def page() -> None:
    """Draw the page: the whole run, and the panels around one spike."""
    selection = chosen_run()
    if selection is None:
        return
    run = str(selection.run)
    if data.reached(run) is None:
        safe_html.nothing(
            [strong(run), " has recorded no step yet."],
            f"forensics show {run}",
            "This page fills while it trains.",
        )
        return
    spikes = data.rows("spikes", run=run)
    if not spikes:
        _without_spikes(run)
        return
    spike = _chosen(spikes, selection)
    shows(spike=spike["step"])
    if selection.spike not in (None, spike["step"]):
        safe_html.nothing(
            [
                f"Step {formatting.count(selection.spike)} is not a spike of ",
                code(run),
                f". Shown is its largest spike, at step {formatting.count(spike['step'])}.",
            ]
        )
    alarms = data.rows("first_alarms", run=run, step=spike["step"], window=window_of(spike["step"]))
    left, right = st.columns([4, 1], vertical_alignment="top")
    with left:
        draw_verdict(run, spike, alarms)
    with right:
        draw_next_steps(run, spike, alarms)
    draw_overview(run, spikes, spike)
    panels, lists = st.columns([1.55, 1])
    with panels:
        draw_panels(run, spike["step"], alarms)
    with lists:
        draw_first_alarms(alarms)
        draw_batch(run, spike["step"])


def _chosen(found: list[dict[str, Any]], selection: Selection) -> dict[str, Any]:
    """Return the spike of the URL; else that of the loss with the largest σ, else of any metric."""
    order = sorted(found, key=lambda row: (row["metric"] != "loss", -(row["sigma"] or math.inf)))
    return next((row for row in order if row["step"] == selection.spike), order[0])


def _without_spikes(run: str) -> None:
    (summary,) = data.rows("run_summary", run=run)
    steps = summary["recorded"]
    if steps <= FEWEST:
        safe_html.verdict(
            [code(run), f" is too short to tell: it has {formatting.steps(steps)}"],
            f"Whether a step is a spike is judged by the steps before it, from {FEWEST} of them on."
            " Every value was finite.",
        )
        draw_overview(run, [], None)
        return
    safe_html.verdict(
        ["No spike was found in ", code(run)],
        f"From the {FEWEST}th recorded step on, loss and gradient norm stayed below 6 robust"
        " standard deviations (σ) above what the up to 128 steps before let one expect, and every"
        " value was finite.",
        hedge=["What each detector says of each step: ", code(f"forensics spikes {run}"), "."],
    )
    draw_overview(run, [], None)
