"""The Microscope page: the events of one step in their order, the update by tensor, the line along
it.

Named data: `dots` (place, ratio, level, event, what, here, was, times, ms), `phases` (first, last,
middle, phase, odd), `said` (place, ratio, label), `chosen` (place); `bars` (tensor, what, change),
`rise` (change); `scan` (alpha, change, on).
"""

from __future__ import annotations

from typing import Any

import altair as alt

from app.theme import N, O, Q, cached, heat_colour, named, palette, template

RATIOS = (
    1.5,
    2,
    3,
    5,
    10,
)  # of a value to the step before, or its inverse; below the first: as before
BROKEN = 9  # the level of a value that became NaN or infinite
ON = ("batch", "probes")


@cached
def timeline(dark: bool) -> dict[str, Any]:
    """Draw a dot per value: across, the events in order; up, its ratio to the step before (log)."""
    colours = palette(dark)
    exact = {"nice": False, "zero": False, "domain": {"expr": "places"}}
    x = alt.X("place", type=Q, axis=None, scale=alt.Scale(**exact))
    axis = alt.Axis(
        title=None, tickCount=6, minExtent=44, labelExpr="format(datum.value, '~g') + '×'"
    )
    scale = alt.Scale(type="log", domain={"expr": "ratios"}, nice=False)
    y = alt.Y("ratio", type=Q, axis=axis, scale=scale)
    bands = (
        alt.Chart(named("phases"))
        .mark_rect(color=colours.faint, tooltip=None)
        .encode(
            alt.X("first", type=Q, axis=None, scale=alt.Scale(**exact)),
            alt.X2("last"),
            opacity=alt.condition("datum.odd", alt.value(0.07), alt.value(0.0)),
        )
    )
    names = (
        alt.Chart(named("phases"))
        .mark_text(baseline="top", fontSize=11, color=colours.faint, y=3)
        .encode(
            alt.X("middle", type=Q, axis=None, scale=alt.Scale(**exact)), alt.Text("phase", type=N)
        )
    )
    same = alt.Chart(named("same")).mark_rule(color=colours.ink, strokeWidth=1).encode(y)
    tips = [
        alt.Tooltip("event", type=N),
        alt.Tooltip("what", type=N),
        alt.Tooltip("here", type=N, title="value"),
        alt.Tooltip("was", type=N, title="the step before"),
        alt.Tooltip("times", type=N, title="ratio"),
        alt.Tooltip("ms", type=Q, format=".2f", title="at ms"),
    ]
    heat = heat_colour(colours).to_dict()
    colour = alt.Scale(
        type="ordinal",
        domain=[*heat["domain"], 0, BROKEN],
        range=[*heat["range"], colours.parent, colours.nonfinite],
    )
    dots = (
        alt.Chart(named("dots"))
        .mark_point(filled=True, cursor="pointer", stroke=colours.faint, strokeWidth=0.6)
        .encode(
            x,
            y,
            alt.Color("level", type=O, scale=colour),
            tooltip=tips,
            shape=alt.condition(
                f"datum.level == {BROKEN}", alt.value("cross"), alt.value("circle")
            ),
            size=alt.condition("datum.level == 0", alt.value(22), alt.value(70)),
            opacity=alt.condition("datum.level == 0", alt.value(0.45), alt.value(1)),
        )
        .add_params(
            alt.selection_point(name="event", fields=["place"], on="click", clear="dblclick")
        )
    )
    labels = (
        alt.Chart(named("said"))
        .mark_text(align="left", dx=6, dy=-9, fontSize=10.5, color=colours.ink, limit=260)
        .encode(x, y, alt.Text("label", type=N))
    )
    said_left = (
        alt.Chart(named("said_left"))
        .mark_text(align="right", dx=-6, dy=-9, fontSize=10.5, color=colours.ink, limit=260)
        .encode(x, y, alt.Text("label", type=N))
    )
    chosen = alt.Chart(named("chosen")).mark_rule(color=colours.ink, strokeDash=[3, 3]).encode(x)
    return template(
        alt.layer(bands, names, same, chosen, dots, labels, said_left),
        dark,
        height=300,
        canvas=True,
    )


@cached
def blame(dark: bool, rows: int) -> dict[str, Any]:
    """By tensor two bars: the change of loss with its update alone, and with the update of all but
    it.
    """
    colours = palette(dark)
    axis = alt.Axis(title=None, tickCount=6, format="+~g")
    x = alt.X("change", type=Q, axis=axis)
    wide = alt.Axis(title=None, ticks=False, minExtent=190, maxExtent=190, labelLimit=186)
    y = alt.Y(
        "tensor",
        type=O,
        sort=None,
        axis=wide,
        scale=alt.Scale(domain={"expr": "rows"}, paddingInner=0.25),
    )
    order = ["alone", "all but it"]
    colour = alt.Color(
        "what", type=N, scale=alt.Scale(domain=order, range=[colours.fast, colours.null])
    )
    tips = [
        alt.Tooltip("tensor", type=N),
        alt.Tooltip("what", type=N),
        alt.Tooltip("change", type=Q, format="+.4f", title="nats/token"),
    ]
    bars = (
        alt.Chart(named("bars"))
        .mark_bar()
        .encode(
            x,
            y,
            alt.YOffset("what", type=N, sort=order, scale=alt.Scale(domain=order)),
            colour,
            tooltip=tips,
        )
    )
    rise = (
        alt.Chart(named("rise"))
        .mark_rule(color=colours.ink, strokeDash=[4, 3])
        .encode(alt.X("change", type=Q, axis=axis))
    )
    return template(alt.layer(bars, rise), dark, height=22 * max(rows, 2) + 30)


@cached
def scan(dark: bool) -> dict[str, Any]:
    """Change of loss along θ + α·Δθ on the batch and on the probe set; α = 1 is the step that was
    taken.
    """
    colours = palette(dark)
    x = alt.X(
        "alpha",
        type=Q,
        axis=alt.Axis(title="α: how much of the update", tickCount=9),
        scale=alt.Scale(nice=False),
    )
    y = alt.Y("change", type=Q, axis=alt.Axis(title=None, tickCount=5, minExtent=50, format="+~g"))
    colour = alt.Color(
        "on", type=N, scale=alt.Scale(domain=list(ON), range=[colours.fast, colours.fork])
    )
    shape = alt.Shape("on", type=N, scale=alt.Scale(domain=list(ON), range=["circle", "square"]))
    tips = [
        alt.Tooltip("on", type=N),
        alt.Tooltip("alpha", type=Q, format=".2f", title="α"),
        alt.Tooltip("change", type=Q, format="+.4f"),
        alt.Tooltip("loss", type=Q, format=".4f"),
    ]
    lines = alt.Chart(named("scan")).mark_line(strokeWidth=1.8).encode(x, y, colour)
    points = (
        alt.Chart(named("scan"))
        .mark_point(filled=True, size=50, opacity=1)
        .encode(x, y, colour, shape, tooltip=tips)
    )
    whole_step = alt.Chart(named("taken")).mark_rule(color=colours.ink, strokeDash=[3, 3]).encode(x)
    return template(alt.layer(whole_step, lines, points), dark, height=230)
