"""The sentences about one traced step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app import formatting
from app.safe_html import Part, accent, code, strong
from app.selection import Selection
from app.views.trace.events import (
    LOUD,
    broken_before,
    broken_of,
    dots_of,
    finite,
    size_of,
    times_of,
)
from replay.step.result import StepTrace
from replay.step.trace_conclusion import sentence as conclusion_of


def title_of(trace: dict[str, Any]) -> str:
    """Say the conclusion: what of the rise the update carries, or that it is not the update's."""
    return conclusion_of(StepTrace.from_document(trace, "the trace"))


def way_of(trace: dict[str, Any]) -> str:
    """Say how the step was run again: as the run ran it."""
    ran = ["compiled" if trace["compiled"] else "eagerly"]
    ran += ["recomputing activations"] if trace["recomputed"] else []
    return (
        f"The step ran {' and '.join(ran)}, as in the run: once counted, once timed by the"
        f" {trace['clock']}'s clock with nothing counted. "
    )


def sentence_of(trace: dict[str, Any]) -> list[Part]:
    """Say which value changed first and which most, what the update did, and how it was run."""
    dots, broken = dots_of(trace), broken_of(trace)
    moved = [
        dot
        for dot in dots
        if size_of(dot["true"]) >= LOUD and (not broken or dot["place"] < broken[0]["place"])
    ]
    sentence: list[Part] = []
    if moved:
        first = max(
            (dot for dot in moved if dot["place"] == moved[0]["place"]),
            key=lambda dot: size_of(dot["true"]),
        )
        most = max(moved, key=lambda dot: size_of(dot["true"]))
        sentence += [
            f"The first value inside the step to change by {LOUD}× or more: ",
            accent(_name(first)),
            f", {times_of(first['true'])} its value in the step before. ",
        ]
        if most is not first and not broken:
            sentence += ["Changed most: ", strong(_name(most)), f", {times_of(most['true'])}. "]
    if broken:
        sentence += [*_broken_in_words(broken, bool(moved)), ". "]
    elif not moved and broken_before(trace):
        sentence += ["The step before was not finite either: trace an earlier one. "]
    elif not moved:
        sentence += [
            f"No value inside the step is {LOUD}× its value in the step before, or less than"
            " the inverse. "
        ]
    blame = trace["layer_blame"]
    rise, memory, new = (blame[f"{name}_batch"] for name in ("rise", "memory", "data"))
    if finite(rise):
        sentence += [
            f"On this batch the update of step {formatting.count(trace['baseline'])} is ",
            strong(formatting.gap(rise)),
            f" nats/token, the part that Adam's moments carried over alone"
            f" {formatting.gap(memory)}, that of its own gradient alone {formatting.gap(new)}",
        ]
        top = blame["tensors"][0] if blame["tensors"] else None
        if top is not None and finite(top["alone_batch"]):
            sentence += [
                ". The tensor whose update alone changes it most is ",
                strong(top["tensor"]),
                f" ({formatting.gap(top['alone_batch'])})",
            ]
        sentence += [". "]
    return [*sentence, way_of(trace)]


def _broken_in_words(broken: Sequence[dict[str, Any]], moved: bool) -> list[Part]:
    """Say the first event with a value that became NaN or infinite, and how many more there are."""
    first = [dot for dot in broken if dot["place"] == broken[0]["place"]]
    more = len(broken) - len(first)
    return [
        (
            "The first value that is no longer finite: "
            if moved
            else "The first value inside the step to change is no longer finite: "
        ),
        accent(first[0]["event"]),
        (
            f", its {formatting.listed([dot['what'] for dot in first])}"
            f" ({formatting.listed([formatting.number(dot['before']) for dot in first])} in the"
            " step before)"
        ),
        f", and {formatting.count(more)} {'value' if more == 1 else 'values'} after it"
        if more
        else "",
    ]


def _name(dot: dict[str, Any]) -> str:
    return dot["event"] if dot["event"] == dot["what"] else f"{dot['event']} {dot['what']}"


def hedge_of(run: str, step: int, selection: Selection) -> list[Part]:
    """Say what looks for the cause."""
    return [
        "This is the order of events inside one step, not their cause. To look for the cause, run ",
        code(f"replay blame {run} --spike {selection.spike or step}"),
        ".",
    ]
