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
    return f"L{head['layer']}.H{head['head']}"


def chosen_head(
    heads: Sequence[dict[str, Any]], alarms: Sequence[dict[str, Any]], selection: Selection
) -> dict[str, Any]:
    """The head of the URL; else the first to move; else the one farthest from its own past; else
    the largest logit.
    """

    def find(layer: int | None, head: int | None) -> dict[str, Any] | None:
        return next((h for h in heads if h["layer"] == layer and h["head"] == head), None)

    own = [h for h in heads if h["layer"] == selection.layer] or list(heads)
    if selection.head is not None and (found := find(selection.layer, selection.head)):
        return found
    for alarm in alarms:
        if (
            alarm["kind"] == "head"
            and not alarm["drifting"]
            and (found := find(alarm["layer"], alarm["head"])) in own
        ):
            return found  # type: ignore[return-value]
    return max(
        own, key=lambda h: (abs(h["z"]) if h["z"] is not None else -1.0, h["attn_logit_max"] or 0.0)
    )


def title_of(step: int, head: dict[str, Any]) -> str:
    """`Step 1,342: L5.H3's largest attention logit 12.4 → 88.1 (31σ)`."""
    value, past = head["attn_logit_max"], head["baseline"]
    gone = (
        f"{formatting.number(past)} → {formatting.number(value)}"
        if past is not None and head["z"] is not None
        else formatting.number(value)
    )
    size = (
        f" ({formatting.sigma(abs(head['z']))} {'above' if head['z'] >= 0 else 'below'} its own past)"
        if head["z"] is not None
        else ""
    )
    return f"Step {formatting.count(step)}: {name_of(head)}'s largest attention logit {gone}{size}"


def sentence_of(
    heads: Sequence[dict[str, Any]], head: dict[str, Any], alarms: Sequence[dict[str, Any]]
) -> list[Part]:
    judged = [h for h in heads if h["z"] is not None]
    if not judged:
        return ["Robust z needs 16 recorded steps between 512 and 64 before it; there are fewer. "]
    out = sorted((h for h in judged if abs(h["z"]) >= 6), key=lambda h: -abs(h["z"]))
    said: list[Part] = []
    if out:
        said += [
            strong(f"{len(out)} of {len(heads)}"),
            (
                " heads stand beyond 6σ of their own past at this step: "
                f"{formatting.listed([name_of(h) for h in out])}. "
            ),
        ]
    else:
        said += [f"None of {len(heads)} heads stands beyond 6σ of its own past at this step. "]
    first = next((a for a in alarms if a["kind"] == "head" and not a["drifting"]), None)
    if first is not None and first["lead"] > 0:
        said += [
            "First head to move: ",
            accent(f"L{first['layer']}.H{first['head']}"),
            f", {formatting.steps(first['lead'], 'before')}. ",
        ]
    entropy, past = head["attn_entropy_norm"], head["baseline_entropy"]
    if entropy is not None and past is not None and past > 0:
        said += [
            f"{name_of(head)}'s entropy is {formatting.share(entropy)} of uniform, its own past"
            f" {formatting.share(past)}. "
        ]
    return said


def draw_thumbnails(
    run: str, step: int, heads: Sequence[dict[str, Any]], head: dict[str, Any]
) -> None:
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
    keys = [f"{a}.{b}" for a, b in zip(curves["layer"].to_pylist(), curves["head"].to_pylist())]
    rows = [
        {
            **h,
            "head2": h["head"] + 1,
            "layer2": h["layer"] + 1,
            "name": name_of(h),
            "label": formatting.number(h["attn_logit_max"]),
            "level": h["level"] or 0,
        }
        for h in heads
    ]
    layers, width = (1 + max(h[k] for h in heads) for k in ("layer", "head"))
    safe_html.caption(
        f"All heads · number: largest attention logit at the step; curve: {BEFORE} steps before to"
        f" {AFTER} after · colour: σ from the head's own past, blank under 3 · click one (now"
        f" {name_of(head)})"
    )
    theme.draw(
        charts.heads(safe_html.dark(), layers, width),
        {
            "heads": pa.Table.from_pylist(rows),
            "curves": curves.append_column("key", pa.array(keys, pa.string())),
            "chosen": pa.Table.from_pylist([r for r in rows if r["name"] == name_of(head)]),
        },
        key="heads",
        on_select=_clicked_head,
    )


def head_of(event: Any) -> dict[str, int] | None:
    """What a click on a head changes in the URL."""
    mark = picked(event, "cell", "layer", "head")
    return {"layer": int(mark["layer"]), "head": int(mark["head"])} if mark else None


def _clicked_head() -> None:
    change = head_of(st.session_state["heads"])
    if change:
        goto(**change)


def draw_over_time(run: str, step: int, head: dict[str, Any]) -> None:
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
    own = rows.filter(pc.equal(rows["head"], head["head"]))
    if not own.num_rows:
        safe_html.nothing(
            f"{name_of(head)} over time: there are too few steps before {formatting.count(step)} to"
            " judge it by."
        )
        return
    here = {"here": pa.table({"offset": [0]})}
    safe_html.caption(
        f"{name_of(head)}: largest attention logit · dashed: median of its own past · steps from"
        f" {formatting.count(step)}"
    )
    theme.draw(
        charts.over_time(safe_html.dark(), "largest logit"), {"line": own, **here}, key="head-logit"
    )
    entropy = own.drop_columns(["value", "baseline", "z"]).append_column("value", own["entropy"])
    blank = pa.nulls(own.num_rows, pa.float64())
    entropy = entropy.append_column("baseline", blank).append_column("z", blank)
    safe_html.caption("… and its mean attention entropy (nats)")
    theme.draw(
        charts.over_time(safe_html.dark(), "entropy"), {"line": entropy, **here}, key="head-entropy"
    )
