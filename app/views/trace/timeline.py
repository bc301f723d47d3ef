"""The events of a step in their order, and one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import streamlit as st

from app import data, formatting, reading, safe_html, theme, tokens
from app.navigation import link
from app.selection import goto, picked
from app.views.trace import charts
from app.views.trace.events import (
    LOUD,
    broken_of,
    dots_of,
    phases_of,
    short_name,
    size_of,
    times_of,
)


def draw_timeline(trace: dict[str, Any], position: int | None) -> None:
    import pyarrow as pa

    dots, broken = dots_of(trace), broken_of(trace)
    top = (
        min(max([2.0, *(size_of(d["true"]) for d in dots)]), 1e6) ** 1.25
    )  # room for the phases' names
    shown = (sorted(dots, key=lambda d: size_of(d["true"])) + broken)[-theme.STEPS_MOST :]
    for d in shown:
        d["ratio"] = top**0.87 if d["true"] is None else min(max(d["true"], 1 / top), top)
        d |= {
            "here": _number(d["value"]),
            "was": _number(d["before"]),
            "times": "" if d["true"] is None else times_of(d["true"]),
        }
    if not shown:
        safe_html.nothing("No value of this step has one to be compared with in the step before.")
        return
    n = len(trace["events"])
    loud = sorted(
        (d for d in shown if size_of(d["true"]) >= LOUD), key=lambda d: -size_of(d["true"])
    )
    loud = _apart([*broken[:1], *loud], n, top)
    labels = [
        {
            "place": d["place"],
            "ratio": d["ratio"] if d["times"] else top**0.72,  # under the row of crosses
            "label": f"{short_name(d['event'])} {d['what']} {d['times'] or 'not finite'}",
        }
        for d in loud
    ]
    steps = ", ".join(f"{r:g}" for r in charts.RATIOS)
    crosses = " · ✚ on top: no longer finite" if broken else ""
    safe_html.caption(
        "The events of the step in their order · a dot per value, up: its ratio to step"
        f" {formatting.count(trace['baseline'])} (log; of an entropy the other way round) · coloured"
        f" from {steps}×{crosses} · click one"
    )
    schema = pa.schema([("place", pa.int64()), ("ratio", pa.float64()), ("label", pa.string())])
    chosen = [position] if position is not None and position < n else []
    theme.draw(
        theme.filled(
            charts.timeline(safe_html.dark()), places=[-0.5, n - 0.5], ratios=[1 / top, top]
        ),
        {
            "dots": pa.Table.from_pylist(shown),
            "phases": pa.Table.from_pylist(phases_of(trace)),
            "same": pa.table({"ratio": [1.0]}),
            "said": pa.Table.from_pylist(
                [x for x in labels if x["place"] < 0.7 * n], schema=schema
            ),
            "said_left": pa.Table.from_pylist(
                [x for x in labels if x["place"] >= 0.7 * n], schema=schema
            ),
            "chosen": pa.table({"place": pa.array(chosen, pa.int64())}),
        },
        key="timeline",
        on_select=_clicked_event,
    )


def _apart(
    loud: Sequence[dict[str, Any]], n: int, top: float, most: int = 6
) -> list[dict[str, Any]]:
    """The loudest whose labels do not lie over one another."""
    found: list[dict[str, Any]] = []
    for d in loud:
        up = math.log(d["ratio"]) / math.log(top)
        if all(
            abs(up - math.log(f["ratio"]) / math.log(top)) > 0.11
            or abs(d["place"] - f["place"]) > 0.3 * n
            for f in found
        ):
            found.append(d)
    return [
        d
        for d in found
        if d["true"] is None or size_of(d["true"]) >= size_of(found[0]["true"]) ** 0.6
    ][:most]


def _number(value: float | None) -> str:
    return f"{value:.4g}" if value is not None and math.isfinite(value) else "not finite"


def event_of(event: Any) -> dict[str, int] | None:
    """What a click on a dot changes in the URL: the event's place in the step."""
    mark = picked(event, "event", "place")
    return {"position": int(mark["place"])} if mark else None


def _clicked_event() -> None:
    change = event_of(st.session_state["timeline"])
    if change:
        goto(**change)


def draw_event(trace: dict[str, Any], at: int, run: str) -> None:
    """The values of the chosen event; of the loss, the tokens that cost most."""
    e = trace["events"][at]
    safe_html.heading(
        short_name(e["name"]), f" · at {1000 * e['start']:.1f} ms, {1000 * e['seconds']:.2f} ms"
    )
    broken = {d["what"] for d in broken_of(trace) if d["place"] == at}
    safe_html.frame(
        [
            {
                "what": name,
                "here": value,
                "the step before": e["baseline"].get(name),
                "ratio": e["ratio"].get(name),
            }
            | ({"": "not finite" if name in broken else ""} if broken else {})
            for name, value in e["values"].items()
        ],
        column_config=NUMBERS,
        placeholder="",
    )
    if e["detail"]:
        safe_html.caption("Its costliest tokens")
        name = reading.token_name(data.runs_folder() / "_data" / data.header(run)["corpus"])
        safe_html.frame(
            [
                {
                    **{k: d[k] for k in ("slot", "position", "loss")},
                    "token": tokens.shown(name(d["token"])),
                }
                for d in e["detail"]
            ],
            column_config={"loss": st.column_config.NumberColumn(format="%.3f")},
        )
        worst = e["detail"][0]
        link(
            "batch",
            f"Read slot {worst['slot']:,} at position {worst['position'] + 1:,}",
            run=run,
            step=trace["step"],
            slot=worst["slot"],
            position=worst["position"] + 1,
        )
    elif e["layer"] is not None and ".attn forward" in e["name"]:
        link(
            "attention",
            f"Heads of layer {e['layer']:,}",
            run=run,
            step=trace["step"],
            layer=e["layer"],
        )


NUMBERS = {
    name: st.column_config.NumberColumn(format="%.4g")
    for name in ("here", "the step before", "value", "before", "ratio")
}
