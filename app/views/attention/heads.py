"""All heads small, and one of them over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import streamlit as st

from app import data, formatting, safe_html, theme
from app.safe_html import Part, accent, strong
from app.selection import Selection, goto, picked
from app.views.attention import charts

BEFORE = 64  # steps shown around the step
AFTER = 32
POINTS = 20_000  # of all small curves together


def name_of(head: dict[str, Any]) -> str:
    """Name a head: `L5.H3`."""
    return f"L{head['layer']}.H{head['head']}"


def chosen_head(
    heads: Sequence[dict[str, Any]], alarms: Sequence[dict[str, Any]], selection: Selection
) -> dict[str, Any]:
    """Return the head of the URL; else the first to move; else the farthest from its past.

    Where no past is known, that of the largest logit.
    """

    def find(layer: int | None, head: int | None) -> dict[str, Any] | None:
        return next(
            (
                candidate
                for candidate in heads
                if candidate["layer"] == layer and candidate["head"] == head
            ),
            None,
        )

    candidates = [
        candidate for candidate in heads if candidate["layer"] == selection.layer
    ] or list(heads)
    if selection.head is not None and (found := find(selection.layer, selection.head)):
        return found
    for alarm in alarms:
        if (
            alarm["kind"] == "head"
            and not alarm["drifting"]
            and (found := find(alarm["layer"], alarm["head"])) in candidates
        ):
            return found  # type: ignore[return-value]
    return max(
        candidates,
        key=lambda candidate: (
            abs(candidate["z"]) if candidate["z"] is not None else -1.0,
            candidate["attn_logit_max"] or 0.0,
        ),
    )


def title_of(step: int, head: dict[str, Any]) -> str:
    """Say how the head's largest attention logit stands to its past."""
    value, past = head["attn_logit_max"], head["baseline"]
    change = (
        f"{formatting.number(past)} → {formatting.number(value)}"
        if past is not None and head["z"] is not None
        else formatting.number(value)
    )
    size = (
        f" ({formatting.sigma(abs(head['z']))} {'above' if head['z'] >= 0 else 'below'} its past)"
        if head["z"] is not None
        else ""
    )
    return (
        f"Step {formatting.count(step)}: {name_of(head)}'s largest attention logit {change}{size}"
    )


def sentence_of(
    heads: Sequence[dict[str, Any]], head: dict[str, Any], alarms: Sequence[dict[str, Any]]
) -> list[Part]:
    """Say how many heads left their normal range, which was first, and this one's entropy."""
    judged = [row for row in heads if row["z"] is not None]
    if not judged:
        return [
            "Whether that is unusual is not known: fewer than 16 steps were recorded well before it"
            " (between 512 and 64 steps before). "
        ]
    out = sorted((row for row in judged if abs(row["z"]) >= 6), key=lambda row: -abs(row["z"]))
    sentence: list[Part] = []
    if out:
        sentence += [
            strong(f"{len(out)} of {len(heads)}"),
            (
                " heads are outside their normal range (6σ) at this step: "
                f"{formatting.listed([name_of(row) for row in out])}. "
            ),
        ]
    else:
        sentence += [
            f"None of the {len(heads)} heads is outside its normal range (6σ) at this step. "
        ]
    first_alarm = next(
        (alarm for alarm in alarms if alarm["kind"] == "head" and not alarm["drifting"]), None
    )
    if first_alarm is not None and first_alarm["lead"] > 0:
        sentence += [
            "First head to leave its normal range: ",
            accent(f"L{first_alarm['layer']}.H{first_alarm['head']}"),
            f", {formatting.steps(first_alarm['lead'], 'before')}. ",
        ]
    entropy, past = head["attn_entropy_norm"], head["baseline_entropy"]
    if entropy is not None and past is not None and past > 0:
        sentence += [
            f"The entropy of {name_of(head)} is {formatting.share(entropy)} of that of uniform"
            f" attention; it was {formatting.share(past)} before. "
        ]
    return sentence


def draw_thumbnails(
    run: str, step: int, heads: Sequence[dict[str, Any]], head: dict[str, Any]
) -> None:
    """Draw all heads small, each with its largest logit over time."""
    import pyarrow as pa

    every = max(1, math.ceil(len(heads) * (BEFORE + AFTER + 1) / POINTS))
    window = (max(0, step - BEFORE), step + AFTER + 1)
    curves = data.table(
        "head_thumbnails",
        run=run,
        step=step,
        before=BEFORE,
        after=AFTER,
        every=every,
        window=window,
    )
    keys = [
        f"{layer}.{number}"
        for layer, number in zip(curves["layer"].to_pylist(), curves["head"].to_pylist())
    ]
    rows = [
        {
            **row,
            "head2": row["head"] + 1,
            "layer2": row["layer"] + 1,
            "name": name_of(row),
            "label": formatting.number(row["attn_logit_max"]),
            "level": row["level"] or 0,
        }
        for row in heads
    ]
    layers, width = (1 + max(row[key] for row in heads) for key in ("layer", "head"))
    safe_html.caption(
        f"All heads · number: largest attention logit at the step · curve: from {BEFORE} steps"
        " before"
        f" to {AFTER} after · colour: σ from the head's past, blank below 3 · click one (shown:"
        f" {name_of(head)})"
    )
    theme.draw(
        charts.heads(safe_html.dark(), layers, width),
        {
            "heads": pa.Table.from_pylist(rows),
            "curves": curves.append_column("key", pa.array(keys, pa.string())),
            "chosen": pa.Table.from_pylist([row for row in rows if row["name"] == name_of(head)]),
        },
        key="heads",
        on_select=_clicked_head,
    )


def head_of(event: Any) -> dict[str, int] | None:
    """Return what a click on a head changes in the URL."""
    mark = picked(event, "cell", "layer", "head")
    return {"layer": int(mark["layer"]), "head": int(mark["head"])} if mark else None


def _clicked_head() -> None:
    change = head_of(st.session_state["heads"])
    if change:
        goto(**change)


def draw_over_time(run: str, step: int, head: dict[str, Any]) -> None:
    """Draw the largest logit and the entropy of one head around the step."""
    import pyarrow as pa
    import pyarrow.compute as pc

    window = (max(0, step - 512), step + AFTER + 1)
    rows = data.table(
        "head_heat",
        run=run,
        step=step,
        layer=head["layer"],
        before=BEFORE,
        after=AFTER,
        window=window,
    )
    of_head = rows.filter(pc.equal(rows["head"], head["head"]))
    if not of_head.num_rows:
        safe_html.nothing(
            f"{name_of(head)} over time cannot be drawn: too few steps were recorded before"
            f" {formatting.count(step)}."
        )
        return
    here = {"here": pa.table({"offset": [0]})}
    safe_html.caption(
        f"{name_of(head)}: largest attention logit · dashed: median of its past · below: steps from"
        f" {formatting.count(step)}"
    )
    theme.draw(
        charts.over_time(safe_html.dark(), "largest logit"),
        {"line": of_head, **here},
        key="head-logit",
    )
    entropy = of_head.drop_columns(["value", "baseline", "z"]).append_column(
        "value", of_head["entropy"]
    )
    blank = pa.nulls(of_head.num_rows, pa.float64())
    entropy = entropy.append_column("baseline", blank).append_column("z", blank)
    safe_html.caption(f"{name_of(head)}: mean entropy of its attention (nats)")
    theme.draw(
        charts.over_time(safe_html.dark(), "entropy"), {"line": entropy, **here}, key="head-entropy"
    )
