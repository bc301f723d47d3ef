"""Which text, which tokens? The batch's sequences by loss, one of them token by token, and what can
be done about it.
"""

from __future__ import annotations

import streamlit as st

from app import data, formatting, safe_html
from app.navigation import chosen_run
from app.step import chosen_step
from app.views.batch.sequences import draw_sequences
from app.views.batch.summary import draw_next_steps, draw_unrecorded, hedge_of, title_of, worst_of
from app.views.batch.text import draw_text
from app.views.batch.token import draw_beside


def page() -> None:
    """Draw the page: the batch's sequences, one of them as text, and what can be done."""
    selection = chosen_run(of_model=True)
    selection = chosen_step(selection) if selection is not None else None
    if selection is None:
        return
    run, step = str(selection.run), int(selection.step or 0)
    rows = data.rows("batch_at", run=run, step=step, window=(max(0, step - 64), step + 1))
    if not rows:
        draw_unrecorded(run, step)
        return
    row = next((row for row in rows if row["slot"] == selection.slot), rows[0])
    if selection.slot is not None and row["slot"] != selection.slot:
        safe_html.nothing(
            f"Batch {formatting.count(step)} has no slot {selection.slot}. It has {len(rows)}"
            " sequences; shown is the one with the highest"
            " loss."
        )
    left, right = st.columns([4, 1], vertical_alignment="top")
    with left:
        safe_html.verdict(
            title_of(step, rows), *worst_of(rows), hedge=hedge_of(run, selection, step)
        )
    with right:
        draw_next_steps(selection, step, row)
    draw_sequences(rows, row, data.header(run))
    read, beside = st.columns([1.9, 1])
    with read:
        text = draw_text(run, step, row, selection)
    if text is not None:
        with beside:
            draw_beside(run, step, row, selection, text.sequence, text.losses)
