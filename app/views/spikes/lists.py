"""Beside the panels: the first alarms, and the batch's sequences."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import streamlit as st

from app import data, formatting, safe_html, theme
from app.navigation import link
from app.selection import goto, picked_row, shown
from app.views.spikes import charts
from app.views.spikes.summary import label_of


def draw_first_alarms(alarms: list[dict[str, Any]], most: int = 12) -> None:
    """Draw how many steps before the spike each statistic left its normal range."""
    import pyarrow as pa

    clear = [alarm for alarm in alarms if not alarm["drifting"]]
    drifting = len(alarms) - len(clear)
    safe_html.caption(
        "How many steps before the spike each statistic left its normal range (6σ, twice in a row)"
        + (f" · not shown: {drifting} that drift, as before the spike" if drifting else "")
    )
    if not clear:
        safe_html.nothing("No recorded statistic left its normal range (6σ) two steps in a row.")
        return
    from forensics.visible import visible

    rows = [
        {
            "step": alarm["step"],
            "lead": alarm["lead"],
            "spike": 0,
            "value": alarm["value"],
            "z": alarm["z"],
            "row": visible(label_of(alarm)),
        }
        for alarm in clear[:most]
    ]
    spec = theme.filled(
        charts.alarms(safe_html.dark(), len(rows)),
        rows=[row["row"] for row in rows],
        leads=[0, max(8, *(row["lead"] for row in rows))],
    )
    theme.draw(spec, {"alarms": pa.Table.from_pylist(rows)}, key="alarms")
    if len(clear) > most:
        safe_html.caption(f"and {len(clear) - most} more")


def draw_batch(run: str, step: int) -> None:
    """Draw the sequences of the spike's batch by loss; a click chooses one."""
    import pyarrow as pa

    safe_html.heading(f"The sequences of batch {formatting.count(step)}, highest loss first")
    rows = data.table("worst_sequences", run=run, step=step, top=16, window=(step, step + 1))
    if not rows.num_rows and data.is_log_alone(run):
        safe_html.nothing("A log alone does not hold which sequences a batch read.")
        return
    if not rows.num_rows:
        safe_html.nothing(
            "The losses of this batch's sequences were not recorded. This command prints what"
            " it read:",
            f"forensics batch {run} {step}",
        )
        return
    top = max(
        (loss for loss in rows["loss"].to_pylist() if loss is not None and math.isfinite(loss)),
        default=1.0,
    )
    slots, chosen = rows["slot"].to_pylist(), shown()
    slot = chosen.slot if chosen.step in (None, step) else None  # else it is a row of another batch
    # of this choice: the tick of another, from before Back, would not go away
    key = f"worst-{run}-{step}-{slot}"
    mark = pa.array(["●" if row_slot == slot else "" for row_slot in slots])
    safe_html.frame(
        rows.select(["slot", "loss", "repeat_share", "source", "path"]).add_column(0, "", mark),
        key=key,
        height=290,
        on_select=partial(_chose_sequence, key, step, slots),
        selection_mode="single-row",
        column_config={
            "": st.column_config.TextColumn(width=24),
            "slot": st.column_config.NumberColumn(width=46),
            "loss": st.column_config.ProgressColumn(
                format="%.3f", min_value=0.0, max_value=float(top), color="primary"
            ),
            "repeat_share": st.column_config.NumberColumn("repeats", format="%.2f", width=60),
        },
    )
    if slot is not None:
        link("batch", f"Read slot {slot}", run=run, spike=step, step=step, slot=slot)


def _chose_sequence(key: str, step: int, slots: list[int]) -> None:
    slot = picked_row(st.session_state[key], slots)
    if slot is not None:
        goto(step=step, slot=slot)
