"""The Forks page: a fork beside its null forks, sweeps, the matrix of batches and states, blame's
deletion curve.

Named data: `arms` (step, value, arm, kind), `bands` (step, low, middle, high, kind), `ends` (step,
value, word, kind, below), `losses` (step, loss, arm), `cells` (begin, step, row, ratio, level, …),
`curves` (step, loss, state, …). To be `filled`: `bounds`, the steps shown; `rows` and `states`, in
their order.
"""

from __future__ import annotations

from typing import Any

import altair as alt

from app.theme import (
    STEP_TIP,
    N,
    O,
    Palette,
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
    within,
)

KINDS = ("fork", "placebo", "chaos")
SETS = ("probe set", "unseen")
FEWEST = 5  # null forks from which a band is drawn; fewer are drawn one by one
RATIOS = (2, 5, 10, 20)  # over the placebos' median; below the first, nothing is drawn


def _steps(axis: bool = True, field: str = "step") -> alt.X:
    shown = alt.Axis(title=None, labels=axis, ticks=axis, tickCount=8, format=",d", labelFlush=True)
    return alt.X(
        field,
        type=Q,
        axis=shown,
        scale=within("bounds"),
    )


def _colour(colours: Palette) -> alt.Color:
    return by_name("kind", KINDS, colours=[colours.fork, colours.parent, colours.slow])


def _dash() -> alt.StrokeDash:
    return dash_by_name("kind", KINDS, [[1, 0], [1, 0], [3, 3]])


def _over_nulls(
    y: alt.Y, low: alt.Y, colours: Palette, tips: list[alt.Tooltip], axis: bool
) -> alt.LayerChart | alt.FacetChart:
    """Draw the fork's line over the null forks or their bands, with a word at each end."""
    x = _steps(axis)
    bands = alt.Chart(named("bands"))
    band = bands.mark_area(opacity=0.28, line=False).encode(
        x, low, alt.Y2("high"), _colour(colours)
    )
    middle = bands.mark_line(strokeWidth=1.2, strokeDash=[4, 3]).encode(
        x, alt.Y("middle", type=Q), _colour(colours)
    )
    arms = alt.Chart(named("arms"))
    nulls = (
        arms.transform_filter("datum.kind != 'fork'")
        .mark_line(strokeWidth=1.1, opacity=0.9)
        .encode(x, y, _colour(colours), _dash(), alt.Detail("arm", type=N))
    )
    fork_line = (
        arms.transform_filter("datum.kind == 'fork'")
        .mark_line(strokeWidth=2)
        .encode(x, y, _colour(colours))
    )
    dots = arms.mark_point(filled=True, opacity=1).encode(
        x,
        y,
        _colour(colours),
        shape_by_name("kind", KINDS, ["circle", "square", "triangle-up"]),
        size=alt.condition("datum.kind == 'fork'", alt.value(28), alt.value(14)),
        tooltip=tips,
    )
    words = end_words("ends", x, "value", _colour(colours))
    back = alt.Chart(named("back")).mark_rule(strokeDash=[2, 3], color=colours.ink).encode(x)
    return alt.layer(band, middle, nulls, fork_line, dots, back, *words)


@cached
def distance(dark: bool, title: str, log: bool, axis: bool) -> dict[str, Any]:
    """How far each arm is from the control: KL or L2 on a log axis, or a signed loss gap."""
    colours = palette(dark)
    scale = alt.Scale(type="log", nice=True) if log else alt.Scale(zero=True)
    shown = labels(tickCount=4 if log else 5, format="~g" if log else "+.3~f")
    tips = [
        STEP_TIP,
        alt.Tooltip("arm", type=N),
        alt.Tooltip("value", type=Q, format=".4~g" if log else "+.4f", title=title),
    ]
    y = alt.Y("value", type=Q, axis=shown, scale=scale)
    chart = _over_nulls(y, alt.Y("low", type=Q, axis=shown, scale=scale), colours, tips, axis)
    return template(chart, dark, height=(176 if log else 120) + (18 if axis else 0))


@cached
def gap(dark: bool) -> dict[str, Any]:
    """Loss gap of the fork on two sets, over the placebos' own gaps on the probe set; the zero line
    is the control.
    """
    colours = palette(dark)
    x = _steps(False)
    y = alt.Y("value", type=Q, axis=labels(tickCount=5, format="+.3~f"), scale=alt.Scale(zero=True))
    tips = [
        STEP_TIP,
        alt.Tooltip("arm", type=N),
        alt.Tooltip("set", type=N),
        alt.Tooltip("value", type=Q, format="+.4f", title="nats/token"),
    ]
    dash = dash_by_name("set", SETS, [[1, 0], [5, 3]])
    shape = shape_by_name("set", SETS, ["circle", "square"])
    zero = alt.Chart(named("zero")).mark_rule(color=colours.parent).encode(alt.Y("value", type=Q))
    band = (
        alt.Chart(named("bands"))
        .mark_area(opacity=0.28)
        .encode(
            x,
            alt.Y("low", type=Q, axis=labels(tickCount=5, format="+.3~f")),
            alt.Y2("high"),
            _colour(colours),
        )
    )
    arms = alt.Chart(named("gaps"))
    lines = arms.mark_line().encode(
        x,
        y,
        _colour(colours),
        dash,
        alt.Detail("arm", type=N),
        strokeWidth=alt.condition("datum.kind == 'fork'", alt.value(2), alt.value(1)),
    )
    dots = arms.mark_point(filled=True, opacity=1).encode(
        x,
        y,
        _colour(colours),
        shape,
        size=alt.condition("datum.kind == 'fork'", alt.value(26), alt.value(8)),
        tooltip=tips,
    )
    words = end_words("gap_ends", x, "value", _colour(colours))
    return template(alt.layer(zero, band, lines, dots, *words), dark, height=120)


@cached
def losses(dark: bool) -> dict[str, Any]:
    """Draw the loss of parent and fork, each on its own batches; spikes of the parent as marks."""
    colours = palette(dark)
    y = alt.Y("loss", type=Q, axis=labels(tickCount=5), scale=alt.Scale(zero=False))
    tips = [STEP_TIP, alt.Tooltip("arm", type=N), alt.Tooltip("loss", type=Q, format=".3f")]
    x, colour = (
        _steps(False),
        by_name("arm", ("parent", "fork"), colours=[colours.parent, colours.fork]),
    )
    rows = alt.Chart(named("losses"))
    line = rows.mark_line(strokeWidth=1.7).encode(x, y, colour)
    dots = rows.mark_point(opacity=0, size=50).encode(x, y, colour, tooltip=tips)
    begin = alt.Chart(named("begin")).mark_rule(strokeDash=[2, 3], color=colours.faint).encode(x)
    spikes = (
        alt.Chart(named("spikes"))
        .mark_point(
            filled=True, size=80, opacity=1, shape="triangle-down", color=colours.fast, yOffset=-9
        )
        .encode(x, y, tooltip=[STEP_TIP, alt.Tooltip("loss", type=Q, format=".3f", title="spike")])
    )
    return template(alt.layer(begin, line, dots, spikes), dark, height=130)


@cached
def layers(dark: bool, rows: int) -> dict[str, Any]:
    """Rectangles of layer and step: L2 over the placebos' median, in four steps of blue."""
    colours = palette(dark)
    order = alt.Y(
        "row",
        type=O,
        sort=None,
        axis=labels(ticks=False),
        scale=alt.Scale(domain={"expr": "rows"}, padding=0.06),
    )
    colour = alt.Color(
        "level", type=O, scale=alt.Scale(domain=[1, 2, 3, 4], range=list(colours.down[1:]))
    )
    tips = [
        STEP_TIP,
        alt.Tooltip("row", type=N, title="of"),
        alt.Tooltip("ratio", type=Q, format=",.1f", title="× placebos"),
        alt.Tooltip("l2", type=Q, format=".4~g", title="L2"),
        alt.Tooltip("placebo_l2", type=Q, format=".4~g", title="placebos' median"),
    ]
    cells = (
        alt.Chart(named("cells"))
        .mark_rect(stroke=None)
        .encode(_steps(field="begin"), alt.X2("step"), order, colour, tooltip=tips)
    )
    return template(alt.layer(cells), dark, height=max(34, 15 * rows) + 26, canvas=True)
