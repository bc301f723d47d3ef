"""What a trace says of the events of a step: ratios to the step before, values that are not finite, phases."""

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
    passed = sum(size_of(ratio) >= r for r in charts.RATIOS)
    return -passed if ratio is not None and ratio < 1 else passed


def finite(value: float | None) -> bool:
    """A trace that was kept has null in the place of NaN and inf."""
    return value is not None and math.isfinite(value)


def broken_of(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """Values that the step before had and this one has as NaN or inf, in the order of the step; as
    `dots_of`.

    What only an update has is null too in a step that was not applied: it counts where another
    tensor has it.
    """
    there = {
        what
        for e in trace["events"]
        if e["phase"] == "update"
        for what, v in e["values"].items()
        if finite(v)
    }
    return [
        {
            "place": i,
            "event": e["name"],
            "what": what,
            "value": None,
            "before": e["baseline"][what],
            "true": None,
            "level": BROKEN,
            "ms": 1000 * e["start"],
        }
        for i, e in enumerate(trace["events"])
        for what, value in e["values"].items()
        if not finite(value)
        and finite(e["baseline"].get(what))
        and (what not in OF_UPDATE or what in there)
    ]


def broken_before(trace: dict[str, Any]) -> bool:
    """Whether the loss is not finite in both steps."""
    return any(
        not finite(e["values"].get("loss")) and not finite(e["baseline"].get("loss"))
        for e in trace["events"]
        if e["phase"] == "loss"
    )


def dots_of(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """Every value with a ratio, in the order of the step: event, what, value, before, true (the
    ratio), place, ms.
    """
    return [
        {
            "place": i,
            "event": e["name"],
            "what": what,
            "value": e["values"].get(what),
            "before": e["baseline"].get(what),
            "true": float(ratio),
            "level": level_of(ratio),
            "ms": 1000 * e["start"],
        }
        for i, e in enumerate(trace["events"])
        for what, ratio in e["ratio"].items()
        if ratio is not None and ratio > 0
    ]


def phases_of(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """Stretches of events of one phase: first, last (half-open, on the places' axis), with the time
    they took.
    """
    found: list[dict[str, Any]] = []
    for i, e in enumerate(trace["events"]):
        if not found or found[-1]["name"] != e["phase"]:
            found.append({"name": e["phase"], "first": i - 0.5, "last": i + 0.5, "seconds": 0.0})
        found[-1]["last"] = i + 0.5
        found[-1]["seconds"] += e["seconds"]
    for k, phase in enumerate(found):
        wide = phase["last"] - phase["first"] >= 6
        phase["middle"], phase["odd"] = (phase["first"] + phase["last"]) / 2, k % 2 == 0
        took = f" · {1000 * phase['seconds']:.0f} ms" if wide else ""
        phase["phase"] = PHASES.get(phase["name"], phase["name"]) + took
        if phase["last"] - phase["first"] < 2 and len(trace["events"]) > 70:
            phase["phase"] = ""  # too narrow for a word
    return found


def short_name(event: str) -> str:
    """`L2.attn forward` of `layers.2.attn forward`; a weight's update goes without the word
    weight.
    """
    return (event.replace("layers.", "L", 1) if event.startswith("layers.") else event).replace(
        ".weight update", " update"
    )


def largest_of(trace: dict[str, Any], most: int) -> list[dict[str, Any]]:
    """What is no longer finite, in the order of the step; then by how far a value moved."""
    broken = broken_of(trace)
    rows = [*broken, *sorted(dots_of(trace), key=lambda d: -size_of(d["true"]))][:most]
    return [
        {
            "event": short_name(d["event"]),
            "what": d["what"],
            "value": d["value"],
            "before": d["before"],
            "ratio": d["true"],
        }
        | ({"": "not finite" if d["true"] is None else ""} if broken else {})
        for d in rows
    ]
