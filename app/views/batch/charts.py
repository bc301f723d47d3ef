"""The Batch page: the sequences of one batch by loss.

Named data: `bars` (place, place2, slot, shown, loss, share, level, source, path), `chosen` (place,
shown), `lines` (value, what): the batch losses before, and ln V; `tokens` (position, position2,
loss, level, reads), `here` (position).
"""

from __future__ import annotations

from typing import Any

import altair as alt

from app.theme import N, O, Q, cached, heat_with_quiet, named, palette, template

STRENGTHS = (
    0.12,
    0.2,
    0.3,
    0.42,
    0.56,
    0.74,
    0.95,
)  # of a token's bar; the text's own, but for the lowest, which is seen too

QUIET = {False: "#c9ccd3", True: "#3a3d47"}  # a sequence that stands within 3σ


@cached
def sequences(dark: bool) -> dict[str, Any]:
    """Draw a bar per sequence, highest loss first, coloured by its z against the steps before."""
    colours = palette(dark)
    across = alt.Axis(title=None, tickMinStep=1, grid=False, labels=False, ticks=False)
    x = alt.X("place", type=Q, axis=across, scale=alt.Scale(nice=False, zero=True))
    loss = alt.Axis(title=None, tickCount=4, minExtent=34)
    tips = [
        alt.Tooltip("slot", type=Q),
        alt.Tooltip("sequence", type=Q, format=",d"),
        alt.Tooltip("loss", type=N),
        alt.Tooltip("share", type=Q, format=".0%", title="of the excess"),
        alt.Tooltip("z", type=Q, format="+.1f", title="σ"),
        alt.Tooltip("source", type=N),
        alt.Tooltip("path", type=N),
    ]
    at = alt.selection_point(name="bar", fields=["slot"], on="click", clear="dblclick")
    bars = (
        alt.Chart(named("bars"))
        .mark_rect(stroke=None, cursor="pointer", cornerRadiusTopLeft=2, cornerRadiusTopRight=2)
        .encode(
            x,
            alt.X2("place2"),
            alt.Y("shown", type=Q, axis=loss),
            alt.Y2("zero"),
            alt.Color("level", type=O, scale=heat_with_quiet(colours, QUIET[dark])),
            tooltip=tips,
        )
        .add_params(at)
    )
    lines = (
        alt.Chart(named("lines"))
        .mark_rule(strokeDash=[4, 3], color=colours.ink, opacity=0.7)
        .encode(alt.Y("value", type=Q, axis=loss))
    )
    words = (
        alt.Chart(named("lines"))
        .mark_text(align="right", dx=-4, dy=-6, fontSize=10, color=colours.ink, opacity=0.85)
        .encode(
            alt.XDatum({"expr": "last"}, type=Q),
            alt.Y("value", type=Q, axis=loss),
            alt.Text("what", type=N),
        )
    )
    chosen = (
        alt.Chart(named("chosen"))
        .mark_rect(fill=None, stroke=colours.ink, strokeWidth=2)
        .encode(x, alt.X2("place2"), alt.Y("shown", type=Q, axis=loss), alt.Y2("zero"))
    )
    return template(alt.layer(bars, lines, words, chosen), dark, height=140, canvas=True)


@cached
def tokens(dark: bool) -> dict[str, Any]:
    """Draw a bar per token of one sequence, in the order and colours of the text."""
    colours = palette(dark)
    x = alt.X(
        "position",
        type=Q,
        axis=alt.Axis(title=None, grid=False, tickMinStep=1),
        scale=alt.Scale(domain={"expr": "positions"}, nice=False, zero=False),
    )
    loss = alt.Axis(title=None, tickCount=4, minExtent=34)
    tips = [
        alt.Tooltip("place", type=Q, title="position"),
        alt.Tooltip("after", type=N),
        alt.Tooltip("reads", type=N, title="token"),
        alt.Tooltip("loss", type=Q, format=".3f"),
    ]
    strengths = [f"rgba(226, 88, 0, {a})" for a in STRENGTHS]
    bars = (
        alt.Chart(named("tokens"))
        .mark_rect(stroke=None, cursor="pointer")
        .encode(
            x,
            alt.X2("position2"),
            alt.Y("loss", type=Q, axis=loss),
            alt.Y2("zero"),
            alt.Color(
                "level",
                type=O,
                scale=alt.Scale(domain=list(range(len(strengths))), range=strengths),
            ),
            tooltip=tips,
        )
        .add_params(
            alt.selection_point(name="token", fields=["place"], on="click", clear="dblclick")
        )
    )
    top = (
        alt.Chart(named("top"))
        .mark_rule(strokeDash=[4, 3], color=colours.ink, opacity=0.7)
        .encode(alt.Y("value", type=Q, axis=loss))
    )
    here = (
        alt.Chart(named("here"))
        .mark_rect(fill=None, stroke=colours.ink, strokeWidth=1.6)
        .encode(x, alt.X2("position2"), alt.Y("loss", type=Q, axis=loss), alt.Y2("zero"))
    )
    return template(alt.layer(bars, top, here), dark, height=110, canvas=True)
