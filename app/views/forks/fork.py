"""One fork, whatever has become of it: on its way, stopped, or done with its panels."""

from __future__ import annotations

from functools import partial

import streamlit as st

from app import data, formatting, jobs, safe_html
from app.navigation import link
from app.safe_html import code, strong
from app.selection import Selection, goto
from app.views.forks import panels
from app.views.forks.build import window_of
from app.views.forks.state import State, file_of, launch, state_of
from app.views.forks.summary import draw_difference, draw_verdict
from forensics.errors import ForensicsError
from forensics.visible import visible
from replay.forks.result import ForkResult

AGAIN = 1.0  # seconds between looks at a fork that runs


def draw(run: str, fork: str) -> None:
    """Draw a fork of `run`, whatever has become of it so far."""
    state = state_of(fork, run)
    if state.status in ("running", "starting"):
        _running(run, fork)
    elif state.status == "stopped":
        _stopped(run, state)
    elif state.unreadable is not None:
        _unreadable(run, state, state.unreadable)
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
        progress = state.job.progress if state.job else {}
        first, last = state.window
        safe_html.verdict(
            (
                [
                    "Fork ",
                    code(fork),
                    f" is at state {formatting.count(first + progress['done'])} of"
                    f" {formatting.count(last)}",
                ]
                if progress.get("done") is not None and last
                else ["Fork ", code(fork), " is starting"]
            ),
            "It runs in a process of its own, which goes on when this page is closed.",
            hedge=["Drawn below is what it has written so far; a verdict needs its end."],
        )
        if state.job is not None:
            if state.job.share is not None:
                st.progress(state.job.share)
            st.button("Stop", key="fork-stop", on_click=jobs.stop, args=(state.job,))
        if state.header:
            panels.distances(state, measure="logit_kl", live=True)

    body()


def _stopped(run: str, state: State) -> None:
    first, last = state.window
    step = (state.halfway or {}).get("step")
    below = (
        f"All its arms are saved at state {formatting.count(step)}, from where it can go on"
        if step
        else "Nothing was saved on the way, so it starts anew"
    )
    safe_html.verdict(
        ["Fork ", code(state.fork), f" was stopped before its end at {formatting.count(last)}"],
        f"It left the run at state {formatting.count(first)}. {below}.",
    )
    if state.job is not None and state.job.status in ("failed", "lost"):
        _log(state.job)
    _run_button(run, state, "Go on")
    panels.distances(state, measure="logit_kl", live=True)


def _absent(run: str, state: State) -> None:
    safe_html.verdict(["No fork here is called ", code(state.fork)])
    if state.job is not None:
        safe_html.note("The process that should have made it wrote:")
        _log(state.job)
    first, last = window_of(run, Selection(run=run))
    safe_html.nothing(
        "This command makes a fork:",
        f"replay fork {run} --from {first} --to {last} --skip {first}:{first + 1} --placebos 3",
    )


def _unreadable(run: str, state: State, error: ForensicsError) -> None:
    """Say why the result of a fork cannot be read, and offer to run it again."""
    safe_html.verdict(
        ["The result of fork ", code(state.fork), " cannot be read"],
        *safe_html.spoken(f"{error.message}."),
        hedge=["Running the fork again writes it anew; the fork's file is kept."],
    )
    safe_html.nothing(
        "From the command line, with the file below:", f"replay fork {state.fork}.toml --again"
    )
    st.download_button("The fork file", file_of(state), f"{state.fork}.toml", key="fork-file")
    _run_button(run, state, "Run it again", again=True)


def _run_button(run: str, state: State, label: str, again: bool = False) -> None:
    st.button(
        label,
        type="primary",
        on_click=partial(_launch, run, state.fork, file_of(state), again),
    )


def _launch(run: str, fork: str, text: str, again: bool) -> None:
    launch(run, fork, text, again=again)


def _log(job: jobs.Job) -> None:
    st.code(visible(job.log()[-800:]) or "it wrote nothing", language=None)


# ---- done


def _done(state: State, result: ForkResult) -> None:
    arms = data.table("fork_arms", run=state.fork)
    draw_verdict(result)
    left, right = st.columns([2.1, 1], gap="medium")
    with left:
        panels.losses(state)
        panels.distances(state, measure=result.final.measure)
        panels.gaps(state, result, arms)
        panels.layers(state, result)
    with right:
        _beside(state, result)


def _beside(state: State, result: ForkResult) -> None:
    draw_difference(result)
    st.download_button("The fork file", file_of(state), f"{state.fork}.toml", key="fork-file")
    _more_placebos(state, result)
    safe_html.heading("Next steps")
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
            first=result.first,
            last=result.last,
        ),
    )


def _more_placebos(state: State, result: ForkResult) -> None:
    """Offer the same fork again, compared with more null forks."""
    if result.final.finding == "none exist":
        safe_html.note(
            strong("No placebo exists for this fork"),
            ": the same cannot be done to other data. Chaos forks, whose start is moved by one unit"
            " in the last place, are what it is compared with.",
        )
    with st.form("fork-again", border=False):
        placebo_column, chaos_column = st.columns(2)
        placebos = placebo_column.number_input(
            "Placebos", 0, 999, max(19, result.placebos), key="again-placebos"
        )
        chaos = chaos_column.number_input(
            "Chaos forks", 0, 999, max(5, result.chaos), key="again-chaos"
        )
        if st.form_submit_button("Run it again with these"):
            launch(
                state.parent,
                state.fork,
                file_of(state, placebos=int(placebos), chaos=int(chaos)),
                again=True,
            )
            st.rerun()
