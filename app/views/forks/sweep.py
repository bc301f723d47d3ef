"""Over when? The same intervention at many steps, early against late."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from app import data, formatting, jobs, safe_html, theme
from app import documents as kept
from app.safe_html import Part, strong
from app.selection import Selection
from app.views.forks import sweep_charts
from app.views.forks.build import window_of
from forensics.visible import visible
from replay.forks import toml_text

if TYPE_CHECKING:
    import pyarrow

HORIZON = 24  # steps of the fork file that the form begins with, at most


def sweeps(run: str, selection: Selection) -> None:
    """The same intervention at many steps: size and reconvergence against the step it was made
    at.
    """
    found = [(name, d) for name, d in kept.documents(run, "sweep") if d.get("summary")]
    if not found:
        safe_html.verdict(
            "Early against late: nothing has been measured yet",
            "The same intervention at many steps tells when a run is easily moved and when it comes"
            " back.",
            hedge=[
                "Early against late is confounded by the schedule, so each point is measured twice:"
                " at the run's own learning rate, and at one equal rate."
            ],
        )
        safe_html.nothing(
            "From the command line:",
            f"replay sweep fork.toml --at {_places(run)} --seeds 3",
            "fork.toml is any fork file of this run: the page of a fork offers its own for"
            " download.",
        )
        jobs.busy(run, "sweep")
        _sweep_form(run, selection)
        return
    document = kept.chosen(
        run,
        found,
        selection,
        lambda d: (
            f"{d['does']}: at {formatting.listed([formatting.count(s) for s in d['steps']], 6)}"
        ),
    )
    safe_html.verdict(
        sweep_title(document),
        *sweep_sentence(document),
        hedge=[
            "The second arm holds one learning rate throughout, in control, fork and placebos: what"
            " is left of early against late there is not the schedule."
        ],
    )
    if not all(row["bitwise"] for row in document["summary"]):
        safe_html.amber(
            strong("Tolerance only. "), "A control of this sweep is not its parent bit for bit."
        )
    left, right = st.columns(2, gap="medium")
    with left:
        _sweep_chart(
            document,
            "over_placebos",
            "L2 at the end of the window, over the placebos' median (log) · 1×: as far as a"
            " placebo",
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
            "L2 over what the control itself moved in the window (log)",
            "share of the way",
            True,
            None,
        )
    with right:
        _sweep_rows(document)
    jobs.busy(run, "sweep")
    _sweep_form(run, selection)


def sweep_title(d: Mapping[str, Any]) -> list[Part]:
    """`skips steps 401:403, at 5 steps of demo: largest early, at 60 (38× the placebos)`."""
    own = [r for r in d["summary"] if r["arm"] == "own"]
    measure = "over_placebos" if any(r["over_placebos"] for r in own) else "l2_over_moved"
    told = [r for r in own if r[measure] is not None]
    title: list[Part] = [
        visible(d["does"]),
        f", from {len(d['steps'])} {'state' if len(d['steps']) == 1 else 'states'} of {d['run']}",
    ]
    if measure == "over_placebos" and not any(r["verdict"].startswith("beyond") for r in own):
        title += [
            (
                ": not distinguishable from the placebos at any of them"
                if len(own) > 1
                else f": {own[0]['verdict']}"
            )
        ]
    elif len(told) > 1:
        top = max(told, key=lambda r: r[measure])
        size = (
            f"{formatting.ratio(top[measure])} the placebos"
            if measure == "over_placebos"
            else f"{formatting.number(top[measure])} of the way"
        )
        when = (
            "early"
            if top["step"] == told[0]["step"]
            else "late"
            if top["step"] == told[-1]["step"]
            else "in between"
        )
        title += [f": largest {when}, at {formatting.count(top['step'])} ({size})"]
    return title


def sweep_sentence(d: Mapping[str, Any]) -> list[Part]:
    """Earliest and latest of both arms, with N, and how many come back within the window."""
    said: list[Part] = []
    for arm, word in (
        ("own", "At the run's own learning rate"),
        ("equal", f"at an equal one of {d['equal_learning_rate']:.2g}"),
    ):
        rows = [r for r in d["summary"] if r["arm"] == arm]
        if not rows:
            continue
        early, late = rows[0], rows[-1]
        if early["over_placebos"] is not None and late["over_placebos"] is not None:
            said += [
                f"{word}, ",
                strong(formatting.ratio(early["over_placebos"])),
                f" at {formatting.count(early['step'])} and ",
                strong(formatting.ratio(late["over_placebos"])),
                (
                    f" at {formatting.count(late['step'])} (p = {formatting.number(early['p'])} and "
                    f"{formatting.number(late['p'])}, N = {late['placebos']}); "
                ),
            ]
        else:
            said += [
                f"{word}, {formatting.number(early['l2_over_moved'])} of the way at"
                f" {formatting.count(early['step'])} and {formatting.number(late['l2_over_moved'])} at"
                f" {formatting.count(late['step'])} (no placebo: no effect is claimed); "
            ]
    back = [r for r in d["summary"] if r["time_to_reconverge"] is not None]
    if any(r["placebos"] for r in d["summary"]):
        said += [
            strong(f"{len(back)} of {len(d['summary'])}"),
            f" come back among the placebos within {d['horizon']} steps.",
        ]
    return said


def _points(
    d: Mapping[str, Any], values: Sequence[tuple[Any, Any, Any, bool]]
) -> tuple[pyarrow.Table, pyarrow.Table]:
    """(points, the name of each arm where its line ends)."""
    import pyarrow as pa

    rows = [
        {
            "step": r["step"],
            "arm": r["arm"],
            "value": v,
            "low": low,
            "high": high,
            "censored": c,
            "rate": r["learning_rate"],
            "verdict": r["verdict"],
        }
        for r, (v, low, high, c) in zip(d["summary"], values)
        if v is not None
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
        own = [r for r in rows if r["arm"] == arm]
        if own:
            last = max(own, key=lambda r: r["step"])
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
    for r in d["summary"]:
        v = r[measure]
        by_l2 = v / r["l2"] if v is not None and r["l2"] else None  # the range over seeds is of l2
        low, high = r["l2_range"]
        values.append(
            (
                v if v is None or v > 0 or not log else None,
                low * by_l2 if by_l2 else v,
                high * by_l2 if by_l2 else v,
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

    if not any(r["placebos"] for r in d["summary"]):
        safe_html.nothing(
            "Without placebos there is nothing to come back among.",
            hint="Give the fork file placebos = 3 or more.",
        )
        return
    values = [
        (
            float(t) if (t := r["time_to_reconverge"]) is not None else float(d["horizon"]),
            None,
            None,
            t is None,
        )
        for r in d["summary"]
    ]
    points, ends = _points(d, values)
    safe_html.caption(
        f"Steps until it stays among the placebos · hollow: not within the window of {d['horizon']}"
    )
    theme.draw(
        sweep_charts.sweep(safe_html.dark(), False, "steps"),
        {"points": points, "ends": ends, "one": pa.table({"value": pa.array([], pa.float64())})},
        key="sweep-back",
    )


def _sweep_rows(d: Mapping[str, Any]) -> None:
    rows = [
        {
            "state": r["step"],
            "learning rate": r["arm"],
            "η": r["learning_rate"],
            "× placebos": r["over_placebos"],
            "p": r["p"],
            "N": r["placebos"],
            "back after": (
                str(r["time_to_reconverge"])
                if r["time_to_reconverge"] is not None
                else f"> {d['horizon']}"
                if r["placebos"]
                else None
            ),
            "control": "bit for bit" if r["bitwise"] else "tolerance only",
            "verdict": r["verdict"],
        }
        for r in d["summary"]
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
    return ",".join(str(s) for s in sorted({start + (room * k + 5) // 10 for k in (1, 3, 5, 8)}))


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
            "Fork file: its windows move with the starting state",
            example,
            height=190,
            key=f"sweep-file-{run}",
        )
        at, seeds, workers = st.columns(3)
        states = at.text_input("At states", _places(run, last - first), key=f"sweep-at-{run}")
        n = seeds.number_input("Seeds of the null forks", 1, 99, 1, key="sweep-seeds")
        w = workers.number_input("Processes", 1, 64, 1, key="sweep-workers")
        if st.form_submit_button("Start the sweep"):
            jobs.start(
                run,
                "replay",
                [
                    "sweep",
                    "{folder}/spec.toml",
                    f"--at={states}",
                    "--seeds",
                    str(n),
                    "--workers",
                    str(w),
                ],
                {"spec.toml": text},
            )
            st.rerun()
