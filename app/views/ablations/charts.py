"""What each change does to one measure: a row per change, a dot per seed, a tick at their median.

Named data: `gaps` (change, seed, value, run), `medians` (change, value, verdict).
"""

from __future__ import annotations

from typing import Any

import altair as alt

from app.theme import N, O, Q, cached, named, palette, template

ROW = 24  # pixels


@cached
def effects(dark: bool, rows: int, unit: str) -> dict[str, Any]:
    """Draw differences from A by change. `rows`: the changes in order, filled in by `filled`."""
    colours = palette(dark)
    axis = alt.Axis(title=None, ticks=False, labelLimit=300, minExtent=190, grid=False)
    y = alt.Y(
        "change",
        type=O,
        sort=None,
        axis=axis,
        scale=alt.Scale(type="band", domain={"expr": "rows"}),
    )
    x = alt.X(
        "value",
        type=Q,
        axis=alt.Axis(title=None, format="~g", tickCount=6),
        scale=alt.Scale(zero=True),
    )
    zero = (
        alt.Chart(named("zero"))
        .mark_rule(color=colours.parent, strokeDash=[4, 3])
        .encode(alt.X("value", type=Q))
    )
    dots = (
        alt.Chart(named("gaps"))
        .mark_point(filled=True, size=46, opacity=0.75, color=colours.fork)
        .encode(
            x,
            y,
            tooltip=[
                alt.Tooltip("change", type=N),
                alt.Tooltip("seed", type=Q),
                alt.Tooltip("value", type=Q, format="+.3~g", title=unit),
                alt.Tooltip("run", type=N),
            ],
        )
    )
    medians = (
        alt.Chart(named("medians"))
        .mark_tick(thickness=2.5, size=15, color=colours.ink)
        .encode(
            x,
            y,
            tooltip=[
                alt.Tooltip("change", type=N),
                alt.Tooltip("value", type=Q, format="+.3~g", title=f"median, {unit}"),
                alt.Tooltip("verdict", type=N),
            ],
        )
    )
    return template(alt.layer(zero, dots, medians), dark, height=ROW * rows + 34)
