"""The loss of the whole run with its spikes."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import data, safe_html, theme
from app.selection import goto, picked
from app.views.spikes import charts
from app.views.spikes.panels import AFTER, BEFORE
from forensics.rollup_schema import BUCKET

BINS = 700  # of the whole run: about one per two pixels
SHORT = 20_000  # steps up to which the whole run is drawn from every step, not from the roll-ups


def draw_overview(run: str, found: list[dict[str, Any]], spike: dict[str, Any] | None) -> None:
    """Draw the loss of the whole run with its spikes; a click chooses one."""
    import pyarrow as pa

    steps = data.reached(run) or 0
    if steps <= SHORT:
        band = data.table("loss_band", run=run, every=max(1, steps // BINS))
    else:
        band = data.table(
            "loss_band_by100", run=run, every=max(1, steps // BINS // BUCKET) * BUCKET
        )
    marks = [
        {
            "step": spike_row["step"],
            "value": spike_row["value"],
            "metric": spike_row["metric"],
            "sigma": spike_row["sigma"],
            "kind": _kind_of(spike_row),
        }
        for spike_row in found
    ]
    schema = pa.schema(
        [
            ("step", pa.int64()),
            ("value", pa.float64()),
            ("metric", pa.string()),
            ("sigma", pa.float64()),
            ("kind", pa.string()),
        ]
    )
    at = [] if spike is None else [spike["step"]]
    kinds = [kind for kind in theme.KINDS if any(mark["kind"] == kind for mark in marks)]
    safe_html.caption(
        "Loss over the whole run (nats/token)"
        + (f" · spikes: {', '.join(_sign(kind) for kind in kinds)} · click one" if kinds else "")
    )
    shown = {
        "band": band,
        "spikes": pa.Table.from_pylist(marks, schema=schema),
        "chosen": pa.table({"step": at}),
        "window": pa.table(
            {
                "first": [max(0, spike_row - BEFORE) for spike_row in at],
                "last": [min(steps, spike_row + AFTER) for spike_row in at],
            }
        ),
    }
    theme.draw(charts.overview(safe_html.dark()), shown, key="overview", on_select=_clicked_spike)


def _kind_of(spike_row: dict[str, Any]) -> str:
    """Return the kind of a mark; of a log whose rows lie steps apart no spike has one."""
    if spike_row["kind"] == "nonfinite":
        return "nonfinite"
    return str(spike_row["spike_kind"] or "sampled")


def _sign(kind: str) -> str:
    return {
        "batch": "■ of one batch",
        "fast": "▼ fast",
        "slow": "◆ slow",
        "nonfinite": "✚ not finite",
        "sampled": "● of a kind that its rows cannot tell",
    }[kind]


def spike_of(event: Any) -> dict[str, int] | None:
    """Return what a click into the overview changes in the URL."""
    mark = picked(event, "spike", "step")
    return {"spike": int(mark["step"])} if mark else None


def _clicked_spike() -> None:
    change = spike_of(st.session_state["overview"])
    if change:
        goto(**change)
