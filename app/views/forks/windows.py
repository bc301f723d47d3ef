"""Data or state, over several steps: a whole window of batches run from each of several states.
Does it spike from there too?
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from app import documents, formatting, jobs, safe_html, theme
from app.safe_html import Part, strong
from app.views.forks import matrix_charts

if TYPE_CHECKING:
    import pyarrow


def measured(run: str) -> list[tuple[float, documents.Document]]:
    """Return the windows that were trained and when, newest first; of the same one, the newest.

    Some are documents in the run's folder, some only the answer to a command that this app started.
    """
    dated = [
        (documents.written(run, document.name), document)
        for document in documents.documents(run, "windows")
    ]
    for job in jobs.listed(run):
        matrix = job.program == "replay" and job.arguments[:1] == ("matrix",)
        if matrix and "--window" in job.arguments and job.status == "done":
            content = documents.with_numbers(job.result())
            if isinstance(content, dict) and content.get("run") == run:
                when = (job.folder / "result.json").stat().st_mtime
                dated.append((when, documents.Document(job.id, content)))
    newest: dict[str, tuple[float, documents.Document]] = {}
    for when, document in sorted(dated, key=lambda pair: -pair[0]):
        content = document.content
        if content.get("windows"):
            newest.setdefault(f"{content['batches']} {content['states']}", (when, document))
    return list(newest.values())


def label_of(d: Mapping[str, Any]) -> str:
    """Name a window in the list to pick from."""
    return f"the window {d['batches'][0]}:{d['batches'][1]} from {_states(len(d['windows']))}"


def draw(d: Mapping[str, Any]) -> None:
    """Draw the sentence, the losses on the way, what stays in the model, and a row per state."""
    safe_html.verdict(
        title_of(d),
        *sentence_of(d),
        hedge=[
            "It counts as a spike where the highest loss is not finite or lies more than 6 robust"
            " standard deviations (σ) above random other batches trained from the same state. A"
            " spike from every state points to the batches; from some states only, the state has a"
            " part in it."
        ],
    )
    left, right = st.columns([1.5, 1], gap="medium")
    with left:
        _curves(d)
    with right:
        _jumps(d)
    rows = rows_of(d)
    number = st.column_config.NumberColumn
    columns = {
        "highest loss": number(format="%.3f"),
        "placebo batches": number(
            format="%.3f", help="median loss of random other batches, from the same state"
        ),
        "σ": number(format="%.1f"),
        "probe loss after": number(
            format="%+.3f",
            help="nats/token above that after as many random other batches",
        ),
        "•": st.column_config.TextColumn(
            width=24, help="•: the state had already been trained on some of these batches"
        ),
    }
    safe_html.frame(rows, key="windows-rows", column_config=columns, tallest=320)


def title_of(d: Mapping[str, Any]) -> str:
    """Say from which states the window spikes."""
    spiked, calm = (
        [window["state"] for window in d["windows"] if bool(window["spiked"]) is which]
        for which in (True, False)
    )
    count = len(d["windows"])
    if not spiked:
        outcome = "no spike" if count == 1 else "no spike from any of them"
    elif not calm:
        outcome = "a spike" if count == 1 else "a spike from each of them"
    else:
        outcome = f"a spike from {_listed(spiked)}, none from {_listed(calm)}"
    return (
        f"Batches {d['batches'][0]}:{d['batches'][1]} of {d['run']}, trained from"
        f" {_states(count)}: {outcome}"
    )


def _states(n: int) -> str:
    return f"{n} {'state' if n == 1 else 'states'}"


def _listed(states: Sequence[int]) -> str:
    return formatting.listed([formatting.count(state) for state in states], 6)


def sentence_of(d: Mapping[str, Any]) -> list[Part]:
    """Say the highest and the lowest peak, with their σ, and what stays in the model."""
    order = sorted(d["windows"], key=_height)
    sentence: list[Part] = ["The highest loss on the way is ", *_peak(order[-1])]
    if len(order) > 1:
        sentence += ["; the lowest of these peaks is ", *_peak(order[0])]
    sentence.append(". ")
    jumps = sorted(
        (window for window in d["windows"] if window["jump"] is not None),
        key=lambda window: window["jump"],
    )
    if not jumps:
        return [
            *sentence,
            "The run has no held-out probe set, so what stays in the model was not measured.",
        ]
    sentence += [
        "After the window the held-out loss is ",
        strong(formatting.gap(jumps[-1]["jump"])),
        f" (from {formatting.count(jumps[-1]['state'])})",
    ]
    if len(jumps) > 1:
        sentence += [
            " to ",
            strong(formatting.gap(jumps[0]["jump"])),
            f" (from {formatting.count(jumps[0]['state'])})",
        ]
    return [*sentence, " nats/token above that after as many random other batches."]


def _height(w: Mapping[str, Any]) -> float:
    """Return its highest loss; one that is not finite is the highest of all."""
    return w["peak"] if documents.is_finite(w["peak"]) else math.inf


def _peak(w: Mapping[str, Any]) -> list[Part]:
    size = (
        f", {formatting.sigma(w['sigma'])} above random other batches"
        if w["sigma"] is not None
        else ""
    )
    return [
        strong(formatting.loss(w["peak"]) if documents.is_finite(w["peak"]) else "not finite"),
        f" from state {formatting.count(w['state'])}{size}",
    ]


def rows_of(d: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row of the table for each state."""
    return [
        {
            "•": "•" if window["consumed"] else "",
            "state": window["state"],
            "spikes": "yes" if window["spiked"] else "no",
            "highest loss": window["peak"],
            "placebo batches": window["placebo_median"],
            "σ": window["sigma"],
            "probe loss after": window["jump"],
        }
        for window in d["windows"]
    ]


def curves_of(d: Mapping[str, Any], most: int = theme.STEPS_MOST) -> list[dict[str, Any]]:
    """Return the marks of the losses, by state and batch.

    Of a longer window the highest of each stretch; what is not finite has none.
    """
    windows, first = d["windows"], d["batches"][0]
    width = max(1, math.ceil(len(windows) * (d["batches"][1] - first) / most))
    rows = []
    for index, window in enumerate(windows):
        about = {
            "state": f"{window['state']:,}",
            "placebo": window["placebo_median"],
            "spiked": _word(window),
            "rank": index / max(1, len(windows) - 1),
        }
        points = [
            (first + place, loss)
            for place, loss in enumerate(window["losses"])
            if documents.is_finite(loss)
        ]
        stretches: dict[int, tuple[int, float]] = {}
        for step, loss in points:
            at = (step - first) // width
            if at not in stretches or loss > stretches[at][1]:
                stretches[at] = (step, loss)
        rows += [about | {"step": step, "loss": loss} for step, loss in stretches.values()]
    return rows


def ends_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the words on the chart: the highest and the lowest of the states' peaks."""
    peaks: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row["state"] not in peaks or row["loss"] > peaks[row["state"]]["loss"]:
            peaks[row["state"]] = row
    order = sorted(peaks.values(), key=lambda row: row["loss"])
    two = [order[-1], order[0]] if len(order) > 1 else order
    return theme.below(
        [
            {
                "step": row["step"],
                "loss": row["loss"],
                "rank": row["rank"],
                "word": f"from {row['state']}",
            }
            for row in two
        ],
        "loss",
    )


def _word(w: Mapping[str, Any]) -> str:
    return "spikes" if w["spiked"] else "does not"


def _curves(d: Mapping[str, Any]) -> None:
    import pyarrow as pa

    rows = curves_of(d)
    if not rows:
        safe_html.nothing("No loss of these windows was finite.")
        return
    schema = pa.schema(
        [
            ("step", pa.int64()),
            ("loss", pa.float64()),
            ("state", pa.string()),
            ("placebo", pa.float64()),
            ("spiked", pa.string()),
            ("rank", pa.float64()),
        ]
    )
    words_schema = pa.schema(
        [
            ("step", pa.int64()),
            ("loss", pa.float64()),
            ("rank", pa.float64()),
            ("word", pa.string()),
            ("below", pa.bool_()),
        ]
    )
    safe_html.caption(
        "Loss of each batch on the way (nats/token) · grey: from the earliest state, blue: from the"
        " latest · dashed: no spike from there"
    )
    theme.draw(
        matrix_charts.windows(safe_html.dark()),
        {"curves": _table(rows, schema), "ends": _table(ends_of(rows), words_schema)},
        key="windows-losses",
    )


def _jumps(d: Mapping[str, Any]) -> None:
    import pyarrow as pa

    rows = [
        {
            "state": f"{window['state']:,}",
            "jump": window["jump"],
            "zero": 0.0,
            "spiked": _word(window),
        }
        for window in d["windows"]
        if window["jump"] is not None
    ]
    if not rows:
        safe_html.nothing(
            "This run has no held-out probe set, so there is no probe loss after the window.",
            "forensics train … --set data.held_out=64  # a run with a probe set",
        )
        return
    schema = pa.schema(
        [
            ("state", pa.string()),
            ("jump", pa.float64()),
            ("zero", pa.float64()),
            ("spiked", pa.string()),
        ]
    )
    safe_html.caption(
        "Held-out loss after the window, above that after as many random other batches"
        " (nats/token) · ▼ it spikes from there · ● it does not"
    )
    theme.draw(
        matrix_charts.jumps(safe_html.dark()),
        {"jumps": _table(rows, schema), "zero": pa.table({"jump": [0.0]})},
        key="windows-jumps",
    )


def _table(rows: list[dict[str, Any]], schema: pyarrow.Schema) -> pyarrow.Table:
    import pyarrow as pa

    return pa.Table.from_pylist(rows, schema)
