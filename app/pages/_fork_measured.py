"""What was measured over many forks: a sweep, early against late; the matrix, batch against state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from app import data, forms, show, words, work
from app.charts import forks as charts
from app.charts import theme
from app.pages._fork_build import window_of
from app.pages._fork_one import below
from app.selection import Selection, goto
from app.show import Part, strong
from forensics.visible import visible
from replay.documents import kept

if TYPE_CHECKING:
    import pyarrow

THRESHOLDS = (3, 6, 10, 20, 40)
NEAR = 0.7  # of the largest part, from which another is named beside it
MEASURES = {"jump": "jump of the probe loss after one step", "loss": "loss of the batch", "grad_norm": "gradient norm"}
UNITS = {"jump": "nats/token", "loss": "nats/token", "grad_norm": ""}


def documents(run: str, what: str) -> list[tuple[str, dict[str, Any]]]:
    """(its name, the document) of what a command kept in the run's folder, newest first; read again when a file changes."""
    folder = data.runs_folder() / data.require(run)
    stamp = tuple(sorted((p.name, p.stat().st_mtime_ns) for p in folder.glob(f"{what}-*.json")))
    return _documents(str(folder), what, stamp)


@st.cache_data(max_entries=32, show_spinner=False)
def _documents(folder: str, what: str, stamp: tuple[Any, ...]) -> list[tuple[str, dict[str, Any]]]:
    return kept(Path(folder), what)


def _chosen(found: Sequence[tuple[str, dict[str, Any]]], selection: Selection, label: Any) -> dict[str, Any]:
    """The document of the URL, or the newest; a picker where there are several."""
    names = [name for name, _ in found]
    name = selection.query if selection.query in names else names[0]
    if len(names) > 1:
        about = dict(found)
        st.session_state["measured"] = name
        st.selectbox("Measured", names, key="measured", format_func=lambda n: visible(label(about[n])), label_visibility="collapsed",
                     on_change=lambda: goto(query=st.session_state["measured"]))  # fmt: skip
    return dict(found)[name]


def _busy(run: str, command: str) -> bool:
    """Whether this command runs now; then the panel of work is drawn, which looks again by itself."""
    busy = any(w.status == "running" and w.arguments[:1] == (command,) for w in work.listed(run))
    if busy or any(w.status in ("failed", "lost") and w.arguments[:1] == (command,) for w in work.listed(run)[:1]):
        work.panel(run, most=2, key=f"work-{command}")
    return busy


# ---- early against late


def sweeps(run: str, selection: Selection) -> None:
    """The same intervention at many steps: size and reconvergence against the step it was made at."""
    found = [(name, d) for name, d in documents(run, "sweep") if d.get("summary")]
    if not found:
        show.verdict("Early against late: nothing has been measured yet",
                     "The same intervention at many steps tells when a run is easily moved and when it comes back.",
                     hedge=["Early against late is confounded by the schedule, so each point is measured twice: at the run's own "
                            "learning rate, and at one equal rate."])  # fmt: skip
        show.nothing("From the command line:", f"replay sweep fork.toml --at {_places(run)} --seeds 3",
                     "fork.toml is any fork file of this run: the page of a fork offers its own for download.")  # fmt: skip
        _busy(run, "sweep")
        _sweep_form(run, selection)
        return
    document = _chosen(found, selection, lambda d: f"{d['does']}: at {words.listed([words.count(s) for s in d['steps']], 6)}")
    show.verdict(sweep_title(document), *sweep_sentence(document),
                 hedge=["The second arm holds one learning rate throughout, in control, fork and placebos: what is left of early "
                        "against late there is not the schedule."])  # fmt: skip
    if not all(row["bitwise"] for row in document["summary"]):
        show.amber(strong("Tolerance only. "), "A control of this sweep is not its parent bit for bit.")
    left, right = st.columns(2, gap="medium")
    with left:
        _sweep_chart(document, "over_placebos", "L2 at the end of the window, over the placebos' median (log) · 1×: as far as a placebo", "× placebos", True, 1.0)
    with right:
        _reconverged(document)
    with left:
        _sweep_chart(document, "l2_over_moved", "L2 over what the control itself moved in the window (log)", "share of the way", True, None)
    with right:
        _sweep_rows(document)
    _busy(run, "sweep")
    _sweep_form(run, selection)


def sweep_title(d: Mapping[str, Any]) -> list[Part]:
    """`skips steps 401:403, at 5 steps of demo: largest early, at 60 (38× the placebos)`."""
    own = [r for r in d["summary"] if r["arm"] == "own"]
    measure = "over_placebos" if any(r["over_placebos"] for r in own) else "l2_over_moved"
    told = [r for r in own if r[measure] is not None]
    title: list[Part] = [visible(d["does"]), f", from {len(d['steps'])} {'state' if len(d['steps']) == 1 else 'states'} of {d['run']}"]
    if measure == "over_placebos" and not any(r["verdict"].startswith("beyond") for r in own):
        title += [": not distinguishable from the placebos at any of them" if len(own) > 1 else f": {own[0]['verdict']}"]
    elif len(told) > 1:
        top = max(told, key=lambda r: r[measure])
        size = f"{words.ratio(top[measure])} the placebos" if measure == "over_placebos" else f"{words.number(top[measure])} of the way"
        when = "early" if top["step"] == told[0]["step"] else "late" if top["step"] == told[-1]["step"] else "in between"
        title += [f": largest {when}, at {words.count(top['step'])} ({size})"]
    return title


def sweep_sentence(d: Mapping[str, Any]) -> list[Part]:
    """Earliest and latest of both arms, with N, and how many come back within the window."""
    said: list[Part] = []
    for arm, word in (("own", "At the run's own learning rate"), ("equal", f"at an equal one of {d['equal_learning_rate']:.2g}")):
        rows = [r for r in d["summary"] if r["arm"] == arm]
        if not rows:
            continue
        early, late = rows[0], rows[-1]
        if early["over_placebos"] is not None and late["over_placebos"] is not None:
            said += [f"{word}, ", strong(words.ratio(early["over_placebos"])), f" at {words.count(early['step'])} and ",
                     strong(words.ratio(late["over_placebos"])), f" at {words.count(late['step'])} (p = {words.number(early['p'])} and "
                     f"{words.number(late['p'])}, N = {late['placebos']}); "]  # fmt: skip
        else:
            said += [f"{word}, {words.number(early['l2_over_moved'])} of the way at {words.count(early['step'])} and "
                     f"{words.number(late['l2_over_moved'])} at {words.count(late['step'])} (no placebo: no effect is claimed); "]  # fmt: skip
    back = [r for r in d["summary"] if r["time_to_reconverge"] is not None]
    if any(r["placebos"] for r in d["summary"]):
        said += [strong(f"{len(back)} of {len(d['summary'])}"), f" come back among the placebos within {d['horizon']} steps."]
    return said


def _points(d: Mapping[str, Any], values: Sequence[tuple[Any, Any, Any, bool]]) -> tuple[pyarrow.Table, pyarrow.Table]:
    """(points, the name of each arm where its line ends)."""
    import pyarrow as pa

    rows = [{"step": r["step"], "arm": r["arm"], "value": v, "low": low, "high": high, "censored": c, "rate": r["learning_rate"],
             "verdict": r["verdict"]} for r, (v, low, high, c) in zip(d["summary"], values) if v is not None]  # fmt: skip
    schema = pa.schema([("step", pa.int64()), ("arm", pa.string()), ("value", pa.float64()), ("low", pa.float64()), ("high", pa.float64()),
                        ("censored", pa.bool_()), ("rate", pa.float64()), ("verdict", pa.string())])  # fmt: skip
    ends = []
    for arm, word in (("own", "own rate ●"), ("equal", "equal rate ■")):
        own = [r for r in rows if r["arm"] == arm]
        if own:
            last = max(own, key=lambda r: r["step"])
            ends.append({"step": last["step"], "value": last["value"], "word": word, "arm": arm, "below": False})
    ends = below(ends)
    if len(ends) == 2 and ends[0]["below"] and ends[1]["below"]:
        ends[0]["below"] = False
    ends_schema = pa.schema([("step", pa.int64()), ("value", pa.float64()), ("word", pa.string()), ("arm", pa.string()), ("below", pa.bool_())])
    return pa.Table.from_pylist(rows, schema), pa.Table.from_pylist(ends, ends_schema)


def _sweep_chart(d: Mapping[str, Any], measure: str, caption: str, unit: str, log: bool, one: float | None) -> None:
    import pyarrow as pa

    values = []
    for r in d["summary"]:
        v = r[measure]
        by_l2 = v / r["l2"] if v is not None and r["l2"] else None  # the range over seeds is of l2
        low, high = r["l2_range"]
        values.append((v if v is None or v > 0 or not log else None, low * by_l2 if by_l2 else v, high * by_l2 if by_l2 else v, False))
    points, ends = _points(d, values)
    if not points.num_rows:
        return
    show.caption(caption)
    reference = pa.table({"value": pa.array([one] if one is not None else [], pa.float64())})
    theme.draw(charts.sweep(show.dark(), log, unit), {"points": points, "ends": ends, "one": reference}, key=f"sweep-{measure}")


def _reconverged(d: Mapping[str, Any]) -> None:
    import pyarrow as pa

    if not any(r["placebos"] for r in d["summary"]):
        show.nothing("Without placebos there is nothing to come back among.", hint="Give the fork file placebos = 3 or more.")
        return
    values = [(float(t) if (t := r["time_to_reconverge"]) is not None else float(d["horizon"]), None, None, t is None) for r in d["summary"]]
    points, ends = _points(d, values)
    show.caption(f"Steps until it stays among the placebos · hollow: not within the window of {d['horizon']}")
    theme.draw(charts.sweep(show.dark(), False, "steps"), {"points": points, "ends": ends, "one": pa.table({"value": pa.array([], pa.float64())})},
               key="sweep-back")  # fmt: skip


def _sweep_rows(d: Mapping[str, Any]) -> None:
    rows = [{"state": r["step"], "learning rate": r["arm"], "η": r["learning_rate"], "× placebos": r["over_placebos"], "p": r["p"], "N": r["placebos"],
             "back after": str(r["time_to_reconverge"]) if r["time_to_reconverge"] is not None else f"> {d['horizon']}" if r["placebos"] else None,
             "control": "bit for bit" if r["bitwise"] else "tolerance only", "verdict": r["verdict"]} for r in d["summary"]]  # fmt: skip
    number = st.column_config.NumberColumn
    show.frame(rows, key="sweep-rows", height=min(300, 38 + 35 * len(rows)),
               column_config={"η": number(format="%.2g"), "× placebos": number(format="%.3g"), "p": number(format="%.2g")})  # fmt: skip


def _places(run: str) -> str:
    """Four states spread over the run, of those that were saved where there are so many."""
    reached = data.reached(run) or 4
    return ",".join(str(max(1, reached * k // 10)) for k in (1, 3, 5, 8))


def _sweep_form(run: str, selection: Selection) -> None:
    show.heading("Measure")
    first, last = window_of(run, selection)
    example = forms.file({"parent": run, "from": first, "to": min(last, first + 24), "placebos": 3}, [{"kind": "skip", "window": f"{first}:{first + 1}"}])
    with st.form("sweep-form", border=False):
        text = st.text_area("Fork file: its windows move with the starting state", example, height=190, key=f"sweep-file-{run}")
        at, seeds, workers = st.columns(3)
        states = at.text_input("At states", _places(run), key=f"sweep-at-{run}")
        n = seeds.number_input("Seeds of the null forks", 1, 99, 1, key="sweep-seeds")
        w = workers.number_input("Processes", 1, 64, 1, key="sweep-workers")
        if st.form_submit_button("Start the sweep"):
            work.start(run, "replay", ["sweep", "{folder}/spec.toml", f"--at={states}", "--seeds", str(n), "--workers", str(w)], {"spec.toml": text})
            st.rerun()


# ---- batch against state


def matrices(run: str, selection: Selection) -> None:
    """Each batch from each state, and what of it is the batch's, what the state's."""
    found = [(name, d) for name, d in documents(run, "matrix") if d.get("cells")]
    if not found:
        first, last, states = _matrix_default(run, selection)
        show.verdict("Data or state: nothing has been measured yet",
                     "Each batch of a window from each of several states: a column that stands out is the data, a row the state, "
                     "a single cell the two together.")  # fmt: skip
        show.nothing("From the command line:", f"replay matrix {run} --batches {first}:{last} --states {states}")
        _busy(run, "matrix")
        _matrix_form(run, selection)
        return
    document = _chosen(found, selection, lambda d: f"batches {d['batches'][0]}:{d['batches'][1]} from {len(d['states'])} states")
    measure = selection.metric if selection.metric in MEASURES and document["effects"].get(str(selection.metric)) else _first_measure(document)
    show.verdict(matrix_title(document, measure), *matrix_sentence(document, measure),
                 hedge=["A cell is one step from that state on that batch, less what the placebo batches do from there. "
                        "A column: the data. A row: the state. Outlined: what happened."])  # fmt: skip
    st.session_state["matrix-measure"] = measure
    st.segmented_control("Measure", list(MEASURES), key="matrix-measure", format_func=MEASURES.__getitem__, label_visibility="collapsed",
                         on_change=lambda: goto(metric=st.session_state["matrix-measure"] or measure))  # fmt: skip
    _matrix_charts(document, measure)
    _busy(run, "matrix")
    _matrix_form(run, selection)


def _first_measure(d: Mapping[str, Any]) -> str:
    return next((m for m in MEASURES if d["effects"].get(m)), "loss")


def matrix_title(d: Mapping[str, Any], measure: str) -> list[Part]:
    """`Batches 396:406 of demo: the data (12× the placebo batches' scale), not the state (2×)`."""
    effects = d["effects"].get(measure)
    title = f"Batches {d['batches'][0]}:{d['batches'][1]} of {d['run']} from {len(d['states'])} states"
    if not effects:
        return [f"{title}: a cell is missing or not finite, so nothing is split"]
    size, over = effects["size"], effects["over_placebo"]
    names = {"data": "the data", "state": "the state", "interaction": "the two together"}
    order = sorted(names, key=lambda k: -size[k])
    if over[order[0]] is not None and over[order[0]] < THRESHOLDS[0]:
        return [f"{title}: nothing stands out from the placebo batches"]
    near = [names[k] for k in order if size[k] >= NEAR * size[order[0]]]
    what = f"{near[0]} above all" if len(near) == 1 else " as much as ".join(near[:2]) if len(near) == 2 else "data, state and the two together alike"
    return [f"{title}: {what}", f" ({words.ratio(over[order[0]])} the placebo batches' scale)" if over[order[0]] is not None else ""]


def matrix_sentence(d: Mapping[str, Any], measure: str) -> list[Part]:
    """Size of each part, and the batch and the state that stand out most."""
    effects = d["effects"].get(measure)
    if not effects:
        return []
    unit = f" {UNITS[measure]}" if UNITS[measure] else ""
    said: list[Part] = [f"Of the {MEASURES[measure]}: "]
    for i, (key, name) in enumerate({"data": "data", "state": "state", "interaction": "interaction"}.items()):
        over = effects["over_placebo"][key]
        said += ["; " if i else "", f"{name} ", strong(f"{words.number(effects['size'][key])}{unit}"), f" ({words.ratio(over)})" if over is not None else ""]
    top = max(effects["data"], key=lambda e: abs(e["effect"]))
    row = max(effects["state"], key=lambda e: abs(e["effect"]))
    said += [". Farthest: batch ", strong(words.count(top["step"])), f" ({words.gap(top['effect'])} from any state), state ",
             strong(words.count(row["state"])), f" ({words.gap(row['effect'])} with any batch). {d['placebos']} placebo batches."]  # fmt: skip
    return said


def level_of(over: float | None) -> int:
    """−5 … 5: how many of THRESHOLDS a value over the placebo scale passes, with its sign."""
    if over is None:
        return 0
    passed = sum(abs(over) >= t for t in THRESHOLDS)
    return passed if over > 0 else -passed


def cells_of(d: Mapping[str, Any], measure: str, part: str) -> list[dict[str, Any]]:
    """Marks of one part: all | interaction by batch and state, data by batch, state by state; values over the placebo scale."""
    effects = d["effects"].get(measure) or {}
    scale = effects.get("placebo_scale")
    places = {(c["state"], c["step"]): c for c in d["cells"]}

    def mark(state: int | None, step: int | None, value: float | None) -> dict[str, Any]:
        cell = places.get((state, step), {}) if state is not None and step is not None else {}
        over = value / scale if value is not None and scale else None
        own = state is not None and state == step
        note = "what happened" if own else "the state was already trained on this batch" if cell.get("consumed") else ""
        return {"state": "α" if state is None else f"{state:,}", "step": step, "value": value, "over": over, "level": level_of(over),
                "consumed": bool(cell.get("consumed")), "own": own, "note": note}  # fmt: skip

    if part == "data":
        return [mark(None, e["step"], e["effect"]) for e in effects.get("data", [])]
    if part == "state":
        return [mark(e["state"], None, e["effect"]) for e in effects.get("state", [])]
    if part == "interaction":
        return [mark(e["state"], e["step"], e["effect"]) for e in effects.get("interaction", [])]
    usual = {"jump": 0.0}
    return [mark(c["state"], c["step"], None if c[measure] is None else c[measure] - usual.get(measure, c.get(f"{measure}_placebo") or 0.0))
            for c in d["cells"]]  # fmt: skip


def _table(rows: list[dict[str, Any]]) -> pyarrow.Table:
    import pyarrow as pa

    schema = pa.schema([("state", pa.string()), ("step", pa.int64()), ("value", pa.float64()), ("over", pa.float64()), ("level", pa.int32()),
                        ("consumed", pa.bool_()), ("own", pa.bool_()), ("note", pa.string())])  # fmt: skip
    return pa.Table.from_pylist(rows, schema)


def _matrix_charts(d: Mapping[str, Any], measure: str) -> None:
    """The whole, with its margins: α below it, σ beside it; then what is neither."""
    states = [f"{s:,}" for s in d["states"]]
    unit = f"{MEASURES[measure]}{', ' + UNITS[measure] if UNITS[measure] else ''}"

    def draw(part: str, names: list[str], key: str, axis: bool = True, margin: bool = False) -> None:
        spec = theme.filled(charts.matrix(show.dark(), len(names), unit, axis, margin), states=names)
        theme.draw(spec, {"cells": _table(cells_of(d, measure, part))}, key=key)

    show.caption(f"{unit[:1].upper()}{unit[1:]}, less the placebo batches' median · colour: 3, 6, 10, 20, 40 times their scale · • the state had "
                 "already been trained on the batch")  # fmt: skip
    left, middle, right = st.columns([1, 0.09, 1], gap="small")
    with left:
        show.caption("Batch × state; below it α, the batch from any state; beside it σ, the state with any batch")
        draw("all", states, "matrix-all")
        draw("data", ["α"], "matrix-data", axis=False)
    with middle:
        show.caption("\u00a0")
        draw("state", states, "matrix-state", margin=True)
    with right:
        show.caption("γ: what is left, batch and state together")
        draw("interaction", states, "matrix-interaction")
    if not (d["effects"].get(measure) or {}).get("placebo_scale"):
        show.note("The placebo batches do not differ among themselves, so there is no scale and nothing is coloured; the values stand in the tooltips.")


def _matrix_default(run: str, selection: Selection) -> tuple[int, int, str]:
    first, _ = window_of(run, selection)
    spike = selection.spike if selection.spike is not None else selection.step
    middle = spike if spike is not None else first
    reached = data.reached(run) or 8
    low, high = max(0, middle - 4), min(reached, middle + 4)
    low = min(low, high - 1)
    states = sorted({max(0, middle // 2), max(0, low - 16), *range(low, high, 2)})
    return max(0, low), high, ",".join(str(s) for s in states)


def _matrix_form(run: str, selection: Selection) -> None:
    show.heading("Measure")
    first, last, states = _matrix_default(run, selection)
    with st.form("matrix-form", border=False):
        columns = st.columns([1, 1, 2])
        low = columns[0].number_input("From batch", 0, value=first, key=f"matrix-from-{run}-{first}")
        high = columns[1].number_input("To batch", 1, value=last, key=f"matrix-to-{run}-{last}")
        which = columns[2].text_input("States", states, key=f"matrix-states-{run}-{states}", help="Any steps, not only checkpoints.")
        if st.form_submit_button("Start the matrix"):
            work.start(run, "replay", ["matrix", run, "--batches", f"{low}:{high}", f"--states={which}"])
            st.rerun()

