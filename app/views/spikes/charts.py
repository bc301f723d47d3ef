"""The Spikes page: the whole run, then panels on one axis of steps from the spike.

Named data: `band` (step, step2, low, high, mean), `spikes` (step, value, kind, …), `window` (first,
last), `steps`, `dots`, `cells` (row, offset, offset2, level, …), `alarms`, `bounds` (first and last
offset, so that panels align).
"""

from __future__ import annotations

from typing import Any

import altair as alt

from app.theme import (
    STEP_TIP,
    N,
    O,
    Q,
    cached,
    heat_colour,
    kind_colour,
    kind_shape,
    labels,
    named,
    palette,
    template,
    within,
)


def _offsets(axis: bool) -> alt.X:
    signed = "datum.value == 0 ? '0' : format(datum.value, '+d')"
    shown = alt.Axis(
        title=None, labels=axis, ticks=axis, tickCount=10, labelExpr=signed, labelFlush=False
    )
    return alt.X(
        "offset",
        type=Q,
        axis=shown,
        scale=within("bounds"),
    )


@cached
def overview(dark: bool) -> dict[str, Any]:
    """Draw the whole run: band from smallest to largest loss, a mark for each spike by kind."""
    colours = palette(dark)
    x = alt.X(
        "step",
        type=Q,
        axis=alt.Axis(title=None, format=",d", tickCount=14),
        scale=alt.Scale(nice=False, zero=False),
    )
    loss = alt.Axis(title=None, tickCount=4, minExtent=34)
    window = (
        alt.Chart(named("window"))
        .mark_rect(color=colours.shade)
        .encode(alt.X("first", type=Q, scale=alt.Scale(nice=False, zero=False)), alt.X2("last"))
    )
    band = (
        alt.Chart(named("band"))
        .mark_area(color=colours.band, opacity=0.35)
        .encode(x, alt.Y("low", type=Q, axis=loss, scale=alt.Scale(zero=False)), alt.Y2("high"))
    )
    line = (
        alt.Chart(named("band"))
        .mark_line(color=colours.line, strokeWidth=1.2)
        .encode(x, alt.Y("mean", type=Q, axis=loss))
    )
    at = alt.selection_point(
        name="spike", fields=["step"], nearest=True, on="click", clear="dblclick"
    )
    tips = [
        STEP_TIP,
        alt.Tooltip("value", type=Q, format=".3f", title="loss"),
        alt.Tooltip("kind", type=N),
        alt.Tooltip("sigma", type=Q, format=".0f", title="σ"),
    ]
    marks = (
        alt.Chart(named("spikes"))
        .mark_point(filled=True, size=90, opacity=1)
        .encode(
            x,
            alt.YValue(7),
            alt.Color("kind", type=N, scale=kind_colour(colours)),
            alt.Shape("kind", type=N, scale=kind_shape()),
            tooltip=tips,
        )
        .add_params(at)
    )
    chosen = (
        alt.Chart(named("chosen"))
        .mark_point(size=240, color=colours.ink, strokeWidth=1.4, opacity=1)
        .encode(x, alt.YValue(7))
    )
    return template(alt.layer(window, band, line, chosen, marks), dark, height=135)


def _at(colours: Any) -> alt.Chart:
    """Draw the step of the spike."""
    return (
        alt.Chart(named("here"))
        .mark_rule(color=colours.ink, strokeDash=[3, 3], strokeWidth=1.2)
        .encode(_offsets(False))
    )


@cached
def loss(dark: bool) -> dict[str, Any]:
    """Draw the batch's loss as a line, its sequences as dots; those far from the cloud coloured."""
    colours = palette(dark)
    y = alt.Y("loss", type=Q, axis=labels(tickCount=5), scale=alt.Scale(zero=False))
    tips = [
        STEP_TIP,
        alt.Tooltip("slot", type=Q),
        alt.Tooltip("sequence", type=Q, format=",d"),
        alt.Tooltip("loss", type=Q, format=".3f"),
    ]
    apart = alt.condition("datum.apart", alt.value(colours.fast), alt.value(colours.parent))
    strong = alt.condition("datum.apart", alt.value(0.95), alt.value(0.22))
    size = alt.condition("datum.apart", alt.value(26), alt.value(9))
    dots = (
        alt.Chart(named("dots"))
        .mark_point(filled=True, clip=True)
        .encode(_offsets(False), y, color=apart, opacity=strong, size=size, tooltip=tips)
    )
    line = (
        alt.Chart(named("steps"))
        .mark_line(color=colours.ink, strokeWidth=1.6, clip=True)
        .encode(_offsets(False), y)
    )
    return template(alt.layer(dots, line, _at(colours)), dark, height=150, canvas=True)


@cached
def grad_norm(dark: bool, axis: bool = False) -> dict[str, Any]:
    """Before clipping; `axis`: it is the lowest of its column, so the steps stand under it."""
    colours = palette(dark)
    y = alt.Y(
        "grad_norm",
        type=Q,
        axis=labels(tickCount=4, format="~g"),
        scale=alt.Scale(type="log", nice=True),
    )
    tips = [
        STEP_TIP,
        alt.Tooltip("grad_norm", type=Q, format=".3~g"),
        alt.Tooltip("clip_scale", type=Q, format=".3~g"),
    ]
    line = (
        alt.Chart(named("steps"))
        .mark_line(color=colours.line, strokeWidth=1.5, clip=True)
        .encode(_offsets(axis), y)
    )
    points = (
        alt.Chart(named("steps"))
        .mark_point(opacity=0, size=60, clip=True)
        .encode(_offsets(axis), y, tooltip=tips)
    )
    return template(
        alt.layer(line, points, _at(colours)), dark, height=88 + (18 if axis else 0), canvas=True
    )


@cached
def heat(dark: bool, rows: int, axis: bool, click: tuple[str, ...] = ()) -> dict[str, Any]:
    """Rectangles of |z| ≥ 3 by row and step, first alarms as diamonds; `click` names the fields
    that a click tells.
    """
    colours = palette(dark)
    order = alt.Y(
        "row",
        type=O,
        sort=None,
        axis=labels(),
        scale=alt.Scale(domain={"expr": "rows"}, padding=0.06),
    )
    tips = [
        STEP_TIP,
        alt.Tooltip("row", type=N, title="of"),
        alt.Tooltip("value", type=Q, format=".4~g"),
        alt.Tooltip("baseline", type=Q, format=".4~g", title="its past"),
        alt.Tooltip("z", type=Q, format="+.1f", title="σ"),
    ]
    cells = (
        alt.Chart(named("cells"))
        .mark_rect(stroke=None, clip=True)
        .encode(
            _offsets(axis),
            alt.X2("offset2"),
            order,
            alt.Color("level", type=O, scale=heat_colour(colours)),
            tooltip=tips,
        )
    )
    if click:
        cells = cells.add_params(
            alt.selection_point(name="cell", fields=[*click, "step"], on="click", clear="dblclick")
        )
    first = (
        alt.Chart(named("alarms"))
        .mark_point(
            shape="diamond",
            filled=True,
            clip=True,
            size=42,
            color=colours.ink,
            stroke=colours.background,
            strokeWidth=1,
            opacity=1,
        )
        .encode(_offsets(axis), order, tooltip=tips[:2])
    )
    return template(
        alt.layer(cells, first, _at(colours)),
        dark,
        height=max(34, 13 * rows) + (26 if axis else 8),
        canvas=True,
    )


@cached
def alarms(dark: bool, rows: int) -> dict[str, Any]:
    """First alarms by lead: a line from the alarm to the spike."""
    colours = palette(dark)
    wide = alt.Axis(title=None, ticks=False, minExtent=170, maxExtent=170, labelLimit=168)
    order = alt.Y("row", type=O, sort=None, axis=wide, scale=alt.Scale(domain={"expr": "rows"}))
    x = alt.X(
        "lead",
        type=Q,
        axis=alt.Axis(title=None, tickMinStep=1, tickCount=6),
        scale=alt.Scale(reverse=True, nice=False, domain={"expr": "leads"}),
    )
    tips = [
        STEP_TIP,
        alt.Tooltip("lead", type=Q),
        alt.Tooltip("row", type=N, title="of"),
        alt.Tooltip("value", type=Q, format=".4~g"),
        alt.Tooltip("z", type=Q, format="+.1f", title="σ"),
    ]
    stem = (
        alt.Chart(named("alarms"))
        .mark_rule(color=colours.parent, strokeWidth=1.6)
        .encode(x, alt.X2("spike"), order)
    )
    head = (
        alt.Chart(named("alarms"))
        .mark_point(shape="diamond", filled=True, size=70, color=colours.fast, opacity=1)
        .encode(x, order, tooltip=tips)
    )
    return template(alt.layer(stem, head), dark, height=16 * max(rows, 2) + 26)
