"""One fork: the sentence, its distance beside the null forks', layers over the placebos, losses; or
how far it has come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import streamlit as st

from app import data, formatting, jobs, safe_html
from app.navigation import link
from app.safe_html import Part, code, strong
from app.selection import Selection, goto
from app.views.forks import panels
from app.views.forks.build import window_of
from app.views.forks.state import State, file_of, launch, state_of

if TYPE_CHECKING:
    import pyarrow

AGAIN = 1.0  # seconds between looks at a fork that runs
RULE = (
    "Causal words need p ≤ 0.05, so 19 placebos or more; or, with 3 or more, an effect of 5 times"
    " the largest of them."
)


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


# ---- on its way


def _running(run: str, fork: str) -> None:
    @st.fragment(run_every=AGAIN)
    def body() -> None:
        state = state_of(fork, run)
        if state.status not in ("running", "starting"):
            st.rerun()
        done = state.work.progress if state.work else {}
        first, last = state.window
        at = (
            f"{formatting.count(first + done['done'])} of {formatting.count(last)}"
            if done.get("done") is not None and last
            else "starting"
        )
        safe_html.verdict(
            (
                ["Fork ", code(fork), f": state {at}"]
                if at != "starting"
                else ["Fork ", code(fork), " is starting"]
            ),
            "It runs in a process of its own: it goes on when this page is closed.",
            hedge=["What is drawn below is what it has written so far; a verdict needs its end."],
        )
        if state.work is not None:
            if state.work.share is not None:
                st.progress(state.work.share)
            st.button("Stop", key="fork-stop", on_click=jobs.stop, args=(state.work,))
        if state.header:
            panels.distances(state, measure="logit_kl", live=True)

    body()


def _stopped(run: str, state: State) -> None:
    first, last = state.window
    kept = (state.halfway or {}).get("step")
    where = (
        f"all its arms are kept at state {formatting.count(kept)}: it goes on from there"
        if kept
        else "nothing was kept on the way: it starts anew"
    )
    safe_html.verdict(
        ["Fork ", code(state.fork), f" was stopped before its end at {formatting.count(last)}"],
        f"It left at {formatting.count(first)}; {where}.",
    )
    if state.work is not None and state.work.status in ("failed", "lost"):
        from forensics.visible import visible

        st.code(visible(state.work.log()[-800:]) or "it wrote nothing", language=None)
    st.button("Go on", type="primary", on_click=partial(_launched, run, state.fork, file_of(state)))
    panels.distances(state, measure="logit_kl", live=True)


def _absent(run: str, state: State) -> None:
    safe_html.verdict(["No fork here is called ", code(state.fork)])
    if state.work is not None:
        from forensics.visible import visible

        safe_html.note("Its process ended with:")
        st.code(visible(state.work.log()[-800:]) or "nothing was written", language=None)
    first, last = window_of(run, Selection(run=run))
    safe_html.nothing(
        "To make one:",
        f"replay fork {run} --from {first} --to {last} --skip {first}:{first + 1} --placebos 3",
    )


def _launched(run: str, fork: str, text: str) -> None:
    launch(run, fork, text)


# ---- done


def _done(state: State, result: dict[str, Any]) -> None:
    arms = data.table("fork_arms", run=state.fork)
    same = distinct_placebos(arms)
    _verdict(state, result, same)
    left, right = st.columns([2.1, 1], gap="medium")
    with left:
        losses = panels.losses(state)
        panels.distances(state, measure=measure_of(result["final"]))
        panels.gaps(state, result, arms)
        panels.layers(state, result)
    with right:
        _facts(state, result, losses)


def title_of(
    result: Mapping[str, Any], spikes: Sequence[tuple[int, bool | None]] = ()
) -> list[Part]:
    """`demo@400 removes 29 documents (replace) in 400:416: the spike at 400 does not happen`.

    Of a spike at which the fork has no loss (None) nothing is said, and nothing of any where the
    control lacks it too.
    """
    final = result["final"]
    spikes = [(step, happens) for step, happens in spikes if happens is not None]
    gone = [(step, happens) for step, happens in spikes if not happens]
    if result["control"]["level"] == "absent":
        outcome = "no verdict, the control does not show the parent's spike"
    elif len(spikes) == 1 or (gone and len(gone) == len(spikes)):
        step, happens = spikes[0]
        outcome = f"the spike at {formatting.count(step)} {'still happens' if happens else 'does not happen'}"
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
    verdict = (
        "no verdict" if result["control"]["level"] == "absent" else final["verdict"].split(" (N")[0]
    )
    what = "KL" if measure_of(final) == "logit_kl" else "L2"
    at = f"at state {formatting.count(result['to'])}"
    if final["placebos"]:
        times = (
            strong(formatting.ratio(final["effect"]))
            if final["effect"] is not None
            else strong("beyond any ratio to")
        )
        said += [
            "Effect ",
            times,
            (
                f" the placebos' median {what} {at}, p = {formatting.number(final['p'])}, N ="
                f" {final['placebos']}: "
            ),
            strong(verdict),
            ". ",
        ]
        back = result["time_to_reconverge"]
        said += (
            ["Back among the placebos after ", strong(formatting.steps(back)), ". "]
            if back is not None
            else [
                "Not back among the placebos within the ",
                strong(formatting.steps(result["to"] - result["from"])),
                " of the window. ",
            ]
        )
    else:
        d = final[measure_of(final)]
        said += [f"{what} {formatting.number(d)} {at}; ", strong(verdict), ". "]
    if final["loss_fork"] is not None:
        said += [
            f"Probe loss {formatting.loss(final['loss_control'])} → {formatting.loss(final['loss_fork'])}, ",
            strong(_with_error(final)),
            f" ({final['probe_sequences']} sequences)",
        ]
        fresh = final.get("unseen") or {"sequences": 0}  # not measured by earlier versions
        said += (
            [f"; {_with_error(fresh)} on {fresh['sequences']} that no arm has consumed. "]
            if fresh["sequences"]
            else [". "]
        )
    control = result["control"]
    said += [
        "Control: ",
        strong("bit for bit ✓" if control["bitwise"] else f"{control['level']}, tolerance only"),
        ".",
    ]
    return said


def measure_of(final: Mapping[str, Any]) -> str:
    """What the effect is an effect on: logit_kl, or l2 where nothing is held out."""
    return final.get("measure") or ("logit_kl" if final["logit_kl"] is not None else "l2")


def _with_error(final: Mapping[str, Any]) -> str:
    error = f" ± {formatting.loss(final['loss_error'])}" if final["loss_error"] is not None else ""
    return formatting.gap(final["loss_fork"] - final["loss_control"]) + error


def _verdict(state: State, result: dict[str, Any], same: tuple[int, int]) -> None:
    spikes = panels.spikes_of(state)
    unseen = [s for s, _, happens in spikes if happens is None]
    control, final = result["control"], result["final"]
    rule = (
        RULE
        if final["placebos"]
        else f"Without a placebo nothing tells an effect from chaos. {RULE}"
    )
    safe_html.verdict(
        title_of(result, [(s, happens) for s, _, happens in spikes]),
        *sentence_of(result),
        hedge=[rule],
    )
    if not control["bitwise"]:
        safe_html.amber(
            strong("Tolerance only. "),
            "The control is not the parent bit for bit, so every number here holds within that "
            "gap: ",
            control["sentence"],
            ".",
        )
    if control["level"] == "absent":
        safe_html.amber(
            "The control does not show the parent's spike: suspect hardware or numerics. No verdict"
            " about data."
        )
    elif unseen:
        safe_html.note(
            f"At the parent's spike at {formatting.listed([formatting.count(s) for s in unseen])} this fork"
            " has no loss (nothing was computed there): whether it happens is not known."
        )
    placebos, distinct = same
    if distinct < placebos:
        what = "one and the same fork" if distinct == 1 else f"only {distinct} different forks"
        safe_html.amber(
            strong(f"The {placebos} placebos are {what}. "),
            "There are not enough other sequences in the steps that it touches "
            "to draw others: read N as ",
            strong(distinct),
            f", and p as at least {formatting.number(1 / (distinct + 1))}",
            ": too few placebos to tell." if distinct < 3 else ".",
        )


def distinct_placebos(arms: pyarrow.Table) -> tuple[int, int]:
    """(placebos, how many of them ended anywhere else), by their distance at the end of the
    window.
    """
    import pyarrow.compute as pc

    rows = arms.filter(pc.equal(arms["kind"], "placebo"))
    if not rows.num_rows:
        return 0, 0
    last = rows.filter(pc.equal(rows["step"], pc.max(rows["step"])))
    return last.num_rows, len(set(last["l2"].to_pylist()))


# ---- beside the panels


def _facts(state: State, result: dict[str, Any], losses: pyarrow.Table) -> None:
    first, last = state.window
    safe_html.heading("What differs")
    safe_html.note(
        code(state.fork),
        " left ",
        code(state.parent),
        f" at state {formatting.count(first)} and ran to {formatting.count(last)}: ",
        result["does"],
        ".",
    )
    where = result["first_difference"]
    if where:
        safe_html.note(
            "The first bit that differs: step ",
            strong(formatting.count(where["step"])),
            ", ",
            code(where["tensor"]),
            f", element {formatting.count(where['element'])}.",
        )
    safe_html.note("Control: ", result["control"]["sentence"], ".")
    _barriers(result)
    st.download_button("The fork file", file_of(state), f"{state.fork}.toml", key="fork-file")
    _again(state, result)
    safe_html.heading("Ways on")
    link("spikes", "The spikes of its parent", run=state.parent)
    link("runs", "This fork among the runs", run=state.fork)
    st.button(
        "Build another fork",
        type="tertiary",
        on_click=partial(
            goto,
            run=state.parent,
            part="build",
            fork=None,
            kind=None,
            values=None,
            first=first,
            last=last,
        ),
    )


def _barriers(result: dict[str, Any]) -> None:
    rows = [b for b in result.get("barriers", []) if b["arm"] == "fork"]
    if rows:
        safe_html.heading("Loss on the line to the control")
        safe_html.frame(
            [
                {"state": b["step"], "height, nats": b["height"], "highest at α": b["alpha"]}
                for b in rows
            ]
        )


def _again(state: State, result: dict[str, Any]) -> None:
    """More placebos: the same fork, compared with more."""
    if (
        "no placebo" in result["final"]["verdict"]
        and "these interventions" in result["final"]["verdict"]
    ):
        safe_html.note(
            "It has no placebo: the same on other data does not exist. Chaos forks are its null."
        )
    with st.form("fork-again", border=False):
        placebos, chaos = st.columns(2)
        n = placebos.number_input(
            "Placebos", 0, 999, max(19, int(result["placebos"])), key="again-placebos"
        )
        c = chaos.number_input(
            "Chaos forks", 0, 999, max(5, int(result["chaos"])), key="again-chaos"
        )
        if st.form_submit_button("Run it again with these"):
            launch(state.parent, state.fork, file_of(state, placebos=int(n), chaos=int(c)))
            st.rerun()
