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


def page() -> None:
    selection = chosen_run()
    if selection is None:
        return
    run = str(selection.run)
    if data.reached(run) is None:
        safe_html.nothing(
            [strong(run), " has recorded no step yet."],
            f"forensics show {run}",
            "This page fills as it trains.",
        )
        return
    found = data.rows("spikes", run=run)
    if not found:
        _without_spikes(run)
        return
    spike = _chosen(found, selection)
    shows(spike=spike["step"])
    if selection.spike not in (None, spike["step"]):
        safe_html.nothing(
            [
                f"Step {formatting.count(selection.spike)} is no spike of ",
                code(run),
                f": shown is the largest, at step {formatting.count(spike['step'])}.",
            ]
        )
    alarms = data.rows("first_alarms", run=run, step=spike["step"], window=window_of(spike["step"]))
    left, right = st.columns([4, 1], vertical_alignment="top")
    with left:
        draw_verdict(run, spike, alarms)
    with right:
        draw_next_steps(run, spike, alarms)
    draw_overview(run, found, spike)
    panels, lists = st.columns([1.55, 1])
    with panels:
        draw_panels(run, spike["step"], alarms)
    with lists:
        draw_first_alarms(alarms)
        draw_batch(run, spike["step"])


def _chosen(found: list[dict[str, Any]], selection: Selection) -> dict[str, Any]:
    """The spike of the URL; else that of the loss with the largest σ, else of any metric. Of one
    step, the loss first.
    """
    order = sorted(found, key=lambda s: (s["metric"] != "loss", -(s["sigma"] or math.inf)))
    return next((s for s in order if s["step"] == selection.spike), order[0])


def _without_spikes(run: str) -> None:
    safe_html.verdict(
        ["No spike was found in ", code(run), "."],
        "Neither loss nor gradient norm left its band of 6 robust σ (median of the last 128 steps),"
        " and no value was not finite.",
        hedge=["What the detectors say of every step: ", code(f"forensics spikes {run}")],
    )
    draw_overview(run, [], None)
