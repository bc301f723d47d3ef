"""The sequences of a batch by loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import streamlit as st

from app import formatting, safe_html, theme
from app.selection import goto, picked
from app.views.batch import charts


def bars_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a bar for each sequence; one without a past is as quiet as those within 3σ."""
    top = _top(rows)
    return [
        {
            **{key: row[key] for key in ("slot", "sequence", "share", "z", "source", "path")},
            "level": row["level"] or 0,
            "loss": formatting.loss(row["loss"]),
            "place": float(row["place"]),
            "place2": row["place"] + 0.88,
            "zero": 0.0,
            "shown": (
                row["loss"]
                if row["loss"] is not None and math.isfinite(row["loss"])
                else top * 1.1
                if row["loss"] is not None
                else 0.0
            ),
        }
        for row in rows
    ]


def _top(rows: Sequence[dict[str, Any]]) -> float:
    """Return the largest finite loss."""
    return max(
        [row["loss"] for row in rows if row["loss"] is not None and math.isfinite(row["loss"])],
        default=1.0,
    )


def draw_sequences(
    rows: Sequence[dict[str, Any]], chosen: dict[str, Any], header: dict[str, Any]
) -> None:
    """Draw the sequences of a batch by loss; a click chooses one."""
    import pyarrow as pa

    vocabulary = (header.get("shape") or {}).get("vocabulary")
    bars, top = bars_of(rows), _top(rows)
    past = rows[0]["baseline"]
    lines = (
        [{"value": past, "what": f"expected from the steps before: {formatting.loss(past)}"}]
        if past is not None
        else []
    )
    if vocabulary and top > 0.6 * math.log(vocabulary):
        lines.append(
            {
                "value": math.log(vocabulary),
                "what": f"guessing at random (ln V): {math.log(vocabulary):.3f}",
            }
        )
    safe_html.caption(
        "Loss of each sequence (nats/token), highest first · colour: σ above the sequences of"
        " the 64"
        f" steps before, grey below 3 · click one (shown below: slot {chosen['slot']})"
    )
    schema = pa.schema([("value", pa.float64()), ("what", pa.string())])
    chosen_bar = [bar for bar in bars if bar["slot"] == chosen["slot"]]
    theme.draw(
        theme.filled(charts.sequences(safe_html.dark()), last=float(len(rows))),
        {
            "bars": pa.Table.from_pylist(bars),
            "lines": pa.Table.from_pylist(lines, schema=schema),
            "chosen": pa.Table.from_pylist(chosen_bar),
        },
        key="sequences",
        on_select=_clicked_bar,
    )


def slot_of(event: Any) -> dict[str, int] | None:
    """Return what a click on a bar changes in the URL."""
    mark = picked(event, "bar", "slot")
    return {"slot": int(mark["slot"])} if mark else None


def _clicked_bar() -> None:
    change = slot_of(st.session_state["sequences"])
    if change:
        goto(**change)
