"""Over when? The same intervention at many steps, early against late."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from app import data, documents, formatting, jobs, safe_html, theme
from app.safe_html import Part, strong
from app.selection import Selection
from app.views.forks import sweep_charts
from app.views.forks.build import window_of
from app.views.forks.summary import OUTCOMES
from forensics.visible import visible
from replay.forks import toml_text

if TYPE_CHECKING:
    import pyarrow

HORIZON = 24  # steps of the fork file that the form begins with, at most


def sweeps(run: str, selection: Selection) -> None:
    """Draw the sweep that the URL names: size and reconvergence against the starting step."""
    documents.draw_unreadable(run, "sweep")
    measurements = [
        document
        for document in documents.documents(run, "sweep")
        if document.content.get("summary")
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
    document = documents.choose(
        run,
        measurements,
        selection,
        lambda d: (
            f"{d['does']}: at"
            f" {formatting.listed([formatting.count(step) for step in d['steps']], 6)}"
        ),
    )
    safe_html.verdict(
        sweep_title(document),
        *sweep_sentence(document),
        hedge=[
            "In the second measurement control, fork and placebos all keep one learning rate, so a"
            " difference between early and late that remains there does not come from the schedule"
            " of the learning rate."
        ],
    )
    if not all(row["bitwise"] for row in document["summary"]):
        safe_html.amber(
            strong("Tolerance only. "),
            "A control of this sweep does not equal its parent bit for bit.",
        )
    left, right = st.columns(2, gap="medium")
    with left:
        _sweep_chart(
            document,
            "over_placebos",
            "Distance from the control at the end (L2), as a multiple of the median placebo (log) ·"
            " 1×: as far as a placebo",
            "× placebos",
            True,
            1.0,
        )
    with right:
        _reconverged(document)
    with left:
        _sweep_chart(
            document,
            "l2_over_moved",
            "Distance from the control at the end, as a share of the way that the control itself"
            " went (L2, log)",
            "share of the way",
            True,
            None,
        )
    with right:
        _sweep_rows(document)
    jobs.busy(run, "sweep")
    _sweep_form(run, selection)


def sweep_title(sweep: Mapping[str, Any]) -> list[Part]:
    """Say what was done, from where, and at which step it took the run farthest."""
    own_rate = [row for row in sweep["summary"] if row["arm"] == "own"]
    measure = "over_placebos" if any(row["over_placebos"] for row in own_rate) else "l2_over_moved"
    measured = [
        row for row in own_rate if row[measure] is not None and not math.isnan(row[measure])
    ]
    states = f"{len(sweep['steps'])} {'state' if len(sweep['steps']) == 1 else 'states'}"
    title: list[Part] = [f"A fork from {states} of {sweep['run']} that ", visible(sweep["does"])]
    if measure == "over_placebos" and not any(row["finding"] == "beyond" for row in own_rate):
        return [
            *title,
            ": not distinguishable from the placebos at any of them"
            if len(own_rate) > 1
            else f": {OUTCOMES[own_rate[0]['finding']]}",
        ]
    if len(measured) < 2:
        return title
    top = max(measured, key=lambda row: row[measure])
    size = (
        f"{formatting.ratio(top[measure])} the median placebo"
        if measure == "over_placebos"
        else f"{formatting.share(top[measure])} of the control's own way"
    )
    when = (
        "early"
        if top["step"] == measured[0]["step"]
        else "late"
        if top["step"] == measured[-1]["step"]
        else "in between"
    )
    return [
        *title,
        f": the effect is largest {when}, from state {formatting.count(top['step'])} ({size})",
    ]


def sweep_sentence(sweep: Mapping[str, Any]) -> list[Part]:
    """Compare earliest and latest of both measurements, and count those that come back."""
    sentence: list[Part] = []
    for arm, rate in (
        ("own", "At the run's own learning rate"),
        ("equal", f"At one learning rate of {sweep['equal_learning_rate']:.2g}"),
    ):
        rows = [row for row in sweep["summary"] if row["arm"] == arm]
        if rows:
            sentence += _early_and_late(rate, rows[0], rows[-1])
    if any(row["placebos"] for row in sweep["summary"]):
        back = [row for row in sweep["summary"] if row["time_to_reconverge"] is not None]
        sentence += [
            strong(f"{len(back)} of {len(sweep['summary'])}"),
            f" come back among the placebos within {sweep['horizon']} steps.",
        ]
    return sentence


def _early_and_late(rate: str, early: Mapping[str, Any], late: Mapping[str, Any]) -> list[Part]:
    first, last = formatting.count(early["step"]), formatting.count(late["step"])
    if early["over_placebos"] is None or late["over_placebos"] is None:
        return [
            f"{rate}, it ends {formatting.number(early['l2_over_moved'])} of the control's own way"
            f" from the control when made at state {first}, and"
            f" {formatting.number(late['l2_over_moved'])} at {last}; without placebos no effect is"
            " claimed. "
        ]
    return [
        f"{rate}, it ends ",
        strong(formatting.ratio(early["over_placebos"])),
        f" as far from the control as the median placebo when made at state {first}, and ",
        strong(formatting.ratio(late["over_placebos"])),
        f" at {last} (p = {formatting.number(early['p'])} and {formatting.number(late['p'])},"
        f" {late['placebos']} placebos). ",
    ]


def _points(
    d: Mapping[str, Any], values: Sequence[tuple[Any, Any, Any, bool]]
) -> tuple[pyarrow.Table, pyarrow.Table]:
    """(points, the name of each arm where its line ends)."""
    import pyarrow as pa

    rows = [
        {
            "step": row["step"],
            "arm": row["arm"],
            "value": value,
            "low": low,
            "high": high,
            "censored": censored,
            "rate": row["learning_rate"],
            "verdict": row["verdict"],
        }
        for row, (value, low, high, censored) in zip(d["summary"], values)
        if value is not None
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
        of_arm = [row for row in rows if row["arm"] == arm]
        if of_arm:
            last = max(of_arm, key=lambda row: row["step"])
            ends.append(
                {
                    "step": last["step"],
                    "value": last["value"],
                    "word": word,
                    "arm": arm,
                    "below": False,
                }
            )
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
    return pa.Table.from_pylist(rows, schema), pa.Table.from_pylist(ends, ends_schema)


def _sweep_chart(
    d: Mapping[str, Any], measure: str, caption: str, unit: str, log: bool, one: float | None
) -> None:
    import pyarrow as pa

    values = []
    for row in d["summary"]:
        value = row[measure] if documents.is_finite(row[measure]) else None
        by_l2 = (
            value / row["l2"] if value is not None and row["l2"] else None
        )  # the range over seeds is of l2
        low, high = row["l2_range"]
        values.append(
            (
                value if value is None or value > 0 or not log else None,
                low * by_l2 if by_l2 else value,
                high * by_l2 if by_l2 else value,
                False,
            )
        )
    points, ends = _points(d, values)
    if not points.num_rows:
        return
    safe_html.caption(caption)
    reference = pa.table({"value": pa.array([one] if one is not None else [], pa.float64())})
    theme.draw(
        sweep_charts.sweep(safe_html.dark(), log, unit),
        {"points": points, "ends": ends, "one": reference},
        key=f"sweep-{measure}",
    )


def _reconverged(d: Mapping[str, Any]) -> None:
    import pyarrow as pa

    if not any(row["placebos"] for row in d["summary"]):
        safe_html.nothing(
            "Without placebos it is not known when a fork comes back among them.",
            hint="Write placebos = 3 or more into the fork file.",
        )
        return
    values = [
        (
            float(steps_back)
            if (steps_back := row["time_to_reconverge"]) is not None
            else float(d["horizon"]),
            None,
            None,
            steps_back is None,
        )
        for row in d["summary"]
    ]
    points, ends = _points(d, values)
    safe_html.caption(
        f"Steps until the fork stays among the placebos · hollow: not within {d['horizon']} steps"
    )
    theme.draw(
        sweep_charts.sweep(safe_html.dark(), False, "steps"),
        {"points": points, "ends": ends, "one": pa.table({"value": pa.array([], pa.float64())})},
        key="sweep-back",
    )


def _sweep_rows(d: Mapping[str, Any]) -> None:
    rows = [
        {
            "state": row["step"],
            "learning rate": row["arm"],
            "η": row["learning_rate"],
            "× placebos": row["over_placebos"],
            "p": row["p"],
            "N": row["placebos"],
            "back after": (
                str(row["time_to_reconverge"])
                if row["time_to_reconverge"] is not None
                else f"> {d['horizon']}"
                if row["placebos"]
                else None
            ),
            "control": "bit for bit" if row["bitwise"] else "tolerance only",
            "verdict": row["verdict"],
        }
        for row in d["summary"]
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
