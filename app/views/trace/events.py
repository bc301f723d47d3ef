"""What a trace says of the events of a step: ratios, values that are not finite, phases."""

from __future__ import annotations

import math
from typing import Any

from app import formatting
from app.views.trace import charts

PHASES = {
    "forward": "forward",
    "loss": "loss",
    "backward": "backward",
    "clip": "clip",
    "update": "update",
    "next": "next",
}
LOUD = charts.RATIOS[0]  # a ratio, or its inverse, from which a value counts as moved
BROKEN = charts.BROKEN  # the level of a value that is not finite
OF_UPDATE = (
    "rms_t",
    "update_ratio",
    "staleness",
    "gss_share",
)  # null too where no update was applied, or none before


def times_of(ratio: float) -> str:
    """Write a ratio to the step before: `2.40×`."""
    return (
        formatting.ratio(ratio)
        if ratio >= 9.95
        else f"{ratio:.2f}×"
        if ratio >= 0.1
        else f"{ratio:.2g}×"
    )


def size_of(ratio: float | None) -> float:
    """How far a ratio is from 1, either way: 4 and ¼ are both 4."""
    if ratio is None or not math.isfinite(ratio) or ratio <= 0:
        return 1.0
    return max(ratio, 1 / ratio)


def level_of(ratio: float | None) -> int:
    """−5 … 5: how many of RATIOS it reaches, negative where the value fell."""
    passed = sum(size_of(ratio) >= threshold for threshold in charts.RATIOS)
    return -passed if ratio is not None and ratio < 1 else passed


def finite(value: float | None) -> bool:
    """Return whether there is a value, and it is neither NaN nor infinite."""
    return value is not None and math.isfinite(value)


def broken_of(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """Values that the step before had and this one has as NaN or inf, in the order of the step; as
    `dots_of`.

    What only an update has is null too in a step that was not applied: it counts where another
    tensor has it.
    """
    applied = {
        quantity
        for event in trace["events"]
        if event["phase"] == "update"
        for quantity, value in event["values"].items()
        if finite(value)
    }
    return [
        {
            "place": i,
            "event": event["name"],
            "what": quantity,
            "value": None,
            "before": event["baseline"][quantity],
            "true": None,
            "level": BROKEN,
            "ms": _ms(event),
        }
        for i, event in enumerate(trace["events"])
        for quantity, value in event["values"].items()
        if not finite(value)
        and finite(event["baseline"].get(quantity))
        and (quantity not in OF_UPDATE or quantity in applied)
    ]


def _ms(event: dict[str, Any]) -> float | None:
    """When the event began; None where no clock measured it by itself."""
    return None if event["start"] is None else 1000 * event["start"]


def broken_before(trace: dict[str, Any]) -> bool:
    """Whether the loss is not finite in both steps."""
    return any(
        not finite(event["values"].get("loss")) and not finite(event["baseline"].get("loss"))
        for event in trace["events"]
        if event["phase"] == "loss"
    )


def dots_of(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """Every value with a ratio, in the order of the step: event, what, value, before, true (the
    ratio), place, ms.
    """
    return [
        {
            "place": i,
            "event": event["name"],
            "what": quantity,
            "value": event["values"].get(quantity),
            "before": event["baseline"].get(quantity),
            "true": float(ratio),
            "level": level_of(ratio),
            "ms": _ms(event),
        }
        for i, event in enumerate(trace["events"])
        for quantity, ratio in event["ratio"].items()
        if ratio is not None and ratio > 0
    ]


def phases_of(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """Stretches of events of one phase: first, last (half-open, on the places' axis), with the time
    that was measured of them.
    """
    phases: list[dict[str, Any]] = []
    for i, event in enumerate(trace["events"]):
        if not phases or phases[-1]["name"] != event["phase"]:
            phases.append(
                {"name": event["phase"], "first": i - 0.5, "last": i + 0.5, "seconds": 0.0}
            )
        phases[-1]["last"] = i + 0.5
        phases[-1]["seconds"] += event["seconds"] or 0.0
    for index, phase in enumerate(phases):
        wide = phase["last"] - phase["first"] >= 6
        phase["middle"], phase["odd"] = (phase["first"] + phase["last"]) / 2, index % 2 == 0
        took = f" · {1000 * phase['seconds']:.0f} ms" if wide and phase["seconds"] else ""
        phase["phase"] = PHASES.get(phase["name"], phase["name"]) + took
        if phase["last"] - phase["first"] < 2 and len(trace["events"]) > 70:
            phase["phase"] = ""  # too narrow for a word
    return phases


def short_name(event: str) -> str:
    """`L2.attn forward` of `layers.2.attn forward`; a weight's update goes without the word
    weight.
    """
    return (event.replace("layers.", "L", 1) if event.startswith("layers.") else event).replace(
        ".weight update", " update"
    )


def largest_of(trace: dict[str, Any], most: int) -> list[dict[str, Any]]:
    """Return what is no longer finite, in the order of the step; then by how far a value moved."""
    broken = broken_of(trace)
    rows = [*broken, *sorted(dots_of(trace), key=lambda dot: -size_of(dot["true"]))][:most]
    return [
        {
            "event": short_name(dot["event"]),
            "what": dot["what"],
            "value": dot["value"],
            "before": dot["before"],
            "ratio": dot["true"],
        }
        | ({"": "not finite" if dot["true"] is None else ""} if broken else {})
        for dot in rows
    ]
