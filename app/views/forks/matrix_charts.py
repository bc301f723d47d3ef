"""Batch against state: the matrix, and whole windows from other states."""

from __future__ import annotations

from typing import Any

import altair as alt

from app.theme import (
    N,
    O,
    Q,
    by_name,
    cached,
    dash_by_name,
    end_words,
    heat_colour,
    labels,
    named,
    palette,
    shape_by_name,
    template,
)

SPIKED = ("spikes", "does not")
FEW_ROWS = 12  # states, whose cells are square; more are drawn lower, to stay on a screen


@cached
def matrix(
    dark: bool, rows: int, title: str, axis: bool = True, margin: bool = False
) -> dict[str, Any]:
    """Batch on x, state on y; colour is the value over the placebo batches' scale; outlined: what
    happened.
    """
    colours = palette(dark)
    top = alt.Axis(
        title=("σ" if margin else "batch") if axis else None,
        orient="top",
        labels=axis,
        ticks=False,
        labelAngle=0,
        labelOverlap=True,
        labelExpr="' '" if margin else "datum.label",
    )
    side = (
        None if margin else labels(title="state" if axis else "\u00a0", minExtent=58, maxExtent=58)
    )
    x = alt.X("step", type=O, sort=None, axis=top, scale=alt.Scale(padding=0.04))
    y = alt.Y(
        "state",
        type=N,
        sort=None,
        axis=side,
        scale=alt.Scale(padding=0.04, domain={"expr": "states"}),
    )
    tips = [
        alt.Tooltip("step", type=Q, format=",d", title="batch"),
        alt.Tooltip("state", type=N),
        alt.Tooltip("value", type=Q, format="+.4f", title=title),
        alt.Tooltip("over", type=Q, format="+.1f", title="× placebo scale"),
        alt.Tooltip("note", type=N),
    ]
    cells = alt.Chart(named("cells"))
    ground = cells.mark_rect(fill="transparent", stroke=colours.grid, strokeWidth=1).encode(
        x, y, tooltip=tips
    )
    heat = (
        cells.transform_filter("datum.level != 0")
        .mark_rect()
        .encode(x, y, alt.Color("level", type=O, scale=heat_colour(colours)), tooltip=tips)
    )
    consumed = (
        cells.transform_filter("datum.consumed")
        .mark_point(filled=True, size=9, color=colours.faint, opacity=1)
        .encode(x, y)
    )
    happened = (
        cells.transform_filter("datum.own")
        .mark_rect(fill="transparent", stroke=colours.ink, strokeWidth=1.6)
        .encode(x, y)
    )
    height = max(24, (26 if rows <= FEW_ROWS else 15) * rows) + (44 if axis else 10)
    return template(alt.layer(ground, heat, consumed, happened), dark, height=height, canvas=True)


@cached
def windows(dark: bool) -> dict[str, Any]:
    """Loss along one window of batches, a line per state that it was run from: grey the earliest,
    blue the latest; dashed: no spike.
    """
    colours = palette(dark)
    x = alt.X(
        "step",
        type=Q,
        axis=alt.Axis(title="batch", format=",d", tickCount=8, tickMinStep=1),
        scale=alt.Scale(zero=False, nice=False, padding=14),
    )
    y = alt.Y("loss", type=Q, axis=labels(tickCount=5), scale=alt.Scale(zero=False))
    colour = alt.Color(
        "rank", type=Q, scale=alt.Scale(domain=[0, 1], range=[colours.parent, colours.fork])
    )
    dash = dash_by_name("spiked", SPIKED, [[1, 0], [4, 3]])
    tips = [
        alt.Tooltip("step", type=Q, format=",d", title="batch"),
        alt.Tooltip("state", type=N),
        alt.Tooltip("loss", type=Q, format=".3f"),
        alt.Tooltip("placebo", type=Q, format=".3f", title="placebo batches"),
        alt.Tooltip("spiked", type=N, title="window"),
    ]
    rows = alt.Chart(named("curves"))
    lines = rows.mark_line(strokeWidth=1.7).encode(x, y, colour, dash, alt.Detail("state", type=N))
    dots = rows.mark_point(filled=True, size=26, opacity=1).encode(x, y, colour, tooltip=tips)
    words = end_words("ends", x, "loss", colour, dx=-6)
    return template(alt.layer(lines, dots, *words), dark, height=230, canvas=True)


@cached
def jumps(dark: bool) -> dict[str, Any]:
    """Probe loss after the window over that after as many placebo batches, by the state that both
    were run from.
    """
    colours = palette(dark)
    x = alt.X(
        "state",
        type=N,
        sort=None,
        axis=alt.Axis(title="state", labelAngle=0, labelOverlap=True, ticks=False),
    )
    y = alt.Y("jump", type=Q, axis=labels(tickCount=5, format="+.3~f"), scale=alt.Scale(zero=True))
    colour = by_name("spiked", SPIKED, colours=[colours.fast, colours.parent])
    shape = shape_by_name("spiked", SPIKED, ["triangle-down", "circle"])
    tips = [
        alt.Tooltip("state", type=N),
        alt.Tooltip("jump", type=Q, format="+.4f", title="probe loss, nats/token"),
        alt.Tooltip("spiked", type=N, title="window"),
    ]
    rows = alt.Chart(named("jumps"))
    zero = alt.Chart(named("zero")).mark_rule(color=colours.parent).encode(alt.Y("jump", type=Q))
    stems = rows.mark_rule(strokeWidth=1.4).encode(x, y, alt.Y2("zero"), colour)
    dots = rows.mark_point(filled=True, size=90, opacity=1).encode(
        x, y, colour, shape, tooltip=tips
    )
    return template(alt.layer(zero, stems, dots), dark, height=230)
