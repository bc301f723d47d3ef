"""Early against late: one intervention at many steps."""

from __future__ import annotations

from typing import Any

import altair as alt

from app.theme import (
    STEP_TIP,
    N,
    Q,
    by_name,
    cached,
    dash_by_name,
    end_words,
    labels,
    named,
    palette,
    shape_by_name,
    template,
)

ARMS = ("own", "equal")


@cached
def sweep(dark: bool, log: bool, unit: str) -> dict[str, Any]:
    """Draw a measure against the starting step, one line per arm; hollow: beyond the window."""
    colours = palette(dark)
    x = alt.X(
        "step",
        type=Q,
        axis=alt.Axis(title=None, format=",d", tickCount=8),
        scale=alt.Scale(zero=False, padding=14),
    )
    scale = alt.Scale(type="log", nice=True) if log else alt.Scale(zero=True)
    y = alt.Y("value", type=Q, axis=labels(tickCount=5, format="~g"), scale=scale)
    colour = by_name("arm", ARMS, colours=[colours.fork, colours.fast])
    shape = shape_by_name("arm", ARMS, ["circle", "square"])
    dash = dash_by_name("arm", ARMS, [[1, 0], [5, 3]])
    tips = [
        STEP_TIP,
        alt.Tooltip("arm", type=N, title="learning rate"),
        alt.Tooltip("value", type=Q, format=".3~g", title=unit),
        alt.Tooltip("rate", type=Q, format=".3~g", title="η"),
        alt.Tooltip("verdict", type=N),
    ]
    reference = (
        alt.Chart(named("one"))
        .mark_rule(color=colours.parent, strokeDash=[4, 3])
        .encode(alt.Y("value", type=Q))
    )
    rows = alt.Chart(named("points"))
    span = rows.mark_rule(strokeWidth=1.4).encode(x, alt.Y("low", type=Q), alt.Y2("high"), colour)
    line = rows.mark_line(strokeWidth=1.8).encode(x, y, colour, dash)
    dots = rows.mark_point(size=70, opacity=1, strokeWidth=1.6).encode(
        x,
        y,
        colour,
        shape,
        fill=alt.condition("datum.censored", alt.value(colours.background), colour),
        tooltip=tips,
    )
    words = end_words("ends", x, "value", colour, dx=4)
    return template(alt.layer(reference, span, line, dots, *words), dark, height=190)
