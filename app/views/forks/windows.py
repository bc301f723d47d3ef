"""Data or state, over several steps: a whole window of batches run from each of several states.
Does it spike from there too?
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from app import documents as kept
from app import formatting, jobs, safe_html, theme
from app.safe_html import Part, strong
from app.views.forks import matrix_charts

if TYPE_CHECKING:
    import pyarrow


def measured(run: str) -> list[tuple[float, str, dict[str, Any]]]:
    """(when, name, document) of the windows that were run, newest first; of the same one, the
    newest.

    Some are documents in the run's folder, some only the answer to a command that this app started.
    """
    found = [(kept.written(run, name), name, d) for name, d in kept.documents(run, "windows")]
    for w in jobs.listed(run):
        if (
            w.program == "replay"
            and w.arguments[:1] == ("matrix",)
            and "--window" in w.arguments
            and w.status == "done"
        ):
            document = w.result()
            if isinstance(document, dict) and document.get("run") == run:
                found.append(((w.folder / "result.json").stat().st_mtime, w.id, document))
    newest: dict[str, tuple[float, str, dict[str, Any]]] = {}
    for each in sorted((f for f in found if f[2].get("windows")), key=lambda f: -f[0]):
        newest.setdefault(f"{each[2]['batches']} {each[2]['states']}", each)
    return list(newest.values())


def label_of(d: Mapping[str, Any]) -> str:
    return f"the whole window {d['batches'][0]}:{d['batches'][1]} from {_states(len(d['windows']))}"


def draw(d: Mapping[str, Any]) -> None:
    """The sentence, the losses on the way, what is left in the state, each state's row."""
    safe_html.verdict(
        title_of(d),
        *sentence_of(d),
        hedge=[
            "It spikes where its highest loss lies more than 6 robust σ above the placebo batches"
            " that were run from the same state, or is not finite. From every state: the batches"
            " carry it. From some only: the state has a part in it."
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
        "placebo batches": number(format="%.3f", help="median loss, from the same state"),
        "σ": number(format="%.1f"),
        "probe loss after": number(
            format="%+.3f", help="nats/token, over that after as many placebo batches"
        ),
        "•": st.column_config.TextColumn(
            width=24, help="the state had already been trained on some of these batches"
        ),
    }
    safe_html.frame(rows, key="windows-rows", column_config=columns, tallest=320)


def title_of(d: Mapping[str, Any]) -> str:
    """`Batches 396:406 of demo, all of them run from 3 states: a spike from 396 and 200, none from
    50`.
    """
    spiked, calm = (
        [w["state"] for w in d["windows"] if bool(w["spiked"]) is which] for which in (True, False)
    )
    n = len(d["windows"])
    if not spiked:
        outcome = "no spike" if n == 1 else "no spike from any of them"
    elif not calm:
        outcome = "a spike" if n == 1 else "a spike from each of them"
    else:
        outcome = f"a spike from {_listed(spiked)}, none from {_listed(calm)}"
    return (
        f"Batches {d['batches'][0]}:{d['batches'][1]} of {d['run']}, all of them run from"
        f" {_states(n)}: {outcome}"
    )


def _states(n: int) -> str:
    return f"{n} {'state' if n == 1 else 'states'}"


def _listed(states: Sequence[int]) -> str:
    return formatting.listed([formatting.count(s) for s in states], 6)


def sentence_of(d: Mapping[str, Any]) -> list[Part]:
    """The highest and the lowest peak, with their σ; what is left in the states afterwards."""
    order = sorted(d["windows"], key=_height)
    said: list[Part] = ["Highest loss ", *_peak(order[-1])]
    if len(order) > 1:
        said += ["; least of all ", *_peak(order[0])]
    said.append(". ")
    jumps = sorted((w for w in d["windows"] if w["jump"] is not None), key=lambda w: w["jump"])
    if not jumps:
        return [*said, "The run holds nothing out, so what is left in the state was not measured."]
    said += [
        "Afterwards the probe loss is ",
        strong(formatting.gap(jumps[-1]["jump"])),
        f" (from {formatting.count(jumps[-1]['state'])})",
    ]
    if len(jumps) > 1:
        said += [
            " to ",
            strong(formatting.gap(jumps[0]["jump"])),
            f" (from {formatting.count(jumps[0]['state'])})",
        ]
    return [*said, " nats/token over that after as many placebo batches: what stays in the state."]


def _height(w: Mapping[str, Any]) -> float:
    """Its highest loss; one that is not finite (null) is the highest of all."""
    return math.inf if w["peak"] is None else w["peak"]


def _peak(w: Mapping[str, Any]) -> list[Part]:
    size = (
        f", {formatting.sigma(w['sigma'])} above the placebo batches"
        if w["sigma"] is not None
        else ""
    )
    return [
        strong("not finite" if w["peak"] is None else formatting.loss(w["peak"])),
        f" from state {formatting.count(w['state'])}{size}",
    ]


def rows_of(d: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "•": "•" if w["consumed"] else "",
            "state": w["state"],
            "spikes": "yes" if w["spiked"] else "no",
            "highest loss": w["peak"],
            "placebo batches": w["placebo_median"],
            "σ": w["sigma"],
            "probe loss after": w["jump"],
        }
        for w in d["windows"]
    ]


def curves_of(d: Mapping[str, Any], most: int = theme.STEPS_MOST) -> list[dict[str, Any]]:
    """Marks of the losses, by state and batch; of a longer window, the highest of each stretch.
    What is not finite has none.
    """
    windows, first = d["windows"], d["batches"][0]
    width = max(1, math.ceil(len(windows) * (d["batches"][1] - first) / most))
    rows = []
    for i, w in enumerate(windows):
        about = {
            "state": f"{w['state']:,}",
            "placebo": w["placebo_median"],
            "spiked": _word(w),
            "rank": i / max(1, len(windows) - 1),
        }
        points = [(first + k, x) for k, x in enumerate(w["losses"]) if x is not None]
        stretches: dict[int, tuple[int, float]] = {}
        for step, x in points:
            at = (step - first) // width
            if at not in stretches or x > stretches[at][1]:
                stretches[at] = (step, x)
        rows += [about | {"step": step, "loss": x} for step, x in stretches.values()]
    return rows


def ends_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The words on the chart: the highest and the lowest of the states' peaks, as in the
    sentence.
    """
    peaks: dict[str, Mapping[str, Any]] = {}
    for r in rows:
        if r["state"] not in peaks or r["loss"] > peaks[r["state"]]["loss"]:
            peaks[r["state"]] = r
    order = sorted(peaks.values(), key=lambda r: r["loss"])
    two = [order[-1], order[0]] if len(order) > 1 else order
    return theme.below(
        [
            {"step": r["step"], "loss": r["loss"], "rank": r["rank"], "word": f"from {r['state']}"}
            for r in two
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
        "Loss of each batch on the way (nats/token) · grey the earliest state, blue the latest ·"
        " dashed: no spike from there"
    )
    theme.draw(
        matrix_charts.windows(safe_html.dark()),
        {"curves": _table(rows, schema), "ends": _table(ends_of(rows), words_schema)},
        key="windows-losses",
    )


def _jumps(d: Mapping[str, Any]) -> None:
    import pyarrow as pa

    rows = [
        {"state": f"{w['state']:,}", "jump": w["jump"], "zero": 0.0, "spiked": _word(w)}
        for w in d["windows"]
        if w["jump"] is not None
    ]
    if not rows:
        safe_html.nothing(
            "This run holds nothing out, so there is no probe loss after the window.",
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
        "Probe loss after the window, over that after as many placebo batches (nats/token) · ▼"
        " spikes from there, ● does not"
    )
    theme.draw(
        matrix_charts.jumps(safe_html.dark()),
        {"jumps": _table(rows, schema), "zero": pa.table({"jump": [0.0]})},
        key="windows-jumps",
    )


def _table(rows: list[dict[str, Any]], schema: pyarrow.Schema) -> pyarrow.Table:
    import pyarrow as pa

    return pa.Table.from_pylist(rows, schema)
