"""One fork: the sentence, its distance beside the null forks', layers over the placebos, losses; or how far it has come."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import streamlit as st

from app import data, show, words, work
from app.charts import forks as charts
from app.charts import theme
from app.pages import link
from app.pages._fork_state import State, file_of, launch, state_of
from app.selection import goto
from app.show import Part, code, strong

if TYPE_CHECKING:
    import pyarrow

AGAIN = 1.0  # seconds between looks at a fork that runs
RULE = "Causal words need p ≤ 0.05, so 19 placebos or more; or, with 3 or more, an effect of 5 times the largest of them."


def draw(run: str, fork: str) -> None:
    """A fork of `run`, whatever has become of it so far."""
    state = state_of(fork, run)
    if state.status in ("running", "starting"):
        _running(run, fork)
    elif state.status == "stopped":
        _stopped(run, state)
    elif state.result is None:
        _absent(run, state)
    else:
        _done(state, state.result)


def chosen_row(event: Mapping[str, Any] | None) -> int | None:
    """The row of a table's selection; None where there is none."""
    rows = ((event or {}).get("selection") or {}).get("rows") or []
    return int(rows[0]) if rows else None


# ---- on its way


def _running(run: str, fork: str) -> None:
    @st.fragment(run_every=AGAIN)
    def body() -> None:
        state = state_of(fork, run)
        if state.status not in ("running", "starting"):
            st.rerun()
        done = state.work.progress if state.work else {}
        first, last = state.window
        at = f"{words.count(first + done['done'])} of {words.count(last)}" if done.get("done") is not None and last else "starting"
        show.verdict(["Fork ", code(fork), f": state {at}"] if at != "starting" else ["Fork ", code(fork), " is starting"],
                     "It runs in a process of its own: it goes on when this page is closed.",
                     hedge=["What is drawn below is what it has written so far; a verdict needs its end."])  # fmt: skip
        if state.work is not None:
            if state.work.share is not None:
                st.progress(state.work.share)
            st.button("Stop", key="fork-stop", on_click=work.stop, args=(state.work,))
        if state.header:
            _distances(state, measure="logit_kl", live=True)

    body()


def _stopped(run: str, state: State) -> None:
    first, last = state.window
    kept = (state.halfway or {}).get("step")
    where = f"all its arms are kept at state {words.count(kept)}: it goes on from there" if kept else "nothing was kept on the way: it starts anew"  # fmt: skip
    show.verdict(["Fork ", code(state.fork), f" was stopped before its end at {words.count(last)}"],
                 f"It left at {words.count(first)}; {where}.")  # fmt: skip
    if state.work is not None and state.work.status in ("failed", "lost"):
        from forensics.visible import visible

        st.code(visible(state.work.log()[-800:]) or "it wrote nothing", language=None)
    st.button("Go on", type="primary", on_click=partial(_launched, run, state.fork, file_of(state)))
    _distances(state, measure="logit_kl", live=True)


def _absent(run: str, state: State) -> None:
    show.verdict(["No fork here is called ", code(state.fork)])
    if state.work is not None:
        from forensics.visible import visible

        show.note("Its process ended with:")
        st.code(visible(state.work.log()[-800:]) or "nothing was written", language=None)
    first = data.reached(run) or 1
    show.nothing("To make one:", f"replay fork {run} --from {max(0, first - 8)} --to {first} --skip {max(0, first - 8)}:{max(1, first - 7)} --placebos 3")  # fmt: skip


def _launched(run: str, fork: str, text: str) -> None:
    launch(run, fork, text)


# ---- done


def _done(state: State, result: dict[str, Any]) -> None:
    arms = data.table("fork_arms", run=state.fork)
    same = distinct_placebos(arms)
    _verdict(state, result, same)
    left, right = st.columns([2.1, 1], gap="medium")
    with left:
        losses = _losses(state)
        _distances(state, measure=measure_of(result["final"]))
        _gaps(state, result, arms)
        _layers(state, result)
    with right:
        _facts(state, result, losses)


def title_of(result: Mapping[str, Any], spikes: Sequence[tuple[int, bool]] = ()) -> list[Part]:
    """`demo@400 removes 29 documents (replace) in 400:416: the spike at 400 does not happen`."""
    final = result["final"]
    gone = [(step, happens) for step, happens in spikes if not happens]
    if len(spikes) == 1 or (gone and len(gone) == len(spikes)):
        step, happens = spikes[0]
        outcome = f"the spike at {words.count(step)} {'still happens' if happens else 'does not happen'}"
    elif spikes:
        outcome = f"{len(gone)} of {len(spikes)} spikes do not happen"
    elif final["placebos"]:
        outcome = final["verdict"].split(" (N")[0]
    else:
        outcome = "no effect is claimed"
    return [f"{result['parent']}@{result['from']} ", result["does"], f": {outcome}"]


def sentence_of(result: Mapping[str, Any]) -> list[Part]:
    """Effect, p and N; reconvergence; the gap on both sets; the control."""
    final, said = result["final"], list[Part]()
    what = "KL" if measure_of(final) == "logit_kl" else "L2"
    at = f"at state {words.count(result['to'])}"
    if final["placebos"]:
        times = strong(words.ratio(final["effect"])) if final["effect"] is not None else strong("beyond any ratio to")
        said += ["Effect ", times, f" the placebos' median {what} {at}, p = {words.number(final['p'])}, N = {final['placebos']}: ",
                 strong(final["verdict"].split(" (N")[0]), ". "]  # fmt: skip
        back = result["time_to_reconverge"]
        said += ["Back among the placebos after ", strong(words.steps(back)), ". "] if back is not None else [
            "Not back among the placebos within the ", strong(words.steps(result["to"] - result["from"])), " of the window. "]  # fmt: skip
    else:
        d = final[measure_of(final)]
        said += [f"{what} {words.number(d)} {at}; ", strong(final["verdict"]), ". "]
    if final["loss_fork"] is not None:
        said += [f"Probe loss {words.loss(final['loss_control'])} → {words.loss(final['loss_fork'])}, ",
                 strong(_with_error(final)), f" ({final['probe_sequences']} sequences)"]  # fmt: skip
        fresh = final.get("unseen") or {"sequences": 0}  # not measured by earlier versions
        said += [f"; {_with_error(fresh)} on {fresh['sequences']} that no arm has consumed. "] if fresh["sequences"] else [". "]
    control = result["control"]
    said += ["Control: ", strong("bit for bit ✓" if control["bitwise"] else f"{control['level']}, tolerance only"), "."]
    return said


def measure_of(final: Mapping[str, Any]) -> str:
    """What the effect is an effect on: logit_kl, or l2 where nothing is held out."""
    return final.get("measure") or ("logit_kl" if final["logit_kl"] is not None else "l2")


def _with_error(final: Mapping[str, Any]) -> str:
    error = f" ± {words.loss(final['loss_error'])}" if final["loss_error"] is not None else ""
    return words.gap(final["loss_fork"] - final["loss_control"]) + error


def _verdict(state: State, result: dict[str, Any], same: tuple[int, int]) -> None:
    spikes = _spikes(state)
    control, final = result["control"], result["final"]
    rule = RULE if final["placebos"] else f"Without a placebo nothing tells an effect from chaos. {RULE}"
    show.verdict(title_of(result, [(s, happens) for s, _, happens in spikes]), *sentence_of(result), hedge=[rule])
    if not control["bitwise"]:
        show.amber(strong("Tolerance only. "), "The control is not the parent bit for bit, so every number here holds within that "
                   "gap: ", control["sentence"], ".")  # fmt: skip
    if control["level"] == "absent":
        show.amber("The control does not show the parent's spike: suspect hardware or numerics. No verdict about data.")
    placebos, distinct = same
    if distinct < placebos:
        what = "one and the same fork" if distinct == 1 else f"only {distinct} different forks"
        show.amber(strong(f"The {placebos} placebos are {what}. "), "There are not enough other sequences in the steps that it touches "
                   "to draw others: read N as ", strong(distinct), f", and p as at least {words.number(1 / (distinct + 1))}",
                   ": too few placebos to tell." if distinct < 3 else ".")  # fmt: skip


def distinct_placebos(arms: pyarrow.Table) -> tuple[int, int]:
    """(placebos, how many of them ended anywhere else), by their distance at the end of the window."""
    import pyarrow.compute as pc

    rows = arms.filter(pc.equal(arms["kind"], "placebo"))
    if not rows.num_rows:
        return 0, 0
    last = rows.filter(pc.equal(rows["step"], pc.max(rows["step"])))
    return last.num_rows, len(set(last["l2"].to_pylist()))


def _spikes(state: State) -> list[tuple[int, float, bool]]:
    """(step, loss, whether it still happens) of the parent's loss spikes in the window: at half its excess or more, ±2 steps."""
    first, last = state.window
    own = {r["step"]: r["loss"] for r in _losses_of(state).to_pylist() if r["arm"] == "fork"}
    found = []
    for s in data.rows("spikes", run=state.parent, metric="loss"):
        if not first <= s["step"] < last or s["kind"] != "spike" or s["baseline"] is None or s["value"] is None:
            continue
        near = [own[k] for k in range(s["step"] - 2, s["step"] + 3) if own.get(k) is not None]
        happens = any(not math.isfinite(x) or x - s["baseline"] >= 0.5 * (s["value"] - s["baseline"]) for x in near)
        found.append((s["step"], s["value"], happens))
    return found


# ---- panels, all on one axis of states


def _bounds(state: State) -> list[int]:
    first, last = state.window
    return [max(0, first - min(32, max(4, (last - first) // 3))), last]


def _losses_of(state: State) -> pyarrow.Table:
    first, last = _bounds(state)
    return data.table("fork_losses", run=state.fork, parent=state.parent, first=first, last=last, window=(first, last))


def _losses(state: State) -> pyarrow.Table:
    import pyarrow as pa

    rows = _losses_of(state)
    if not rows.num_rows:
        return rows
    show.caption("Loss on the batches that each saw (nats/token) · grey parent, blue fork · ▼ spikes of the parent")
    spikes = pa.table({"step": pa.array([s for s, _, _ in _spikes(state)], pa.int64()),
                       "loss": pa.array([x for _, x, _ in _spikes(state)], pa.float64())})  # fmt: skip
    begin = pa.table({"step": [state.window[0]]})
    theme.draw(theme.filled(charts.losses(show.dark()), bounds=_bounds(state)), {"losses": rows, "spikes": spikes, "begin": begin},
               key="fork-losses")  # fmt: skip
    return rows


def _distances(state: State, measure: str, live: bool = False) -> None:
    """KL (L2 where nothing was probed) of every arm on a log axis, over the bands of the null forks."""
    import pyarrow as pa

    arms = data.table("fork_arms", run=state.fork)
    if arms.num_rows and not _positive(arms, measure).num_rows:
        measure = "l2"
    rows = _positive(arms, measure)
    if not rows.num_rows:
        if not live:
            show.nothing("No arm of this fork differs from the control.")
        return
    bands = data.table("fork_bands", run=state.fork)
    drawn, band, ends, said = parts_of(rows, bands, measure)
    what = "KL(control ‖ arm) on the probe set, nats, log" if measure == "logit_kl" else "‖θ_arm − θ_control‖₂, log"
    show.caption(f"{what} · blue fork{said}")
    back = (state.result or {}).get("time_to_reconverge")
    at = pa.table({"step": pa.array([state.window[0] + back] if back is not None else [], pa.int64())})
    spec = charts.distance(show.dark(), "KL" if measure == "logit_kl" else "L2", True, False)
    theme.draw(theme.filled(spec, bounds=_bounds(state)), {"arms": drawn, "bands": band, "ends": ends, "back": at},
               key="fork-distance")  # fmt: skip


def _positive(arms: pyarrow.Table, measure: str) -> pyarrow.Table:
    """Rows whose measure can stand on a log axis, as `value`."""
    import pyarrow.compute as pc

    found = arms.select(["step", "arm", "kind"]).append_column("value", arms[measure])
    return found.filter(pc.fill_null(pc.greater(found["value"], 0), False))


def parts_of(rows: pyarrow.Table, bands: pyarrow.Table, measure: str) -> tuple[Any, Any, Any, str]:
    """(arms that are drawn one by one, bands, a word per kind where its line ends, what the caption says of it).

    Of `FEWEST` null forks or more of a kind the 10–90 % band is drawn; of fewer, each.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    number = {kind: len(set(rows.filter(pc.equal(rows["kind"], kind))["arm"].to_pylist())) for kind in ("placebo", "chaos")}
    banded = [kind for kind, n in number.items() if n >= charts.FEWEST]
    drawn = rows.filter(pc.invert(pc.is_in(rows["kind"], pa.array(banded, pa.string()))))
    own = bands.filter(pc.and_(pc.equal(bands["measure"], measure), pc.is_in(bands["kind"], pa.array(banded, pa.string()))))
    if measure in ("logit_kl", "l2"):
        own = own.filter(pc.greater(own["low"], 0))
    ends, said = [], []
    for kind, mark in (("placebo", "grey"), ("chaos", "violet, dashed")):
        n = number[kind]
        if n:
            plural = kind if n == 1 else "placebos" if kind == "placebo" else "chaos forks"
            said.append(f"{mark}: {n} {plural}{', 10–90 %' if kind in banded else ', each' if n > 1 else ''}")
    for kind in ("fork", *number):
        last = own.filter(pc.equal(own["kind"], kind)) if kind in banded else drawn.filter(pc.equal(drawn["kind"], kind))
        if last.num_rows:
            step = pc.max(last["step"]).as_py()
            at = last.filter(pc.equal(last["step"], step))["middle" if kind in banded else "value"].to_pylist()
            word = kind if kind == "fork" or number[kind] == 1 else f"{number[kind]} {'placebos' if kind == 'placebo' else 'chaos'}"
            ends.append({"step": step, "value": max(at), "word": word, "kind": kind, "below": False})
    return drawn, own, pa.Table.from_pylist(below(ends), ends_schema()), "".join(f" · {s}" for s in said)


def _gaps(state: State, result: dict[str, Any], arms: pyarrow.Table) -> None:
    """Loss of fork − control on the probe set and on sequences that no arm has consumed."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if result["final"]["loss_fork"] is None:
        show.nothing("This run holds nothing out, so no loss gap was measured.",
                     f"forensics train … --set data.held_out=64  # a run with a probe set, then: replay fork {state.parent} …")  # fmt: skip
        return
    bands = data.table("fork_bands", run=state.fork)
    rows = []
    for measure, name in (("loss_gap", "probe set"), ("unseen_gap", "unseen")):
        found = arms.select(["step", "arm", "kind"]).append_column("value", arms[measure])
        found = found.filter(pc.is_valid(found["value"]))
        drawn, band, _, _ = parts_of(found, bands, measure)
        if name == "probe set":
            bands_drawn = band
        else:  # the null forks are drawn on the probe set alone
            drawn = drawn.filter(pc.equal(drawn["kind"], "fork"))
        rows.append(drawn.append_column("set", pa.array([name] * drawn.num_rows, pa.string())))
    both = pa.concat_tables(rows)
    ends = _gap_ends(both)
    show.caption("Loss of arm − control (nats/token) · ● probe set, ■ unseen, dashed · grey and violet: null forks on the probe set · 0: the control")  # fmt: skip
    theme.draw(theme.filled(charts.gap(show.dark()), bounds=_bounds(state)),
               {"gaps": both, "bands": bands_drawn, "gap_ends": ends, "zero": pa.table({"value": [0.0]})}, key="fork-gap")  # fmt: skip


def _gap_ends(both: pyarrow.Table) -> pyarrow.Table:
    import pyarrow as pa

    found = []
    for name in ("probe set", "unseen"):
        own = [r for r in both.to_pylist() if r["kind"] == "fork" and r["set"] == name]
        if own:
            last = max(own, key=lambda r: r["step"])
            found.append({"step": last["step"], "value": last["value"], "word": f"{name} {words.gap(last['value'])}", "kind": "fork"})
    return pa.Table.from_pylist(below(found), ends_schema())


def below(ends: list[dict[str, Any]], by: str = "value") -> list[dict[str, Any]]:
    """Words at the ends of lines, the lowest of several under its line, so that two close ones can both be read."""
    lowest = min((e[by] for e in ends), default=None) if len(ends) > 1 else None
    return [e | {"below": e[by] == lowest} for e in ends]


def ends_schema() -> pyarrow.Schema:
    import pyarrow as pa

    return pa.schema([("step", pa.int64()), ("value", pa.float64()), ("word", pa.string()), ("kind", pa.string()), ("below", pa.bool_())])


def _layers(state: State, result: dict[str, Any]) -> None:
    if not result["final"]["placebos"]:
        show.nothing("Layers are shown over the placebos' median, and this fork has no placebo.",
                     hint="Run it again with placebos, on the right.")  # fmt: skip
        return
    import pyarrow.compute as pc

    rows = data.table("fork_layers", run=state.fork)
    names = order_of_rows(rows.select(["row", "layer"]).group_by(["row", "layer"]).aggregate([]).to_pylist())
    strong_ones = rows.filter(pc.greater(rows["level"], 0))
    show.caption("L2 from the control by layer, over the placebos' median · blank below 2×, then 2, 5, 10, 20×")
    if not strong_ones.num_rows:
        show.note("No layer is twice as far from the control as the placebos' median at any step.")
        return
    theme.draw(theme.filled(charts.layers(show.dark(), len(names)), bounds=_bounds(state), rows=names), {"cells": strong_ones},
               key="fork-layers")  # fmt: skip


def order_of_rows(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Embeddings on top, the layers in their order, what comes after them at the bottom."""

    def place(r: Mapping[str, Any]) -> tuple[int, int, str]:
        if r["layer"] is not None:
            return 1, r["layer"], ""
        return (0 if "embed" in r["row"] and "un" not in r["row"] else 2), 0, r["row"]

    return [r["row"] for r in sorted(found, key=place)]


# ---- beside the panels


def _facts(state: State, result: dict[str, Any], losses: pyarrow.Table) -> None:
    first, last = state.window
    show.heading("What differs")
    show.note(code(state.fork), " left ", code(state.parent), f" at state {words.count(first)} and ran to {words.count(last)}: ",
              result["does"], ".")  # fmt: skip
    where = result["first_difference"]
    if where:
        show.note("The first bit that differs: step ", strong(words.count(where["step"])), ", ", code(where["tensor"]),
                  f", element {words.count(where['element'])}.")  # fmt: skip
    show.note("Control: ", result["control"]["sentence"], ".")
    _barriers(result)
    st.download_button("The fork file", file_of(state), f"{state.fork}.toml", key="fork-file")
    _again(state, result)
    show.heading("Ways on")
    link("spikes", "The spikes of its parent", run=state.parent)
    link("runs", "This fork among the runs", run=state.fork)
    st.button("Build another fork", type="tertiary", on_click=partial(goto, part="build", fork=None, first=first, last=last))


def _barriers(result: dict[str, Any]) -> None:
    rows = [b for b in result.get("barriers", []) if b["arm"] == "fork"]
    if rows:
        show.heading("Loss on the line to the control")
        show.frame([{"state": b["step"], "height, nats": b["height"], "highest at α": b["alpha"]} for b in rows])


def _again(state: State, result: dict[str, Any]) -> None:
    """More placebos: the same fork, compared with more."""
    if "no placebo" in result["final"]["verdict"] and "these interventions" in result["final"]["verdict"]:
        show.note("It has no placebo: the same on other data does not exist. Chaos forks are its null.")
    with st.form("fork-again", border=False):
        placebos, chaos = st.columns(2)
        n = placebos.number_input("Placebos", 0, 999, max(19, int(result["placebos"])), key="again-placebos")
        c = chaos.number_input("Chaos forks", 0, 999, max(5, int(result["chaos"])), key="again-chaos")
        if st.form_submit_button("Run it again with these"):
            launch(state.parent, state.fork, file_of(state, placebos=int(n), chaos=int(c)))
            st.rerun()
