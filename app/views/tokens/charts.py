"""The Tokens page: indicator against exposure, one token over the checkpoints.

Named data: `points` (token, exposure, indicator, kind, …), `cells` (x, x2, y, y2, tokens),
`chosen`, `verified`, `line` (the rule's threshold); `kinds` (place, kind, word) for the legend;
`trajectory` (step, indicator, low, middle, high, …). To be `filled`: `bounds`, the steps shown, and
`counts`.
"""

from __future__ import annotations

from typing import Any

import altair as alt

from app.theme import (
    N,
    Palette,
    Q,
    by_name,
    cached,
    dash_by_name,
    labels,
    named,
    palette,
    shape_by_name,
    template,
    within,
)

KINDS = (
    "ok",
    "unreachable",
    "partial-utf8",
    "tokenizer-only",
    "merge-scaffold",
    "single-document",
    "forgotten",
)
SHAPES = ("circle", "triangle-up", "diamond", "square", "cross", "triangle-down", "triangle-right")
MOST = 20_000  # marks in one chart


def _colour(colours: Palette) -> alt.Color:
    return by_name("kind", KINDS, colours=colours.causes)


def _shape() -> alt.Shape:
    return shape_by_name("kind", KINDS, SHAPES)


@cached
def legend(dark: bool) -> dict[str, Any]:
    """Draw what the marks mean, each with how many there are."""
    colours = palette(dark)
    x = alt.X("place", type=Q, axis=None, scale=alt.Scale(domain=[0, len(KINDS)], nice=False))
    rows = alt.Chart(named("kinds"))
    marks = rows.mark_point(filled=True, size=75, opacity=1).encode(x, _colour(colours), _shape())
    words = rows.mark_text(align="left", dx=9, fontSize=12, color=colours.ink).encode(
        x, text=alt.Text("word", type=N)
    )
    return template(alt.layer(marks, words), dark, height=26)


@cached
def scatter(dark: bool, indicator: str) -> dict[str, Any]:
    """Draw indicator against log(1 + exposure), causes by colour and shape, verified ringed."""
    colours = palette(dark)
    axis = alt.Axis(
        title="times seen, log(1 + n)",
        format=",d",
        values=[0, 1, 3, 10, 30, 100, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9],
    )
    log1p = alt.Scale(type="symlog", constant=1, nice=False, padding=10)
    x = alt.X("exposure", type=Q, axis=axis, scale=log1p)
    y = alt.Y(
        "indicator",
        type=Q,
        axis=labels(tickCount=7, title=indicator, minExtent=34, maxExtent=34),
        scale=alt.Scale(zero=False, padding=10),
    )
    tips = [
        alt.Tooltip("token", type=Q, format="d", title="id"),
        alt.Tooltip("text", type=N),
        alt.Tooltip("exposure", type=Q, format=",d"),
        alt.Tooltip("indicator", type=Q, format=".4~g"),
        alt.Tooltip("documents", type=Q, format=",d"),
        alt.Tooltip("kind", type=N),
        alt.Tooltip("category", type=N),
    ]
    cells = (
        alt.Chart(named("cells"))
        .mark_rect(color=colours.causes[0])
        .encode(
            alt.X("x", type=Q, axis=axis, scale=log1p),
            alt.X2("x2"),
            alt.Y("y", type=Q),
            alt.Y2("y2"),
            alt.Opacity("tokens", type=Q, scale=alt.Scale(type="log", range=[0.25, 0.95])),
            tooltip=[alt.Tooltip("tokens", type=Q, format=",d", title="OK tokens")],
        )
    )
    at = alt.selection_point(name="token", fields=["token"], on="click", clear="dblclick")
    size = alt.condition("datum.kind == 'ok'", alt.value(16), alt.value(58))
    strong = alt.condition("datum.kind == 'ok'", alt.value(0.5), alt.value(0.95))
    points = (
        alt.Chart(named("points"))
        .mark_point(filled=True)
        .encode(x, y, _colour(colours), _shape(), size=size, opacity=strong, tooltip=tips)
        .add_params(at)
    )
    line = (
        alt.Chart(named("line"))
        .mark_rule(strokeDash=[4, 3], color=colours.faint)
        .encode(alt.Y("indicator", type=Q))
    )
    return template(
        alt.layer(cells, line, points, *_marked(x, colours)), dark, height=430, canvas=True
    )


def _marked(x: alt.X, colours: Palette) -> list[alt.Chart]:
    """Rings around verified tokens and the chosen one, which is named."""
    y = alt.Y("indicator", type=Q)
    rings = alt.Chart(named("verified")).mark_point(
        filled=False, size=150, strokeWidth=1.5, color=colours.nonfinite, opacity=1
    )
    chosen = alt.Chart(named("chosen")).mark_point(
        filled=False, size=330, strokeWidth=2, color=colours.ink, opacity=1
    )
    name = alt.Chart(named("chosen")).mark_text(
        align="left", dx=12, dy=-8, fontWeight="bold", color=colours.ink
    )
    return [
        rings.encode(x, y),
        chosen.encode(x, y),
        name.encode(x, y, text=alt.Text("text", type=N)),
    ]


@cached
def trajectory(dark: bool) -> dict[str, Any]:
    """One token's indicator over the checkpoints, over the 10–90 % band of tokens that nothing had
    reached by then.
    """
    colours = palette(dark)
    x = alt.X(
        "step",
        type=Q,
        axis=alt.Axis(title=None, format=",d", tickCount=6, labels=False),
        scale=within("bounds"),
    )
    y = alt.Y(
        "indicator",
        type=Q,
        axis=labels(tickCount=5, minExtent=44, maxExtent=44),
        scale=alt.Scale(zero=False),
    )
    tips = [
        alt.Tooltip("step", type=Q, format=",d"),
        alt.Tooltip("indicator", type=Q, format=".4~g"),
        alt.Tooltip("middle", type=Q, format=".4~g", title="never reached, median"),
        alt.Tooltip("unmet", type=Q, format=",d", title="of so many"),
    ]
    rows = alt.Chart(named("trajectory"))
    band = rows.mark_area(color=colours.null, opacity=0.4).encode(
        x,
        alt.Y("low", type=Q, axis=labels(tickCount=5, minExtent=44, maxExtent=44)),
        alt.Y2("high"),
    )
    middle = rows.mark_line(color=colours.parent, strokeDash=[4, 3], strokeWidth=1.2).encode(
        x, alt.Y("middle", type=Q)
    )
    line = rows.mark_line(color=colours.fork, strokeWidth=2).encode(x, y)
    dots = rows.mark_point(filled=True, size=45, color=colours.fork, opacity=1).encode(
        x, y, tooltip=tips
    )
    first = alt.Chart(named("seen")).mark_rule(strokeDash=[2, 3], color=colours.ink).encode(x)
    return template(alt.layer(band, middle, first, line, dots), dark, height=170)


@cached
def exposure(dark: bool) -> dict[str, Any]:
    """How often one token had been met by each checkpoint, on log(1 + n); `counts`: 0 and the
    most.
    """
    colours = palette(dark)
    x = alt.X(
        "step",
        type=Q,
        axis=alt.Axis(title=None, format=",d", tickCount=6),
        scale=within("bounds"),
    )
    y = alt.Y(
        "count",
        type=Q,
        axis=labels(
            format=",d",
            values=[0, 1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8],
            minExtent=44,
            maxExtent=44,
        ),
        scale=alt.Scale(type="symlog", constant=1, nice=False, domain={"expr": "counts"}),
    )
    kinds = ["as input", "as target"]
    colour = by_name("what", kinds, colours=[colours.fork, colours.parent])
    shape = shape_by_name("what", kinds, ["circle", "square"])
    dash = dash_by_name("what", kinds, [[1, 0], [4, 3]])
    rows = alt.Chart(named("exposures"))
    line = rows.mark_line(strokeWidth=1.6).encode(x, y, colour, dash)
    dots = rows.mark_point(filled=True, size=34, opacity=1).encode(
        x,
        y,
        colour,
        shape,
        tooltip=[
            alt.Tooltip("step", type=Q, format=",d"),
            alt.Tooltip("what", type=N),
            alt.Tooltip("count", type=Q, format=",d"),
        ],
    )
    return template(alt.layer(line, dots), dark, height=130)
