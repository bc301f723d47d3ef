"""Data or state? Each batch from each state, and what of it is the batch's, what the state's; or
all of them from each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import streamlit as st

from app import data, formatting, jobs, safe_html, theme
from app import documents as kept
from app.controls import switch
from app.safe_html import Part, strong
from app.selection import Selection, goto
from app.views.forks import matrix_charts, windows
from app.views.forks.build import window_of

if TYPE_CHECKING:
    import pyarrow

NEAR = 0.7  # of the largest part, from which another is named beside it
MEASURES = {
    "jump": "jump of the probe loss after one step",
    "loss": "loss of the batch",
    "grad_norm": "gradient norm",
}
UNITS = {"jump": "nats/token", "loss": "nats/token", "grad_norm": ""}


def matrices(run: str, selection: Selection) -> None:
    """The matrix or the window that the URL names, else what was measured last."""
    found = measured(run)
    if not found:
        first, last, states = _matrix_default(run, selection)
        safe_html.verdict(
            "Data or state: nothing has been measured yet",
            "Each batch of a window from each of several states: a column that stands out is the"
            " data, a row the state, a single cell the two together. Or the whole window from each"
            " state: does it spike from there too?",
        )
        safe_html.nothing(
            "From the command line:",
            f"replay matrix {run} --batches {first}:{last} --states {states}",
        )
        jobs.busy(run, "matrix")
        _matrix_form(run, selection)
        return
    document = kept.chosen(run, found, selection, _label)
    if document.get("windows"):
        windows.draw(document)
    else:
        _matrix(run, document, selection)
    jobs.busy(run, "matrix")
    _matrix_form(run, selection)


def measured(run: str) -> list[tuple[str, dict[str, Any]]]:
    """(its name, the document) of the matrices and the windows of a run, newest first."""
    found = [
        (kept.written(run, name), name, d)
        for name, d in kept.documents(run, "matrix")
        if d.get("cells")
    ]
    return [(name, d) for _, name, d in sorted(found + windows.measured(run), key=lambda f: -f[0])]


def _label(d: dict[str, Any]) -> str:
    if d.get("windows"):
        return windows.label_of(d)
    return f"batches {d['batches'][0]}:{d['batches'][1]} from {len(d['states'])} states"


def _matrix(run: str, document: dict[str, Any], selection: Selection) -> None:
    measure = (
        selection.metric
        if selection.metric in MEASURES and document["effects"].get(str(selection.metric))
        else _first_measure(document)
    )
    safe_html.verdict(
        matrix_title(document, measure),
        *matrix_sentence(document, measure),
        hedge=[
            "A cell is one step from that state on that batch, less what the placebo batches do"
            " from there. A column: the data. A row: the state. Outlined: what happened."
        ],
    )
    switch(
        "Measure",
        MEASURES,
        measure,
        key="matrix-measure",
        choose=lambda name: goto(run=run, metric=name),
    )
    _matrix_charts(document, measure)


def _first_measure(d: Mapping[str, Any]) -> str:
    return next((m for m in MEASURES if d["effects"].get(m)), "loss")


def matrix_title(d: Mapping[str, Any], measure: str) -> list[Part]:
    """`Batches 396:406 of demo: the data (12× the placebo batches' scale), not the state (2×)`."""
    effects = d["effects"].get(measure)
    title = (
        f"Batches {d['batches'][0]}:{d['batches'][1]} of {d['run']} from {len(d['states'])} states"
    )
    if not effects:
        return [f"{title}: a cell is missing or not finite, so nothing is split"]
    size, over = effects["size"], effects["over_placebo"]
    names = {"data": "the data", "state": "the state", "interaction": "the two together"}
    order = sorted(names, key=lambda k: -size[k])
    if over[order[0]] is not None and over[order[0]] < theme.THRESHOLDS[0]:
        return [f"{title}: nothing stands out from the placebo batches"]
    near = [names[k] for k in order if size[k] >= NEAR * size[order[0]]]
    what = (
        f"{near[0]} above all"
        if len(near) == 1
        else (
            " as much as ".join(near[:2])
            if len(near) == 2
            else "data, state and the two together alike"
        )
    )
    return [
        f"{title}: {what}",
        (
            f" ({formatting.ratio(over[order[0]])} the placebo batches' scale)"
            if over[order[0]] is not None
            else ""
        ),
    ]


def matrix_sentence(d: Mapping[str, Any], measure: str) -> list[Part]:
    """Size of each part, and the batch and the state that stand out most."""
    effects = d["effects"].get(measure)
    if not effects:
        return []
    unit = f" {UNITS[measure]}" if UNITS[measure] else ""
    said: list[Part] = [f"Of the {MEASURES[measure]}: "]
    for i, (key, name) in enumerate(
        {"data": "data", "state": "state", "interaction": "interaction"}.items()
    ):
        over = effects["over_placebo"][key]
        said += [
            "; " if i else "",
            f"{name} ",
            strong(f"{formatting.number(effects['size'][key])}{unit}"),
            f" ({formatting.ratio(over)})" if over is not None else "",
        ]
    top = max(effects["data"], key=lambda e: abs(e["effect"]))
    row = max(effects["state"], key=lambda e: abs(e["effect"]))
    said += [
        ". Farthest: batch ",
        strong(formatting.count(top["step"])),
        f" ({formatting.gap(top['effect'])} from any state), state ",
        strong(formatting.count(row["state"])),
        f" ({formatting.gap(row['effect'])} with any batch). {d['placebos']} placebo batches.",
    ]
    return said


def level_of(over: float | None) -> int:
    """−5 … 5: how many of theme.THRESHOLDS a value over the placebo scale passes, with its sign."""
    if over is None:
        return 0
    passed = sum(abs(over) >= t for t in theme.THRESHOLDS)
    return passed if over > 0 else -passed


def cells_of(d: Mapping[str, Any], measure: str, part: str) -> list[dict[str, Any]]:
    """Marks of one part: all | interaction by batch and state, data by batch, state by state;
    values over the placebo scale.
    """
    effects = d["effects"].get(measure) or {}
    scale = effects.get("placebo_scale")
    places = {(c["state"], c["step"]): c for c in d["cells"]}

    def mark(state: int | None, step: int | None, value: float | None) -> dict[str, Any]:
        cell = places.get((state, step), {}) if state is not None and step is not None else {}
        over = value / scale if value is not None and scale else None
        own = state is not None and state == step
        note = (
            "what happened"
            if own
            else "the state was already trained on this batch"
            if cell.get("consumed")
            else ""
        )
        return {
            "state": "α" if state is None else f"{state:,}",
            "step": step,
            "value": value,
            "over": over,
            "level": level_of(over),
            "consumed": bool(cell.get("consumed")),
            "own": own,
            "note": note,
        }

    if part == "data":
        return [mark(None, e["step"], e["effect"]) for e in effects.get("data", [])]
    if part == "state":
        return [mark(e["state"], None, e["effect"]) for e in effects.get("state", [])]
    if part == "interaction":
        return [mark(e["state"], e["step"], e["effect"]) for e in effects.get("interaction", [])]
    usual = {"jump": 0.0}
    return [
        mark(
            c["state"],
            c["step"],
            (
                None
                if c[measure] is None
                else c[measure] - usual.get(measure, c.get(f"{measure}_placebo") or 0.0)
            ),
        )
        for c in d["cells"]
    ]


def _table(rows: list[dict[str, Any]]) -> pyarrow.Table:
    import pyarrow as pa

    schema = pa.schema(
        [
            ("state", pa.string()),
            ("step", pa.int64()),
            ("value", pa.float64()),
            ("over", pa.float64()),
            ("level", pa.int32()),
            ("consumed", pa.bool_()),
            ("own", pa.bool_()),
            ("note", pa.string()),
        ]
    )
    return pa.Table.from_pylist(rows, schema)


def _matrix_charts(d: Mapping[str, Any], measure: str) -> None:
    """The whole, with its margins: α below it, σ beside it; then what is neither."""
    states = [f"{s:,}" for s in d["states"]]
    unit = f"{MEASURES[measure]}{', ' + UNITS[measure] if UNITS[measure] else ''}"

    def draw(
        part: str, names: list[str], key: str, axis: bool = True, margin: bool = False
    ) -> None:
        spec = theme.filled(
            matrix_charts.matrix(safe_html.dark(), len(names), unit, axis, margin), states=names
        )
        theme.draw(spec, {"cells": _table(cells_of(d, measure, part))}, key=key)

    safe_html.caption(
        f"{unit[:1].upper()}{unit[1:]}, less the placebo batches' median · colour: 3, 6, 10, 20, 40"
        " times their scale · • the state had already been trained on the batch"
    )
    left, middle, right = st.columns([1, 0.09, 1], gap="small")
    with left:
        safe_html.caption(
            "Batch × state; below it α, the batch from any state; beside it σ, the state with any"
            " batch"
        )
        draw("all", states, "matrix-all")
        draw("data", ["α"], "matrix-data", axis=False)
    with middle:
        safe_html.caption("\u00a0")
        draw("state", states, "matrix-state", margin=True)
    with right:
        safe_html.caption("γ: what is left, batch and state together")
        draw("interaction", states, "matrix-interaction")
    if not (d["effects"].get(measure) or {}).get("placebo_scale"):
        safe_html.note(
            "The placebo batches do not differ among themselves, so there is no scale and nothing"
            " is coloured; the values stand in the tooltips."
        )


def _matrix_default(run: str, selection: Selection) -> tuple[int, int, str]:
    first, _ = window_of(run, selection)
    spike = selection.spike if selection.spike is not None else selection.step
    middle = spike if spike is not None else first
    reached = data.reached(run) or 8
    middle = min(middle, reached)
    low, high = max(0, middle - 4), min(reached, middle + 4)
    low = min(low, high - 1)
    states = sorted({max(0, middle // 2), max(0, low - 16), *range(low, high, 2)})
    return max(0, low), high, ",".join(str(s) for s in states)


def _matrix_form(run: str, selection: Selection) -> None:
    safe_html.heading("Measure")
    first, last, states = _matrix_default(run, selection)
    with st.form("matrix-form", border=False):
        columns = st.columns([1, 1, 2])
        low = columns[0].number_input(
            "From batch", 0, value=first, key=f"matrix-from-{run}-{first}"
        )
        high = columns[1].number_input("To batch", 1, value=last, key=f"matrix-to-{run}-{last}")
        which = columns[2].text_input(
            "States",
            states,
            key=f"matrix-states-{run}-{states}",
            help="Any steps, not only checkpoints.",
        )
        whole = st.checkbox(
            "The whole window from each state, instead of one step on each batch",
            key="matrix-window",
            help=(
                "Does it spike from there too? The losses on the way, and what is left in the"
                " state."
            ),
        )
        if st.form_submit_button("Start the matrix"):
            jobs.start(run, "replay", arguments_of(run, int(low), int(high), which, whole))
            st.rerun()


def arguments_of(run: str, low: int, high: int, states: str, whole: bool) -> list[str]:
    """Of `replay matrix`: one step on each batch from each state, or the whole window from each."""
    return [
        "matrix",
        run,
        "--batches",
        f"{low}:{high}",
        f"--states={states}",
        *(["--window"] if whole else []),
    ]
