"""What inside the step broke it? The events of a traced step in order, the update by tensor, the
line along it.
"""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import data, formatting, jobs, safe_html
from app.documents import of_this_version
from app.navigation import chosen_run, link
from app.safe_html import strong
from app.selection import goto
from app.step import chosen_step
from app.views.trace.events import (
    largest_of,
)
from app.views.trace.summary import hedge_of, sentence_of, title_of
from app.views.trace.timeline import NUMBERS, draw_event, draw_timeline
from app.views.trace.update import draw_blame, draw_scan
from forensics.errors import ForensicsError
from replay.step.result import StepTrace


def page() -> None:
    """Draw the page: the events of a traced step, its update, and what changed most."""
    selection = chosen_run(of_model=True)
    selection = chosen_step(selection) if selection is not None else None
    if selection is None:
        return
    run, step = str(selection.run), int(selection.step or 0)
    trace = _kept(run, step)
    left, right = st.columns([4, 1], vertical_alignment="top")
    with left:
        if trace is None:
            _untraced(run, step)
        else:
            safe_html.verdict(
                title_of(trace), *sentence_of(trace), hedge=hedge_of(run, step, selection)
            )
    with right:
        link("batch", "Read the batch", run=run, step=step)
        link("attention", "Attention at this step", run=run, step=step)
        link("spikes", "Around the spike", run=run, spike=selection.spike)
    if trace is None:
        return
    if trace.get("exact") is False:
        safe_html.amber(
            strong("Tolerance only: "),
            "on this machine the traced step differs from the recorded one in some bits.",
        )
    draw_timeline(trace, selection.position)
    update, along = st.columns([1.35, 1])
    with update:
        draw_blame(trace)
    with along:
        draw_scan(trace)
    if selection.position is None or selection.position >= len(trace["events"]):
        _largest(trace)
        return
    most, chosen = st.columns([1.35, 1])
    with most:
        _largest(trace)
    with chosen:
        draw_event(trace, selection.position, run)


def _kept(run: str, step: int) -> dict[str, Any] | None:
    from replay.step import artifacts

    path = artifacts.trace_of(data.runs_folder() / data.require(run), step)
    document = data.document(path)
    if "events" not in document:
        return None
    try:
        return of_this_version(StepTrace, document, path.name)
    except ForensicsError as error:
        safe_html.nothing(safe_html.spoken(f"{error.message}."), hint=error.hint)
        return None


def _clipping(scale: float | None) -> str:
    """Say what clipping did, where it was recorded."""
    if scale is None:
        return ""
    if scale < 1:
        return f"Clipping scaled the gradient by {formatting.number(scale)}. "
    return "The gradient was not clipped. "


def _untraced(run: str, step: int) -> None:
    """Draw what the records tell of the step, and how to look inside."""
    rows = data.rows(
        "steps_around", run=run, step=step, before=1, after=0, window=(max(0, step - 1), step + 1)
    )
    row = rows[-1] if rows and rows[-1]["step"] == step else None
    if row is None:
        safe_html.verdict(f"Step {formatting.count(step)} was not recorded")
    else:
        safe_html.verdict(
            f"Step {formatting.count(step)}: loss {formatting.loss(row['loss'])} nats/token,"
            " gradient norm"
            f" {formatting.number(row['grad_norm'])}",
            _clipping(row["clip_scale"]),
            "What happened inside it is not known until the step is run again and watched.",
        )
    first = max(data.header(run).get("first_step") or 0, 0) + 1
    if step < first:
        safe_html.nothing(
            f"A step is traced beside the one before it, which {run} has from step {first:,} on."
        )
    else:
        jobs.offer(
            run,
            "replay",
            ["trace", run, str(step)],
            "Trace this step",
            "This command goes to the exact state and runs the step once more, watched at every"
            " sub-layer:",
            key="trace",
        )
    traced_steps = _traced(run)
    if traced_steps:
        with st.container(horizontal=True, gap="small"):
            safe_html.caption("Traced already:")
            for traced_step in traced_steps[:8]:
                st.button(
                    f"{traced_step:,}",
                    key=f"traced-{traced_step}",
                    type="tertiary",
                    on_click=goto,
                    kwargs={"step": traced_step},
                )


def _traced(run: str) -> list[int]:
    folder = data.runs_folder() / data.require(run) / "looks"
    steps = [path.stem.removeprefix("trace-") for path in folder.glob("trace-*.json")]
    return sorted(int(step) for step in steps if step.isdecimal())


# ---- the update


def _largest(trace: dict[str, Any], most: int = 40) -> None:
    safe_html.heading("The values that changed most against the step before")
    safe_html.frame(largest_of(trace, most), column_config=NUMBERS, height=280, placeholder="")
