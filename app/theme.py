"""Colours, sizes and the way from an Altair chart to what Streamlit draws: a data-free dictionary,
made once.

    @cached
    def loss(dark: bool) -> dict:
        return template(alt.Chart(NamedData("loss")).mark_line().encode(alt.X("step",
        type="quantitative")), dark)

    draw(loss(dark()), {"loss": table}, key="loss", on_select=callback)

Every channel names its type; no field is called `image` (Vega's tooltip fetches it). Altair, not
SQL, is slow: a shorthand chart costs 80 ms a time, a cached template 3 to 8.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import altair as alt

if TYPE_CHECKING:
    import pyarrow

cached = functools.lru_cache(64)
Q: Final = "quantitative"
O: Final = "ordinal"
N: Final = "nominal"
STEPS_MOST = 20_000  # rectangles in one chart; more are rolled up by maximum in SQL
THRESHOLDS = (3, 6, 10, 20, 40)  # of the robust z; below the first, nothing is drawn
# pixels kept for the labels of y, in every chart of a column, so that their steps lie under each
# other
LABELS = 150


@dataclass(frozen=True)
class Palette:
    """One theme. Warm: above the row's own past; blue: below. The strongest is what stands out most
    from the page.
    """

    ink: str
    faint: str
    grid: str
    background: str
    line: str  # a run that is looked at
    band: str
    parent: str = "#8a8a8a"  # and control
    fork: str = "#0072b2"
    batch: str = "#c99700"  # kinds of spikes, each with its own shape too
    fast: str = "#d55e00"
    slow: str = "#7b3fa0"
    nonfinite: str = "#c01048"
    up: tuple[str, ...] = ()
    down: tuple[str, ...] = ()
    null: str = "#b5b5b5"
    shade: str = "rgba(213, 94, 0, .16)"
    # of a token: none, then the causes in the order of the Tokens page
    causes: tuple[str, ...] = (
        "#9aa0a8",
        "#d55e00",
        "#b8408f",
        "#0072b2",
        "#00875f",
        "#c98a00",
        "#7b3fa0",
    )


LIGHT = Palette(
    ink="#262730",
    faint="#6b6f7b",
    grid="#e6e8ee",
    background="#ffffff",
    line="#0068c9",
    band="#0068c9",
    up=("#fedfb6", "#fdb863", "#f1813f", "#c7361b", "#7a0403"),
    down=("#dbe9f6", "#a6cbe8", "#5ba3d3", "#2171b5", "#08306b"),
)
DARK = Palette(
    ink="#fafafa",
    faint="#a9adb8",
    grid="#31333b",
    background="#0e1117",
    line="#83c9ff",
    band="#83c9ff",
    parent="#9b9b9b",
    fork="#56b4e9",
    batch="#e6c229",
    fast="#ff7f0e",
    slow="#b57edc",
    nonfinite="#ff5c8a",
    up=("#4d3313", "#8a520f", "#d07f1b", "#f6ae42", "#ffe08a"),
    down=("#14304a", "#1c4d7a", "#2b78b5", "#62a8dc", "#bfe0ff"),
    null="#6c6c6c",
    shade="rgba(255, 127, 14, .22)",
    causes=("#7d838c", "#ff7f0e", "#ef8fcb", "#56b4e9", "#2fc79a", "#f0c040", "#b57edc"),
)

KINDS = ("batch", "fast", "slow", "nonfinite", "sampled")
SHAPES = ("square", "triangle-down", "diamond", "cross", "circle")


def palette(dark: bool) -> Palette:
    """Return the colours of the light or the dark theme."""
    return DARK if dark else LIGHT


def kind_colour(p: Palette) -> alt.Scale:
    """Return the colour of each kind of spike."""
    return alt.Scale(domain=list(KINDS), range=[p.batch, p.fast, p.slow, p.nonfinite, p.slow])


def kind_shape() -> alt.Scale:
    """Return the shape of each kind of spike."""
    return alt.Scale(domain=list(KINDS), range=list(SHAPES))


def heat_colour(p: Palette) -> alt.Scale:
    """Colour of `level`, −5 … 5: which threshold of THRESHOLDS |z| passed, with the sign of z."""
    return alt.Scale(
        type="ordinal", domain=[-5, -4, -3, -2, -1, 1, 2, 3, 4, 5], range=[*reversed(p.down), *p.up]
    )


def heat_with_quiet(p: Palette, quiet: str) -> alt.Scale:
    """Return the heat with a colour for level 0: what stands within its own past."""
    scale = heat_colour(p).to_dict()
    return alt.Scale(type="ordinal", domain=[*scale["domain"], 0], range=[*scale["range"], quiet])


def template(
    chart: alt.TopLevelMixin, dark: bool, *, height: int, canvas: bool = False
) -> dict[str, Any]:
    """Return the chart as a themed dictionary without data; `canvas`: for many hundred marks."""
    colours = palette(dark)
    spec = chart.to_dict(validate=False)  # type: ignore[attr-defined]
    spec.pop("datasets", None)
    spec["height"], spec["width"] = height, "container"
    spec["autosize"] = {"type": "fit", "contains": "padding"}
    spec["padding"] = {"left": 2, "right": 8, "top": 4, "bottom": 2}
    spec["background"] = "transparent"
    spec["usermeta"] = {
        "embedOptions": {"renderer": "canvas" if canvas else "svg", "actions": False}
    }
    axis = {
        "gridColor": colours.grid,
        "domain": False,
        "tickColor": colours.grid,
        "labelColor": colours.faint,
        "titleColor": colours.faint,
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "labelLimit": LABELS,
    }
    spec["config"] = {
        "axis": axis,
        "view": {"stroke": None},
        "legend": {"disable": True},
        "font": "Source Sans, sans-serif",
    }
    return spec  # type: ignore[no-any-return]


def named(name: str) -> alt.NamedData:
    """Name the data that a page gives a template."""
    return alt.NamedData(name=name)


def labels(**options: Any) -> alt.Axis:
    """Return the axis of y in a column of aligned charts, as wide in each of them."""
    return alt.Axis(
        **{
            "minExtent": LABELS,
            "maxExtent": LABELS,
            "title": None,
            "ticks": False,
            "labelPadding": 4,
            **options,
        }
    )


STEP_TIP = alt.Tooltip("step", type=Q, format=",d")


def within(domain: str) -> alt.Scale:
    """Return a scale whose domain is the expression `domain`, to be `filled`."""
    return alt.Scale(nice=False, zero=False, domain={"expr": domain})


def by_name(field: str, domain: Sequence[str], *, colours: Sequence[str]) -> alt.Color:
    """Return a colour for each name of a field."""
    return alt.Color(field, type=N, scale=alt.Scale(domain=list(domain), range=list(colours)))


def shape_by_name(field: str, domain: Sequence[str], shapes: Sequence[str]) -> alt.Shape:
    """Return a shape for each name of a field."""
    return alt.Shape(field, type=N, scale=alt.Scale(domain=list(domain), range=list(shapes)))


def dash_by_name(
    field: str, domain: Sequence[str], dashes: Sequence[Sequence[int]]
) -> alt.StrokeDash:
    """Return a dash for each name of a field; [1, 0] is a whole line."""
    return alt.StrokeDash(field, type=N, scale=alt.Scale(domain=list(domain), range=list(dashes)))


def end_words(name: str, x: alt.X, value: str, colour: alt.Color, dx: int = -2) -> list[alt.Chart]:
    """Return layers with a word at the end of each line, under it where `below` says so."""
    rows = alt.Chart(named(name))
    place: dict[str, Any] = {"align": "right", "dx": dx, "fontSize": 11, "fontWeight": "bold"}
    return [
        rows.transform_filter(which)
        .mark_text(dy=dy, **place)
        .encode(x, alt.Y(value, type=Q), colour, text=alt.Text("word", type=N))
        for which, dy in (("!datum.below", -9), ("datum.below", 12))
    ]


def below(ends: list[dict[str, Any]], by: str = "value") -> list[dict[str, Any]]:
    """Put the lowest of several words at the ends of lines under its line, so that all are read."""
    lowest = min((end[by] for end in ends), default=None) if len(ends) > 1 else None
    return [end | {"below": end[by] == lowest} for end in ends]


def filled(template: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Return the template with what its scales name as {"expr": name} filled in."""

    def fill(node: Any) -> Any:
        if isinstance(node, dict):
            name = node.get("expr") if len(node) == 1 else None
            return (
                values[name]
                if name in values
                else {key: fill(value) for key, value in node.items()}
            )
        return [fill(value) for value in node] if isinstance(node, list) else node

    return fill(template)  # type: ignore[no-any-return]


def draw(
    spec: Mapping[str, Any],
    data: Mapping[str, pyarrow.Table],
    *,
    key: str,
    on_select: Callable[[], None] | None = None,
) -> Any:
    """Draw a template over named tables, text made visible. `on_select` reads
    `st.session_state[key]` with `picked`.
    """
    import streamlit as st

    from app.safe_html import readable

    datasets = {name: readable(rows) for name, rows in data.items()}
    return st.vega_lite_chart(
        {**spec, "datasets": datasets},
        key=key,
        theme=None,
        on_select=on_select or "ignore",
        width="stretch",
    )
