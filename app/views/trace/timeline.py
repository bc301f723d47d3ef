"""The events of a step in their order, and one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    import pyarrow


def draw_timeline(trace: dict[str, Any], position: int | None) -> None:
    """Draw the events of the step in their order, a dot for each value."""
    import pyarrow as pa

    dots, broken = dots_of(trace), broken_of(trace)
    top = (
        min(max([2.0, *(size_of(dot["true"]) for dot in dots)]), 1e6) ** 1.25
    )  # room for the phases' names
    shown = (sorted(dots, key=lambda dot: size_of(dot["true"])) + broken)[-theme.STEPS_MOST :]
    for dot in shown:
        dot["ratio"] = top**0.87 if dot["true"] is None else min(max(dot["true"], 1 / top), top)
        dot |= {
            "here": _number(dot["value"]),
            "was": _number(dot["before"]),
            "times": "" if dot["true"] is None else times_of(dot["true"]),
        }
    if not shown:
        safe_html.nothing("No value of this step can be compared with the step before.")
        return
    count = len(trace["events"])
    loud = sorted(
        (dot for dot in shown if size_of(dot["true"]) >= LOUD),
        key=lambda dot: -size_of(dot["true"]),
    )
    loud = _apart([*broken[:1], *loud], count, top)
    labels = [_label(dot, top) for dot in loud]
    steps = ", ".join(f"{threshold:g}" for threshold in charts.RATIOS)
    crosses = " · ✚ at the top: no longer finite" if broken else ""
    safe_html.caption(
        "What happens in the step, from left to right · each dot is a value · up: divided by its"
        f" value in step {formatting.count(trace['baseline'])} (log; for an entropy the inverse) ·"
        f" coloured from {steps}×{crosses} · click one"
    )
    schema = pa.schema([("place", pa.int64()), ("ratio", pa.float64()), ("label", pa.string())])
    chosen = [position] if position is not None and position < count else []
    theme.draw(
        theme.filled(
            charts.timeline(safe_html.dark()), places=[-0.5, count - 0.5], ratios=[1 / top, top]
        ),
        {
            "dots": _dots(shown),
            "phases": pa.Table.from_pylist(phases_of(trace)),
            "same": pa.table({"ratio": [1.0]}),
            "said": pa.Table.from_pylist(
                [label for label in labels if label["place"] < 0.7 * count], schema=schema
            ),
            "said_left": pa.Table.from_pylist(
                [label for label in labels if label["place"] >= 0.7 * count], schema=schema
            ),
            "chosen": pa.table({"place": pa.array(chosen, pa.int64())}),
        },
        key="timeline",
        on_select=_clicked_event,
    )


def _label(dot: dict[str, Any], top: float) -> dict[str, Any]:
    return {
        "place": dot["place"],
        "ratio": dot["ratio"] if dot["times"] else top**0.72,  # under the row of crosses
        "label": f"{short_name(dot['event'])} {dot['what']} {dot['times'] or 'not finite'}",
    }


def _dots(shown: list[dict[str, Any]]) -> pyarrow.Table:
    import pyarrow as pa

    table = pa.Table.from_pylist(shown)  # a step of which nothing was timed has a column of nulls
    at = table.column("ms").cast(pa.float64())
    return table.set_column(table.column_names.index("ms"), "ms", at)


def _apart(
    loud: Sequence[dict[str, Any]], count: int, top: float, most: int = 6
) -> list[dict[str, Any]]:
    """Return the loudest whose labels do not lie over one another."""
    apart: list[dict[str, Any]] = []
    for dot in loud:
        up = math.log(dot["ratio"]) / math.log(top)
        if all(
            abs(up - math.log(shown["ratio"]) / math.log(top)) > 0.11
            or abs(dot["place"] - shown["place"]) > 0.3 * count
            for shown in apart
        ):
            apart.append(dot)
    return [
        dot
        for dot in apart
        if dot["true"] is None or size_of(dot["true"]) >= size_of(apart[0]["true"]) ** 0.6
    ][:most]


def _number(value: float | None) -> str:
    return f"{value:.4g}" if value is not None and math.isfinite(value) else "not finite"


def event_of(event: Any) -> dict[str, int] | None:
    """Return what a click on a dot changes in the URL: the event's place in the step."""
    mark = picked(event, "event", "place")
    return {"position": int(mark["place"])} if mark else None


def _clicked_event() -> None:
    change = event_of(st.session_state["timeline"])
    if change:
        goto(**change)


def draw_event(trace: dict[str, Any], at: int, run: str) -> None:
    """Draw the values of the chosen event; of the loss, the tokens of highest loss."""
    event = trace["events"][at]
    safe_html.heading(short_name(event["name"]), f" · {time_of(event)}")
    broken = {dot["what"] for dot in broken_of(trace) if dot["place"] == at}
    safe_html.frame(
        [
            {
                "what": name,
                "this step": value,
                "the step before": event["baseline"].get(name),
                "ratio": event["ratio"].get(name),
            }
            | ({"": "not finite" if name in broken else ""} if broken else {})
            for name, value in event["values"].items()
        ],
        column_config=NUMBERS,
        placeholder="",
    )
    if event["detail"]:
        safe_html.caption("The tokens with the highest loss")
        name = reading.token_name(data.runs_folder() / "_data" / data.header(run)["corpus"])
        safe_html.frame(
            [
                {
                    **{key: dot[key] for key in ("slot", "position", "loss")},
                    "token": tokens.shown(name(dot["token"])),
                }
                for dot in event["detail"]
            ],
            column_config={"loss": st.column_config.NumberColumn(format="%.3f")},
        )
        worst = event["detail"][0]
        link(
            "batch",
            f"Read slot {worst['slot']:,} at position {worst['position'] + 1:,}",
            run=run,
            step=trace["step"],
            slot=worst["slot"],
            position=worst["position"] + 1,
        )
    elif event["layer"] is not None and ".attn forward" in event["name"]:
        link(
            "attention",
            f"Heads of layer {event['layer']:,}",
            run=run,
            step=trace["step"],
            layer=event["layer"],
        )


def time_of(event: dict[str, Any]) -> str:
    """Say when an event ran and for how long, or that this was not measured."""
    if event["start"] is None or event["seconds"] is None:
        return "no time of its own was measured"
    return f"at {1000 * event['start']:.1f} ms, {1000 * event['seconds']:.2f} ms"


NUMBERS = {
    name: st.column_config.NumberColumn(format="%.4g")
    for name in ("this step", "the step before", "value", "before", "ratio")
}
