"""Data or state? Each batch from each state, and what of it is the batch's, what the state's; or
all of them from each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import streamlit as st

from app import data, documents, formatting, jobs, safe_html, theme
from app.controls import switch
from app.safe_html import Part, spoken, strong
from app.selection import Selection, goto
from app.views.forks import matrix_charts, windows
from app.views.forks.build import window_of
from replay.compare.null_test import ENOUGH_P
from replay.experiments.matrix_text import beside_blame, headline
from replay.experiments.results import MatrixResult

if TYPE_CHECKING:
    import pyarrow

MEASURES = {
    "loss": "loss of the batch",
    "jump": "rise of the probe loss after one step",
    "grad_norm": "gradient norm",
}
UNITS = {"jump": "nats/token", "loss": "nats/token", "grad_norm": ""}
PARTS = {"data": "the batch (data)", "state": "the state", "interaction": "the two together"}


def matrices(run: str, selection: Selection) -> None:
    """Draw the matrix or the window that the URL names, else what was measured last."""
    documents.draw_unreadable(run, "matrix")
    documents.draw_unreadable(run, "windows")
    measurements = measured(run)
    if not measurements:
        first, last = _matrix_default(run, selection)
        safe_html.verdict(
            "Data or state has not been measured yet",
            "A matrix holds each batch of a window against each of several states of the model. A"
            " column that stands out points to the data, a row to the state, a single cell to the"
            " two together. Or it trains the whole window from each state: does it spike from there"
            " too?",
        )
        safe_html.nothing(
            "This command measures it:", f"replay matrix {run} --batches {first}:{last}"
        )
        jobs.busy(run, "matrix")
        _matrix_form(run, selection)
        return
    document = documents.choose(run, measurements, selection, _label)
    if document.get("windows"):
        windows.draw(document)
    else:
        _matrix(run, document, selection)
    jobs.busy(run, "matrix")
    _matrix_form(run, selection)


def measured(run: str) -> list[documents.Document]:
    """Return the matrices and the windows of a run, newest first."""
    matrices = [
        (documents.written(run, document.name), document)
        for document in documents.documents(run, "matrix")
        if document.content.get("cells")
    ]
    newest_first = sorted(matrices + windows.measured(run), key=lambda dated: -dated[0])
    return [document for _, document in newest_first]


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
        matrix_title(document),
        *matrix_sentence(document, measure),
        hedge=[
            "A cell is a batch at a state, minus what random other batches (placebos) are there. A"
            " column that stands out points to the data, a row to the state. Outlined: what"
            " happened in the run."
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
    return next((name for name in MEASURES if d["effects"].get(name)), "loss")


def matrix_title(d: Mapping[str, Any]) -> str:
    """Say what the rise is made of, or that it cannot be told: the conclusion of the record."""
    return headline(MatrixResult.from_document(dict(d), "the matrix"))


def matrix_sentence(d: Mapping[str, Any], measure: str) -> list[Part]:
    """Say how large each part of the measure is, with its p; then what blame said of the spike."""
    effects, beside = (
        d["effects"].get(measure),
        beside_blame(MatrixResult.from_document(dict(d), "the matrix")),
    )
    if not effects:
        return [f"The {MEASURES[measure]} cannot be taken apart. ", *spoken(beside)]
    unit = f" {UNITS[measure]}" if UNITS[measure] else ""
    sentence: list[Part] = [
        f"The {MEASURES[measure]} at state {formatting.count(effects['judged'])}, held against"
        f" {len(effects['state']) - 1} other states and {d['placebos']} random other batches: "
    ]
    for index, effect in enumerate(effects["parts"]):
        sentence += ["; " if index else "", f"{PARTS[effect['part']]} "]
        if effect["rise"] is None:
            sentence.append("not judged")
            continue
        step = f"batch {formatting.count(effect['step'])}, " if effect["step"] is not None else ""
        sentence += [
            strong(f"{formatting.gap(effect['rise'])}{unit}"),
            f" ({step}p = {formatting.number(effect['p'])}{_at_best(effect)})",
        ]
    return [*sentence, ". ", *spoken(beside)]


def _at_best(part: Mapping[str, Any]) -> str:
    """Say what p could be at best, where that would not do."""
    best = part["p_at_best"]
    return f"; {formatting.number(best)} at best" if best is not None and best > ENOUGH_P else ""


def states_of(d: Mapping[str, Any], measure: str) -> list[int]:
    """Return the states that a measure was taken at: not all took a step."""
    return list(d["states"] if measure == "loss" else d["jump_states"])


def level_of(over: float | None) -> int:
    """−5 … 5: how many of theme.THRESHOLDS a value over the placebo scale passes, with its sign."""
    if over is None:
        return 0
    passed = sum(abs(over) >= threshold for threshold in theme.THRESHOLDS)
    return passed if over > 0 else -passed


def cells_of(d: Mapping[str, Any], measure: str, part: str) -> list[dict[str, Any]]:
    """Return the marks of one part, values over the placebo scale.

    The part is all or interaction by batch and state, data by batch, or state by state.
    """
    effects = d["effects"].get(measure) or {}
    scale = effects.get("placebo_scale")
    places = {(cell_row["state"], cell_row["step"]): cell_row for cell_row in d["cells"]}

    def mark(state: int | None, step: int | None, value: float | None) -> dict[str, Any]:
        cell = places.get((state, step), {}) if state is not None and step is not None else {}
        over = value / scale if value is not None and scale else None
        happened = state is not None and state == step
        note = (
            "what happened in the run"
            if happened
            else "the state was already trained on this batch: left out of the parts"
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
            "own": happened,
            "note": note,
        }

    if part == "data":
        return [mark(None, effect["step"], effect["effect"]) for effect in effects.get("data", [])]
    if part == "state":
        return [
            mark(effect["state"], None, effect["effect"]) for effect in effects.get("state", [])
        ]
    if part == "interaction":
        return [
            mark(effect["state"], effect["step"], effect["effect"])
            for effect in effects.get("interaction", [])
        ]
    usual = {"jump": 0.0}
    return [
        mark(
            cell_row["state"],
            cell_row["step"],
            (
                None
                if cell_row[measure] is None
                else cell_row[measure]
                - usual.get(measure, cell_row.get(f"{measure}_placebo") or 0.0)
            ),
        )
        for cell_row in d["cells"]
        if cell_row["state"] in states_of(d, measure)
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
    """Draw the matrix with its margins: α below it, σ beside it; then what is neither."""
    states = [f"{state:,}" for state in states_of(d, measure)]
    unit = f"{MEASURES[measure]}{', ' + UNITS[measure] if UNITS[measure] else ''}"

    def draw(
        part: str, names: list[str], key: str, axis: bool = True, margin: bool = False
    ) -> None:
        spec = theme.filled(
            matrix_charts.matrix(safe_html.dark(), len(names), unit, axis, margin), states=names
        )
        theme.draw(spec, {"cells": _table(cells_of(d, measure, part))}, key=key)

    safe_html.caption(
        f"{unit[:1].upper()}{unit[1:]}, minus the median of random other batches · colour from"
        " 3, 6,"
        " 10, 20 and 40 times their spread · • the state had already been trained on the batch"
    )
    left, middle, right = st.columns([1, 0.09, 1], gap="small")
    with left:
        safe_html.caption(
            "Each batch at each state · below: α, over the other states · beside: σ, random batches"
        )
        draw("all", states, "matrix-all")
        draw("data", ["α"], "matrix-data", axis=False)
    with middle:
        safe_html.caption("\u00a0")
        draw("state", states, "matrix-state", margin=True)
    with right:
        safe_html.caption("γ: what neither batch nor state explains alone")
        draw("interaction", states, "matrix-interaction")
    if not (d["effects"].get(measure) or {}).get("placebo_scale"):
        safe_html.note(
            "The random other batches do not differ among themselves, so nothing is coloured."
            " Point at a cell to see its value."
        )


def _matrix_default(run: str, selection: Selection) -> tuple[int, int]:
    first, _ = window_of(run, selection)
    spike = selection.spike if selection.spike is not None else selection.step
    middle = spike if spike is not None else first
    reached = data.reached(run) or 8
    middle = min(middle, reached)
    low, high = max(0, middle - 4), min(reached, middle + 4)
    return max(0, min(low, high - 1)), high


def _matrix_form(run: str, selection: Selection) -> None:
    safe_html.heading("Measure")
    first, last = _matrix_default(run, selection)
    with st.form("matrix-form", border=False):
        columns = st.columns([1, 1, 2])
        low = columns[0].number_input(
            "First batch", 0, value=first, key=f"matrix-from-{run}-{first}"
        )
        high = columns[1].number_input("Up to batch", 1, value=last, key=f"matrix-to-{run}-{last}")
        which = columns[2].text_input(
            "States",
            key=f"matrix-states-{run}",
            placeholder="the spike's own, and 20 before it",
            help=(
                "Numbers of steps, with commas between; they need not be checkpoints. The latest is"
                " judged by the others, its rise only where they are evenly spaced."
            ),
        )
        window = st.checkbox(
            "Train the whole window from each state, instead of holding each batch against it",
            key="matrix-window",
            help=(
                "Shows whether it spikes from there too, the losses on the way, and how much the"
                " held-out loss has risen after it."
            ),
        )
        if st.form_submit_button("Start the matrix"):
            jobs.start(run, "replay", arguments_of(run, int(low), int(high), which, window))
            st.rerun()


def arguments_of(run: str, low: int, high: int, states: str, whole: bool) -> list[str]:
    """Of `replay matrix`: each batch at each state, or the whole window from each.

    No states: the command chooses them.
    """
    return [
        "matrix",
        run,
        "--batches",
        f"{low}:{high}",
        *([f"--states={states}"] if states.strip() else []),
        *(["--window"] if whole else []),
    ]
