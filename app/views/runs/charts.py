"""The tree of runs on the axis of steps: a bar per run, a connector where a fork leaves its parent.

Named data: `bars` (row, run, first, last, kind, status), `ahead` (row, first, last), `joins` (step,
row, row2), `marks` (row, step, kind), `chosen` (row, first, last).
"""

from __future__ import annotations

from typing import Any

import altair as alt

from app.theme import N, O, Q, cached, kind_colour, kind_shape, named, palette, template

ROW = 19  # pixels


@cached
def tree(dark: bool, rows: int) -> dict[str, Any]:
    """Click a bar for its run. `rows`: their names in order, filled in by `theme.filled`."""
    colours = palette(dark)
    wide = alt.Axis(
        title=None, ticks=False, labelLimit=230, minExtent=150, labelFont="monospace", grid=False
    )
    y = alt.Y(
        "row", type=O, sort=None, axis=wide, scale=alt.Scale(domain={"expr": "rows"}, padding=0.25)
    )
    steps = alt.Scale(nice=False, zero=True)
    x = alt.X("first", type=Q, axis=alt.Axis(title=None, format=",d", tickCount=12), scale=steps)
    colour = alt.Scale(
        domain=["run", "fork", "null"], range=[colours.parent, colours.fork, colours.null]
    )
    tips = [
        alt.Tooltip("run", type=N),
        alt.Tooltip("first", type=Q, format=",d", title="first step"),
        alt.Tooltip("last", type=Q, format=",d", title="reached"),
        alt.Tooltip("status", type=N),
        alt.Tooltip("does", type=N),
    ]
    joins = (
        alt.Chart(named("joins"))
        .mark_rule(color=colours.faint, strokeWidth=1)
        .encode(alt.X("step", type=Q, scale=steps), alt.Y("row", type=O, sort=None), alt.Y2("row2"))
    )
    ahead = (
        alt.Chart(named("ahead"))
        .mark_bar(fill=None, stroke=colours.parent, strokeDash=[2, 3], cornerRadius=4)
        .encode(x, alt.X2("last"), y)
    )
    chosen = (
        alt.Chart(named("chosen"))
        .mark_bar(fill=None, stroke=colours.ink, strokeWidth=1.6, cornerRadius=4)
        .encode(x, alt.X2("last"), y)
    )
    bars = (
        alt.Chart(named("bars"))
        .mark_bar(cornerRadius=4)
        .encode(x, alt.X2("last"), y, alt.Color("kind", type=N, scale=colour), tooltip=tips)
        .add_params(alt.selection_point(name="bar", fields=["run"], on="click", clear="dblclick"))
    )
    marks = (
        alt.Chart(named("marks"))
        .mark_point(filled=True, size=55, opacity=1)
        .encode(
            alt.X("step", type=Q, scale=steps),
            y,
            alt.Color("kind", type=N, scale=kind_colour(colours)),
            alt.Shape("kind", type=N, scale=kind_shape()),
            tooltip=[alt.Tooltip("step", type=Q, format=",d"), alt.Tooltip("kind", type=N)],
        )
    )
    spec = alt.layer(joins, ahead, bars, chosen, marks).resolve_scale(
        color="independent", shape="independent"
    )
    return template(spec, dark, height=ROW * rows + 30)
