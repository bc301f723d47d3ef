"""The Blame page: the deletion curve."""

from __future__ import annotations

from typing import Any

import altair as alt

from app.theme import (
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

ORDERS = ("by influence", "random")


@cached
def deletion(dark: bool) -> dict[str, Any]:
    """Nats of the excess that go when the strongest are removed together, beside as many random
    ones.
    """
    colours = palette(dark)
    x = alt.X(
        "removed",
        type=Q,
        axis=alt.Axis(title="sequences removed", format=",d", tickCount=7),
        scale=alt.Scale(type="log", base=2, nice=False, padding=16),
    )
    y = alt.Y("taken", type=Q, axis=labels(tickCount=5, format=".3~f"), scale=alt.Scale(zero=True))
    colour = by_name("order", ORDERS, colours=[colours.fork, colours.parent])
    shape = shape_by_name("order", ORDERS, ["circle", "square"])
    dash = dash_by_name("order", ORDERS, [[1, 0], [4, 3]])
    tips = [
        alt.Tooltip("removed", type=Q, format=",d"),
        alt.Tooltip("order", type=N),
        alt.Tooltip("taken", type=Q, format="+.3f", title="nats that go"),
    ]
    excess = (
        alt.Chart(named("whole"))
        .mark_rule(color=colours.ink, strokeDash=[2, 3])
        .encode(alt.Y("taken", type=Q))
    )
    rows = alt.Chart(named("curve"))
    lines = rows.mark_line(strokeWidth=1.8).encode(x, y, colour, dash)
    dots = rows.mark_point(filled=True, size=55, opacity=1).encode(
        x, y, colour, shape, tooltip=tips
    )
    nulls = (
        alt.Chart(named("nulls"))
        .mark_tick(orient="horizontal", size=16, thickness=1.6, color=colours.parent, opacity=1)
        .encode(x, y, tooltip=tips)
    )
    words = end_words("ends", x, "taken", colour, dx=0)
    return template(alt.layer(excess, lines, nulls, dots, *words), dark, height=220)
