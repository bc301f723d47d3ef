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


def title_of(trace: dict[str, Any]) -> str:
    """Say the loss of the step, and how many times that of the step before it is."""
    loss = next(event for event in trace["events"] if event["phase"] == "loss")
    value, ratio = loss["values"]["loss"], loss["ratio"].get("loss")
    times = f", {times_of(ratio)} that of the step before" if ratio is not None else ""
    sentence = (
        f"loss {formatting.loss(value)} nats/token{times}"
        if finite(value)
        else "the loss is not finite"
    )
    step, before = formatting.count(trace["step"]), formatting.count(trace["baseline"])
    return f"Step {step} compared with step {before}: {sentence}"


def sentence_of(trace: dict[str, Any]) -> list[Part]:
    """Say which value changed first and which most, and what the update did."""
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
    rise, memory, new = (blame[f"{part}_batch"] for part in ("rise", "memory", "data"))
    if rise is not None:
        sentence += [
            f"The update of step {formatting.count(trace['baseline'])} changed the loss of this"
            " batch by ",
            strong(formatting.gap(rise)),
            f" nats/token: {formatting.gap(memory)} by what Adam's moments carried over from"
            " earlier"
            f" steps, {formatting.gap(new)} by its own data",
        ]
        top = blame["tensors"][0] if blame["tensors"] else None
        if top is not None and top["alone_batch"] is not None:
            sentence += [
                ". The tensor whose update alone changes it most is ",
                strong(top["tensor"]),
                f" ({formatting.gap(top['alone_batch'])})",
            ]
        sentence += ["."]
    return sentence


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
