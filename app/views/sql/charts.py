"""Any two columns of a result: `rows` (x, y), x a number or a few names. The columns' own names
stand in the caption:
as fields, Vega would read a dot or a bracket in them as a path."""

from __future__ import annotations

from typing import Any

import altair as alt

from app.theme import N, Q, cached, named, palette, template


@cached
def curve(dark: bool) -> dict[str, Any]:
    """Draw one column against another as a line."""
    colours = palette(dark)
    x = alt.X("x", type=Q, axis=alt.Axis(title=None), scale=alt.Scale(nice=False, zero=False))
    y = alt.Y("y", type=Q, axis=alt.Axis(title=None), scale=alt.Scale(zero=False))
    tips = [alt.Tooltip("x", type=Q, format=",.6~g"), alt.Tooltip("y", type=Q, format=",.6~g")]
    line = alt.Chart(named("rows")).mark_line(color=colours.line, strokeWidth=1.3).encode(x, y)
    dots = (
        alt.Chart(named("rows"))
        .mark_point(filled=True, color=colours.line, size=14)
        .encode(x, y, tooltip=tips)
    )
    return template(alt.layer(line, dots), dark, height=240, canvas=True)


@cached
def bars(dark: bool) -> dict[str, Any]:
    """Draw a number for each text as bars."""
    colours = palette(dark)
    x = alt.X("x", type=N, sort=None, axis=alt.Axis(title=None, labelAngle=-30))
    tips = [alt.Tooltip("x", type=N), alt.Tooltip("y", type=Q, format=",.6~g")]
    y = alt.Y("y", type=Q, axis=alt.Axis(title=None))
    return template(
        alt.Chart(named("rows")).mark_bar(color=colours.line).encode(x, y, tooltip=tips),
        dark,
        height=260,
    )
