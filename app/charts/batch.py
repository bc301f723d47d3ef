"""The Batch page: the sequences of one batch by loss.

Named data: `bars` (place, place2, slot, shown, loss, share, apart, source, path), `chosen` (place, shown), `lines`
(value, what): the batch losses before, and ln V.
"""

from __future__ import annotations

from typing import Any

import altair as alt

from app.charts.theme import cached, named, palette, template

Q, N = "quantitative", "nominal"


@cached
def sequences(dark: bool) -> dict[str, Any]:
    """A bar per sequence, the highest loss on the left; those apart from the steps before are coloured; a click picks one."""
    p = palette(dark)
    across = alt.Axis(title=None, tickMinStep=1, grid=False, labels=False, ticks=False)
    x = alt.X("place", type=Q, axis=across, scale=alt.Scale(nice=False, zero=True))
    loss = alt.Axis(title=None, tickCount=4, minExtent=34)
    tips = [alt.Tooltip("slot", type=Q), alt.Tooltip("sequence", type=Q, format=",d"),
            alt.Tooltip("loss", type=N), alt.Tooltip("share", type=Q, format=".0%", title="of the excess"),
            alt.Tooltip("source", type=N), alt.Tooltip("path", type=N)]  # fmt: skip
    at = alt.selection_point(name="bar", fields=["slot"], on="click", clear="dblclick")
    bars = (
        alt.Chart(named("bars"))
        .mark_rect(stroke=None, cursor="pointer", cornerRadiusTopLeft=2, cornerRadiusTopRight=2)
        .encode(
            x, alt.X2("place2"), alt.Y("shown", type=Q, axis=loss), alt.Y2("zero"),
            color=alt.condition("datum.apart", alt.value(p.fast), alt.value(p.parent)),
            opacity=alt.condition("datum.apart", alt.value(0.95), alt.value(0.55)), tooltip=tips,
        )
        .add_params(at)
    )  # fmt: skip
    lines = alt.Chart(named("lines")).mark_rule(strokeDash=[4, 3], color=p.ink, opacity=0.7).encode(
        alt.Y("value", type=Q, axis=loss))  # fmt: skip
    said = alt.Chart(named("lines")).mark_text(align="right", dx=-4, dy=-6, fontSize=10, color=p.ink, opacity=0.85).encode(
        alt.XDatum({"expr": "last"}, type=Q), alt.Y("value", type=Q, axis=loss), alt.Text("what", type=N))  # fmt: skip
    chosen = alt.Chart(named("chosen")).mark_rect(fill=None, stroke=p.ink, strokeWidth=2).encode(
        x, alt.X2("place2"), alt.Y("shown", type=Q, axis=loss), alt.Y2("zero"))  # fmt: skip
    return template(alt.layer(bars, lines, said, chosen), dark, height=140, canvas=True)
