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
    """`Step 1,342 beside 1,341: loss 5.380 nats/token, 2.4× the step before`."""
    loss = next(e for e in trace["events"] if e["phase"] == "loss")
    value, ratio = loss["values"]["loss"], loss["ratio"].get("loss")
    times = f", {times_of(ratio)} the step before" if ratio is not None else ""
    said = (
        f"loss {formatting.loss(value)} nats/token{times}"
        if finite(value)
        else "the loss is not finite"
    )
    return f"Step {formatting.count(trace['step'])} beside {formatting.count(trace['baseline'])}: {said}"


def sentence_of(trace: dict[str, Any]) -> list[Part]:
    """The first event of the step to leave the step before, the one that moved most, and what the
    update did.
    """
    dots, broken = dots_of(trace), broken_of(trace)
    moved = [
        d
        for d in dots
        if size_of(d["true"]) >= LOUD and (not broken or d["place"] < broken[0]["place"])
    ]
    said: list[Part] = []
    if moved:
        first = max(
            (d for d in moved if d["place"] == moved[0]["place"]), key=lambda d: size_of(d["true"])
        )
        most = max(moved, key=lambda d: size_of(d["true"]))
        said += [
            "First inside the step to move: ",
            accent(_name(first)),
            f", {times_of(first['true'])} the step before. ",
        ]
        if most is not first and not broken:
            said += ["Moved most: ", strong(_name(most)), f", {times_of(most['true'])}. "]
    if broken:
        said += [*_broken_in_words(broken, bool(moved)), ". "]
    elif not moved and broken_before(trace):
        said += ["The step before was not finite already: trace an earlier one. "]
    elif not moved:
        said += [f"Nothing inside the step moved by {LOUD}× against the step before. "]
    blame = trace["layer_blame"]
    rise, memory, new = (blame[f"{k}_batch"] for k in ("rise", "memory", "data"))
    if rise is not None:
        said += [
            f"Update {formatting.count(trace['baseline'])} moved the loss of this batch by ",
            strong(formatting.gap(rise)),
            f": what the moments carried {formatting.gap(memory)}, what its data added {formatting.gap(new)}",
        ]
        top = blame["tensors"][0] if blame["tensors"] else None
        if top is not None and top["alone_batch"] is not None:
            said += [
                "; the largest alone is ",
                strong(top["tensor"]),
                f" with {formatting.gap(top['alone_batch'])}",
            ]
        said += ["."]
    return said


def _broken_in_words(broken: Sequence[dict[str, Any]], moved: bool) -> list[Part]:
    """The first event with a value that became NaN or infinite, those values, and how many more
    there are.
    """
    first = [d for d in broken if d["place"] == broken[0]["place"]]
    more = len(broken) - len(first)
    return [
        (
            "First no longer finite: "
            if moved
            else "First inside the step to move, and no longer finite: "
        ),
        accent(first[0]["event"]),
        (
            f", its {formatting.listed([d['what'] for d in first])}"
            f" ({formatting.listed([formatting.number(d['before']) for d in first])} in the step before)"
        ),
        f", and {formatting.count(more)} {'value' if more == 1 else 'values'} after it"
        if more
        else "",
    ]


def _name(dot: dict[str, Any]) -> str:
    return dot["event"] if dot["event"] == dot["what"] else f"{dot['event']} {dot['what']}"


def hedge_of(run: str, step: int, selection: Selection) -> list[Part]:
    return [
        "Order inside one step, replayed; what made it so is for ",
        code(f"replay blame {run} --spike {selection.spike or step}"),
        ".",
    ]
