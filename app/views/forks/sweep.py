"""Over when? The same intervention at many steps, early against late."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import streamlit as st

from app import data, documents, formatting, jobs, safe_html, theme
from app.safe_html import Part, strong
from app.selection import Selection
from app.views.forks import sweep_charts
from app.views.forks.build import window_of
from app.views.forks.summary import OUTCOMES
from forensics.visible import visible
from replay.experiments.results import SweepResult, SweepRow
from replay.forks import toml_text

if TYPE_CHECKING:
    import pyarrow

HORIZON = 24  # steps of the fork file that the form begins with, at most


def sweeps(run: str, selection: Selection) -> None:
    """Draw the sweep that the URL names: size and reconvergence against the starting step."""
    documents.draw_unreadable(run, "sweep")
    measurements = [
        measured
        for measured in documents.results(run, "sweep", SweepResult)
        if measured.content.summary
    ]
    if not measurements:
        safe_html.verdict(
            "Early against late has not been measured yet",
            "A sweep makes the same change at several steps of the run. It shows when the run is"
            " moved far by it, and when it comes back.",
            hedge=[
                "The learning rate changes along a run, too. So each step is measured twice: at the"
                " run's own learning rate, and at one that is the same for all."
            ],
        )
        safe_html.nothing(
            "This command makes one:",
            f"replay sweep fork.toml --at {_places(run)} --seeds 3",
            "fork.toml is any fork file of this run; the page of a fork offers its file for"
            " download.",
        )
        jobs.busy(run, "sweep")
        _sweep_form(run, selection)
        return
    result = documents.choose(
        run,
        measurements,
        selection,
        lambda result: (
            f"{result.does}: at"
            f" {formatting.listed([formatting.count(step) for step in result.steps], 6)}"
        ),
    )
    safe_html.verdict(
        sweep_title(result),
        *sweep_sentence(result),
        hedge=[
            "In the second measurement control, fork and placebos all keep one learning rate, so a"
            " difference between early and late that remains there does not come from the schedule"
            " of the learning rate."
        ],
    )
    if not all(row.bitwise for row in result.summary):
        safe_html.amber(
            strong("Tolerance only. "),
            "A control of this sweep does not equal its parent bit for bit.",
        )
    left, right = st.columns(2, gap="medium")
    with left:
        _sizes_chart(
            [(row, row.over_placebos) for row in result.summary],
            "Distance from the control at the end (L2), as a multiple of the median placebo (log) ·"
            " 1×: as far as a placebo",
            "× placebos",
            key="sweep-over_placebos",
            reference=[1.0],
        )
    with right:
        _reconverged(result)
    with left:
        _sizes_chart(
            [(row, row.l2_over_moved) for row in result.summary],
            "Distance from the control at the end, as a share of the way that the control itself"
            " went (L2, log)",
            "share of the way",
            key="sweep-l2_over_moved",
        )
    with right:
        _sweep_rows(result)
    jobs.busy(run, "sweep")
    _sweep_form(run, selection)


def sweep_title(sweep: SweepResult) -> list[Part]:
    """Say what was done, from where, and at which step it took the run farthest."""
    own_rate = [row for row in sweep.summary if row.arm == "own"]
    states = f"{len(sweep.steps)} {'state' if len(sweep.steps) == 1 else 'states'}"
    title: list[Part] = [f"A fork from {states} of {sweep.run} that ", visible(sweep.does)]
    with_placebos = any(row.over_placebos for row in own_rate)
    if with_placebos and not any(row.finding == "beyond" for row in own_rate):
        return [
            *title,
            ": not distinguishable from the placebos at any of them"
            if len(own_rate) > 1
            else f": {OUTCOMES[own_rate[0].finding]}",
        ]
    sizes = [(row, row.over_placebos if with_placebos else row.l2_over_moved) for row in own_rate]
    measured = [(row, size) for row, size in sizes if size is not None and not math.isnan(size)]
    if len(measured) < 2:
        return title
    top, largest = max(measured, key=lambda row_and_size: row_and_size[1])
    size_words = (
        f"{formatting.ratio(largest)} the median placebo"
        if with_placebos
        else f"{formatting.share(largest)} of the control's own way"
    )
    when = "early" if top is measured[0][0] else "late" if top is measured[-1][0] else "in between"
    return [
        *title,
        f": the effect is largest {when}, from state {formatting.count(top.step)} ({size_words})",
    ]


def sweep_sentence(sweep: SweepResult) -> list[Part]:
    """Compare earliest and latest of both measurements, and count those that come back."""
    sentence: list[Part] = []
    for arm, rate in (
        ("own", "At the run's own learning rate"),
        ("equal", f"At one learning rate of {sweep.equal_learning_rate:.2g}"),
    ):
        rows = [row for row in sweep.summary if row.arm == arm]
        if rows:
            sentence += _early_and_late(rate, rows[0], rows[-1])
    if any(row.placebos for row in sweep.summary):
        back = [row for row in sweep.summary if row.time_to_reconverge is not None]
        sentence += [
            strong(f"{len(back)} of {len(sweep.summary)}"),
            f" come back among the placebos within {sweep.horizon} steps.",
        ]
    return sentence


def _early_and_late(rate: str, early: SweepRow, late: SweepRow) -> list[Part]:
    first, last = formatting.count(early.step), formatting.count(late.step)
    if early.over_placebos is None or late.over_placebos is None:
        return [
            f"{rate}, it ends {formatting.number(early.l2_over_moved)} of the control's own way"
            f" from the control when made at state {first}, and"
            f" {formatting.number(late.l2_over_moved)} at {last}; without placebos no effect is"
            " claimed. "
        ]
    return [
        f"{rate}, it ends ",
        strong(formatting.ratio(early.over_placebos)),
        f" as far from the control as the median placebo when made at state {first}, and ",
        strong(formatting.ratio(late.over_placebos)),
        f" at {last} (p = {formatting.number(early.p)} and {formatting.number(late.p)},"
        f" {late.placebos} placebos). ",
    ]


class _Point(NamedTuple):
    """What is drawn of a row: a value, its range over the seeds, hollow where it is censored."""

    row: SweepRow
    value: float
    low: float | None = None
    high: float | None = None
    censored: bool = False


class _Series(NamedTuple):
    """The points, and the name of each arm where its line ends."""

    points: pyarrow.Table
    ends: pyarrow.Table


def _series(points: Sequence[_Point]) -> _Series:
    import pyarrow as pa

    rows = [
        {
            "step": point.row.step,
            "arm": point.row.arm,
            "value": point.value,
            "low": point.low,
            "high": point.high,
            "censored": point.censored,
            "rate": point.row.learning_rate,
            "verdict": point.row.verdict,
        }
        for point in points
    ]
    schema = pa.schema(
        [
            ("step", pa.int64()),
            ("arm", pa.string()),
            ("value", pa.float64()),
            ("low", pa.float64()),
            ("high", pa.float64()),
            ("censored", pa.bool_()),
            ("rate", pa.float64()),
            ("verdict", pa.string()),
        ]
    )
    ends = []
    for arm, word in (("own", "own rate ●"), ("equal", "equal rate ■")):
        of_arm = [point for point in points if point.row.arm == arm]
        if of_arm:
            last = max(of_arm, key=lambda point: point.row.step)
            end = {"step": last.row.step, "value": last.value, "word": word, "arm": arm}
            ends.append(end | {"below": False})
    ends = theme.below(ends)
    if len(ends) == 2 and ends[0]["below"] and ends[1]["below"]:
        ends[0]["below"] = False
    ends_schema = pa.schema(
        [
            ("step", pa.int64()),
            ("value", pa.float64()),
            ("word", pa.string()),
            ("arm", pa.string()),
            ("below", pa.bool_()),
        ]
    )
    return _Series(pa.Table.from_pylist(rows, schema), pa.Table.from_pylist(ends, ends_schema))


def _sizes_chart(
    sizes: Sequence[tuple[SweepRow, float | None]],
    caption: str,
    unit: str,
    key: str,
    reference: Sequence[float] = (),
) -> None:
    """Draw a size of each row on a log axis, over a line at `reference`."""
    import pyarrow as pa

    points = []
    for row, size in sizes:
        if size is None or not math.isfinite(size) or size <= 0:
            continue
        # the range over the seeds is one of L2
        low, high = (edge * size / row.l2 if row.l2 else size for edge in row.l2_range)
        points.append(_Point(row, size, low, high))
    if not points:
        return
    series = _series(points)
    safe_html.caption(caption)
    line = pa.table({"value": pa.array(reference, pa.float64())})
    theme.draw(
        sweep_charts.sweep(safe_html.dark(), True, unit),
        {"points": series.points, "ends": series.ends, "one": line},
        key=key,
    )


def _reconverged(result: SweepResult) -> None:
    import pyarrow as pa

    if not any(row.placebos for row in result.summary):
        safe_html.nothing(
            "Without placebos it is not known when a fork comes back among them.",
            hint="Write placebos = 3 or more into the fork file.",
        )
        return
    series = _series(
        [
            _Point(
                row,
                row.time_to_reconverge
                if row.time_to_reconverge is not None
                else float(result.horizon),
                censored=row.time_to_reconverge is None,
            )
            for row in result.summary
        ]
    )
    safe_html.caption(
        f"Steps until the fork stays among the placebos · hollow: not within {result.horizon} steps"
    )
    theme.draw(
        sweep_charts.sweep(safe_html.dark(), False, "steps"),
        {
            "points": series.points,
            "ends": series.ends,
            "one": pa.table({"value": pa.array([], pa.float64())}),
        },
        key="sweep-back",
    )


def _sweep_rows(result: SweepResult) -> None:
    rows = [
        {
            "state": row.step,
            "learning rate": row.arm,
            "η": row.learning_rate,
            "× placebos": row.over_placebos,
            "p": row.p,
            "N": row.placebos,
            "back after": (
                str(row.time_to_reconverge)
                if row.time_to_reconverge is not None
                else f"> {result.horizon}"
                if row.placebos
                else None
            ),
            "control": "bit for bit" if row.bitwise else "tolerance only",
            "verdict": row.verdict,
        }
        for row in result.summary
    ]
    number = st.column_config.NumberColumn
    safe_html.frame(
        rows,
        key="sweep-rows",
        tallest=300,
        column_config={
            "η": number(format="%.2g"),
            "× placebos": number(format="%.3g"),
            "p": number(format="%.2g"),
        },
    )


def places_of(start: int, reached: int, horizon: int) -> str:
    """Up to four states spread over the run's own steps, each with `horizon` of them after it."""
    room = max(0, reached - horizon - start)
    return ",".join(
        str(state) for state in sorted({start + (room * tenth + 5) // 10 for tenth in (1, 3, 5, 8)})
    )


def _places(run: str, horizon: int = HORIZON) -> str:
    reached = data.reached(run) or int(data.header(run).get("steps") or 0)
    return places_of(int(data.header(run).get("first_step") or 0), reached, horizon)


def _sweep_form(run: str, selection: Selection) -> None:
    safe_html.heading("Measure")
    first, last = window_of(run, selection)
    last = min(last, first + HORIZON)
    example = toml_text.written(
        {"parent": run, "from": first, "to": last, "placebos": 3},
        [{"kind": "skip", "window": f"{first}:{first + 1}"}],
    )
    with st.form("sweep-form", border=False):
        text = st.text_area(
            "Fork file (its windows move with the starting state)",
            example,
            height=190,
            key=f"sweep-file-{run}",
        )
        at, seeds, workers = st.columns(3)
        states = at.text_input("At states", _places(run, last - first), key=f"sweep-at-{run}")
        seed_count = seeds.number_input("Draws of the null forks", 1, 99, 1, key="sweep-seeds")
        worker_count = workers.number_input("Processes", 1, 64, 1, key="sweep-workers")
        if st.form_submit_button("Start the sweep"):
            jobs.start(
                run,
                "replay",
                [
                    "sweep",
                    "{folder}/spec.toml",
                    f"--at={states}",
                    "--seeds",
                    str(seed_count),
                    "--workers",
                    str(worker_count),
                ],
                {"spec.toml": text},
            )
            st.rerun()
