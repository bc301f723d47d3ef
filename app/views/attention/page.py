"""What did the head do? All heads small, one of them over time, its weights before, at and after,
the logit lens.
"""

from __future__ import annotations

import math
from typing import Any

import streamlit as st

from app import data, formatting, jobs, safe_html
from app.navigation import chosen_run, link
from app.safe_html import Part, code, strong
from app.selection import Selection
from app.step import chosen_step
from app.views.attention.heads import (
    BEFORE,
    chosen_head,
    draw_over_time,
    draw_thumbnails,
    name_of,
    sentence_of,
    title_of,
)
from app.views.attention.lens import draw_lens
from app.views.attention.patterns import draw_query, draw_triptych
from app.views.attention.states import (
    Kept,
    attention_of,
    broken_states,
    of_head,
    sequence_of,
    slots_of,
)


def page() -> None:
    """Draw the page: all heads, one of them over time, and what it attends to."""
    selection = chosen_run(of_model=True)
    selection = chosen_step(selection) if selection is not None else None
    if selection is None:
        return
    run, step = str(selection.run), int(selection.step or 0)
    heads = data.rows("heads_at", run=run, step=step, window=(max(0, step - 512), step + 1))
    if not heads:
        safe_html.verdict(
            f"Step {formatting.count(step)}", "The attention heads were not recorded at this step."
        )
        first = max(0, step - BEFORE)
        safe_html.nothing(
            "A fork that changes nothing records them:",
            f"replay fork {run} --from {first} --to {step + 1} --lr-scale 1@{first}:{step + 1}"
            " --record light",
            'record.level = "light" records every head at every step of a run.',
        )
        return
    alarms = data.rows("first_alarms", run=run, step=step, window=(max(0, step - 512), step + 1))
    head = chosen_head(heads, alarms, selection)
    slot = _slot(run, step, selection)
    saved = attention_of(run, step, slot)
    left, right = st.columns([4, 1], vertical_alignment="top")
    with left:
        safe_html.verdict(
            title_of(step, head),
            *sentence_of(heads, head, alarms),
            *_moved(saved, head),
            hedge=[
                "What moved first is not thereby the cause. To prove a cause, train the steps"
                " again (Forks), or"
                " run ",
                code(f"replay blame {run} --spike {selection.spike or step}"),
                ".",
            ],
        )
    with right:
        link("batch", "Read the batch", run=run, step=step, slot=slot)
        link("trace", "Inside the step", run=run, step=step)
        link("spikes", "Around the spike", run=run, spike=selection.spike)
    overview, beside = st.columns([1.35, 1])
    with overview:
        draw_thumbnails(run, step, heads, head)
    with beside:
        draw_over_time(run, step, head)
    _patterns(run, step, slot, head, saved, selection)


# ---- which head, in words


def _moved(kept: Kept | None, head: dict[str, Any]) -> list[Part]:
    """Say what share of the head's attention on the sequence went to other tokens."""
    if kept is None:
        return []
    about = kept[0]
    states, step = about["states"], about["step"]
    if len(states) < 2 or step not in states or states[0] == step:
        return []
    at = states.index(step)
    first, then = (of_head(kept, "weights", i, head) for i in (0, at))
    gone = float(abs(then - first).sum(-1).mean() / 2) if about["block"] == 1 else math.nan
    if not math.isfinite(gone):
        return []
    return [
        "On the sequence of slot ",
        strong(about["slot"]),
        ", ",
        strong(formatting.share(gone)),
        f" of its attention is on other tokens at state {formatting.count(step)} than at state"
        f" {formatting.count(states[0])}.",
    ]


def _slot(run: str, step: int, selection: Selection) -> int:
    """Return the slot of the URL, else one computed already, else that of the highest loss."""
    rows = data.rows("batch_at", run=run, step=step, window=(max(0, step - 64), step + 1))
    slots = [row["slot"] for row in rows]
    if selection.slot is not None and (selection.slot in slots or not slots):
        return selection.slot
    looked = slots_of(run, step)
    return looked[0] if looked else slots[0] if slots else 0


# ---- one head on one sequence


def _patterns(
    run: str, step: int, slot: int, head: dict[str, Any], kept: Kept | None, selection: Selection
) -> None:
    safe_html.heading(
        f"What {name_of(head)} attends to in slot {slot} of batch {formatting.count(step)},"
        " before, at and"
        " after the step"
    )
    arguments = ["attention", run, str(step), "--slot", str(slot)]
    if kept is None:
        other_slots = [there for there in slots_of(run, step) if there != slot]
        jobs.offer(
            run,
            "replay",
            arguments,
            "Compute the attention",
            "The attention on this sequence has not been computed yet. This command computes it"
            " from"
            " the exact states 16 steps before the step, at it and after it:",
            hint=f"Computed already: slot {formatting.listed(other_slots)}." if other_slots else "",
            key="attention",
        )
        return
    about = kept[0]
    if False in about["exact"]:
        safe_html.amber(
            strong("Tolerance only: "),
            "on this machine a state that was trained again differs from the recorded one in"
            " some bits.",
        )
    for state in broken_states(about, kept, head):
        safe_html.amber(
            strong(f"Some attention weights of state {formatting.count(state)} are not finite"),
            f" in {name_of(head)}; they are left blank.",
        )
    read = sequence_of(run, data.header(run).get("corpus"), tuple(about["tokens"]))
    draw_triptych(about, kept, head, read, selection.position)
    draw_query(about, kept, head, read, selection.position)
    draw_lens(about, kept, read, selection.position)
