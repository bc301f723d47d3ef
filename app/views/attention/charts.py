"""The Attention page: every head small on a grid, one head over time, its weights at three states,
the logit lens.

Named data: `heads` (layer, layer2, head, head2, level, label, …), `curves` (across, down, key),
`chosen` (one cell); `line` (offset, value, baseline), `here`; `cells` (key, key2, query, query2,
level, …), `row` (query, query2); `lens` (layer, loss, state), `reads` (position, position2, layer,
level, …), `column` (position, position2).
"""

from __future__ import annotations

from typing import Any

import altair as alt

from app.theme import N, O, Q, cached, heat_colour, heat_with_quiet, named, palette, template
from app.tokens import LEVELS

WEIGHTS = (0.01, 0.03, 0.1, 0.25, 0.5)  # of attention; below the first, nothing is drawn
STATES = ("before", "at", "after")  # with their shapes and colours


@cached
def heads(dark: bool, layers: int, heads: int) -> dict[str, Any]:
    """Draw a cell per head: its largest logit as a curve, its robust z at the step as colour."""
    colours = palette(dark)
    row = alt.Axis(
        title=None,
        values=[i + 0.5 for i in range(layers)],
        labelExpr="'L' + floor(datum.value)",
        grid=False,
        ticks=False,
        minExtent=26,
    )
    column = alt.Axis(
        title=None,
        values=[i + 0.5 for i in range(heads)],
        labelExpr="'H' + floor(datum.value)",
        grid=False,
        ticks=False,
        orient="top",
    )
    exact = {"nice": False, "zero": False}
    x = alt.X("head", type=Q, axis=column, scale=alt.Scale(domain=[0, heads], **exact))
    y = alt.Y("layer", type=Q, axis=row, scale=alt.Scale(domain=[layers, 0], **exact))
    cells = (
        alt.Chart(named("heads"))
        .mark_rect(stroke=colours.grid, strokeWidth=1, cursor="pointer")
        .encode(
            x,
            alt.X2("head2"),
            y,
            alt.Y2("layer2"),
            alt.Color("level", type=O, scale=heat_with_quiet(colours, "rgba(128, 128, 128, 0.06)")),
            tooltip=_head_tips(),
        )
        .add_params(
            alt.selection_point(name="cell", fields=["layer", "head"], on="click", clear="dblclick")
        )
    )
    curves = (
        alt.Chart(named("curves"))
        .mark_line(color=colours.ink, strokeWidth=1.1, opacity=0.85, tooltip=None)
        .encode(
            alt.X("across", type=Q, axis=column),
            alt.Y("down", type=Q, axis=row),
            alt.Detail("key", type=O),
        )
    )
    shown = alt.layer(cells, curves)
    if layers * heads <= 128:
        shown += (
            alt.Chart(named("heads"))
            .mark_text(align="left", baseline="top", dx=5, dy=4, fontSize=10, color=colours.ink)
            .encode(x, y, alt.Text("label", type=N))
        )
    shown += (
        alt.Chart(named("chosen"))
        .mark_rect(fill=None, stroke=colours.ink, strokeWidth=2.5)
        .encode(x, alt.X2("head2"), y, alt.Y2("layer2"))
    )
    return template(shown, dark, height=34 + layers * (44 if layers <= 8 else 24), canvas=True)


def _head_tips() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("name", type=N, title="head"),
        alt.Tooltip("attn_logit_max", type=Q, format=".4~g", title="largest logit"),
        alt.Tooltip("baseline", type=Q, format=".4~g", title="its past"),
        alt.Tooltip("z", type=Q, format="+.1f", title="σ"),
        alt.Tooltip("attn_entropy_norm", type=Q, format=".3f", title="entropy / log keys"),
        alt.Tooltip("baseline_entropy", type=Q, format=".3f", title="… its past"),
    ]


@cached
def over_time(dark: bool, unit: str) -> dict[str, Any]:
    """One statistic of one head around the step; dashed: the median of its own past."""
    colours = palette(dark)
    axis = alt.Axis(title=None, tickCount=4, minExtent=40, format="~g")
    x = alt.X(
        "offset",
        type=Q,
        axis=alt.Axis(title=None, format="+d", tickCount=8),
        scale=alt.Scale(nice=False, zero=False),
    )
    y = alt.Y("value", type=Q, axis=axis, scale=alt.Scale(zero=False))
    tips = [
        alt.Tooltip("step", type=Q, format=",d"),
        alt.Tooltip("value", type=Q, format=".4~g", title=unit),
        alt.Tooltip("z", type=Q, format="+.1f", title="σ"),
    ]
    line = alt.Chart(named("line")).mark_line(color=colours.line, strokeWidth=1.5).encode(x, y)
    past = (
        alt.Chart(named("line"))
        .mark_line(color=colours.faint, strokeDash=[4, 3], strokeWidth=1)
        .encode(x, alt.Y("baseline", type=Q, axis=axis, scale=alt.Scale(zero=False)))
    )
    points = alt.Chart(named("line")).mark_point(opacity=0, size=60).encode(x, y, tooltip=tips)
    here = alt.Chart(named("here")).mark_rule(color=colours.ink, strokeDash=[3, 3]).encode(x)
    return template(alt.layer(past, line, here, points), dark, height=116, canvas=True)


@cached
def weights(dark: bool, positions: int, click: bool) -> dict[str, Any]:
    """Attention from each query (down) to each key (across) by the thresholds of WEIGHTS;
    differences have a sign.
    """
    colours = palette(dark)
    exact = {"nice": False, "zero": False}
    axis = {"tickCount": 6, "grid": False, "title": None, "tickMinStep": 1}
    across = {
        "axis": alt.Axis(orient="top", **axis),
        "scale": alt.Scale(domain=[0, positions], **exact),
    }
    down = {
        "axis": alt.Axis(minExtent=26, **axis),
        "scale": alt.Scale(domain=[positions, 0], **exact),
    }
    x, y = alt.X("key", type=Q, **across), alt.Y("query", type=Q, **down)
    tips = [
        alt.Tooltip("query", type=Q),
        alt.Tooltip("reads", type=N, title="token"),
        alt.Tooltip("key", type=Q),
        alt.Tooltip("looks", type=N, title="attends to"),
        alt.Tooltip("weight", type=Q, format="+.3f" if not click else ".3f"),
        alt.Tooltip("score", type=Q, format=".4~g", title="logit" if click else "change of logit"),
    ]
    half = (
        alt.Chart(named("half"))
        .mark_area(color=colours.faint, opacity=0.07, tooltip=None)
        .encode(x, y, alt.Y2("below"))
    )
    cells = (
        alt.Chart(named("cells"))
        .mark_rect(stroke=None)
        .encode(
            x,
            alt.X2("key2"),
            y,
            alt.Y2("query2"),
            alt.Color("level", type=O, scale=heat_colour(colours)),
            tooltip=tips,
        )
    )
    if click:
        cells = cells.add_params(
            alt.selection_point(name="pair", fields=["query"], on="click", clear="dblclick")
        )
    row = (
        alt.Chart(named("row"))
        .mark_rect(fill=None, stroke=colours.ink, strokeWidth=1.2)
        .encode(alt.X("zero", type=Q, **across), alt.X2("all"), y, alt.Y2("query2"))
    )
    return template(alt.layer(half, cells, row), dark, height=300, canvas=True)


def state_colours(colours: Any) -> alt.Scale:
    """Return the colour of each of the three states."""
    return alt.Scale(domain=list(STATES), range=[colours.parent, colours.fast, colours.fork])


@cached
def lens(dark: bool, layers: int) -> dict[str, Any]:
    """Mean loss read out of the embedding and after each layer, a line for each state."""
    colours = palette(dark)
    names = "datum.value < 0.5 ? 'emb' : 'L' + (datum.value - 1)"
    x = alt.X(
        "layer",
        type=Q,
        axis=alt.Axis(title=None, labelExpr=names, values=list(range(layers + 1)), grid=False),
        scale=alt.Scale(domain=[0, layers], nice=False),
    )
    y = alt.Y(
        "loss",
        type=Q,
        axis=alt.Axis(title=None, tickCount=5, minExtent=34),
        scale=alt.Scale(zero=False),
    )
    tips = [alt.Tooltip("state", type=Q, format=",d"), alt.Tooltip("loss", type=Q, format=".3f")]
    shape = alt.Shape(
        "when",
        type=N,
        scale=alt.Scale(domain=list(STATES), range=["circle", "triangle-down", "square"]),
    )
    colour = alt.Color("when", type=N, scale=state_colours(colours))
    lines = (
        alt.Chart(named("lens"))
        .mark_line(strokeWidth=1.8)
        .encode(x, y, colour, alt.Detail("state", type=Q))
    )
    points = (
        alt.Chart(named("lens"))
        .mark_point(filled=True, size=60, opacity=1)
        .encode(x, y, colour, shape, tooltip=tips)
    )
    return template(alt.layer(lines, points), dark, height=190)


ORANGE = (0.0, 0.12, 0.24, 0.38, 0.54, 0.72, 0.92)  # the opacities of the tokens
WORSE = {False: "#8f0a1f", True: "#ffd166"}  # above ln V: where a token would be underlined


@cached
def reads(dark: bool, layers: int, positions: int) -> dict[str, Any]:
    """Layers by positions: the loss of the token that follows, read out there, on the tokens' seven
    strengths.
    """
    colours = palette(dark)
    assert len(ORANGE) == LEVELS
    names = "datum.value < 1 ? 'emb' : 'L' + (floor(datum.value) - 1)"
    exact = {"nice": False, "zero": False}
    row = alt.Axis(
        title=None,
        values=[i + 0.5 for i in range(layers + 1)],
        labelExpr=names,
        grid=False,
        ticks=False,
        minExtent=34,
    )
    x = alt.X(
        "position",
        type=Q,
        axis=alt.Axis(title=None, grid=False, tickMinStep=1),
        scale=alt.Scale(domain=[0, positions], **exact),
    )
    down = {"axis": row, "scale": alt.Scale(domain=[layers + 1, 0], **exact)}
    y = alt.Y("layer", type=Q, **down)
    strengths = [f"rgba(226, 88, 0, {a})" for a in ORANGE] + [WORSE[dark]]
    cells = (
        alt.Chart(named("reads"))
        .mark_rect(stroke=None)
        .encode(
            x,
            alt.X2("position2"),
            y,
            alt.Y2("layer2"),
            alt.Color(
                "level", type=O, scale=alt.Scale(domain=list(range(LEVELS + 1)), range=strengths)
            ),
            tooltip=_read_tips(),
        )
        .add_params(
            alt.selection_point(name="read", fields=["position"], on="click", clear="dblclick")
        )
    )
    column = (
        alt.Chart(named("column"))
        .mark_rect(fill=None, stroke=colours.ink, strokeWidth=1.2)
        .encode(x, alt.X2("position2"), alt.Y("zero", type=Q, **down), alt.Y2("all"))
    )
    return template(
        alt.layer(cells, column),
        dark,
        height=max(120, min(360, 22 * (layers + 1) + 30)),
        canvas=True,
    )


def _read_tips() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("position", type=Q),
        alt.Tooltip("reads", type=N),
        alt.Tooltip("follows", type=N, title="is followed by"),
        alt.Tooltip("loss", type=Q, format=".3f", title="loss read out"),
        alt.Tooltip("predicts", type=N, title="likeliest"),
        alt.Tooltip("top_p", type=Q, format=".2f", title="its probability"),
    ]
