"""Which tokens never learned? Indicator against exposure at a checkpoint; one token over the run,
and where it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import streamlit as st

from app import data, jobs, safe_html
from app.navigation import chosen_run
from app.safe_html import code
from app.selection import goto, here
from app.views.tokens import token as _token
from app.views.tokens.lists import draw_list, draw_search
from app.views.tokens.scatter import draw_scatter
from app.views.tokens.summary import draw_verdict

if TYPE_CHECKING:
    import pyarrow


def page() -> None:
    """Draw the page: the vocabulary at a checkpoint, and one token of it."""
    selection = chosen_run(of_model=True)
    if selection is None:
        return
    run = str(selection.run)
    measured = [
        checkpoint for checkpoint in data.rows("token_checkpoints", run=run) if checkpoint["tokens"]
    ]
    if not measured:
        _empty(run)
        return
    steps = [checkpoint["step"] for checkpoint in measured]
    best = [checkpoint["step"] for checkpoint in measured if checkpoint["measured"]] or steps
    step = (
        selection.step if selection.step is not None and selection.step in steps else int(best[-1])
    )
    tied = bool((data.header(run).get("shape") or {}).get("tied"))
    points = data.table("token_points", run=run, step=step, tied=int(tied))
    verified, model_verdict = _token.verified_of(run, step)
    draw_verdict(run, step, points, tied, verified, model_verdict)
    if model_verdict is None and step in [
        checkpoint["step"] for checkpoint in measured if checkpoint["measured"]
    ]:
        _offer(run, step)
    _checkpoints(steps, step)
    _body(run, step, points, verified, tied)
    jobs.busy(run, "tokens")


@st.fragment
def _body(
    run: str, step: int, points: pyarrow.Table, verified: Mapping[int, bool], tied: bool
) -> None:
    """Draw the overview and the token that is chosen; a click runs this again, not the page."""
    token = here().token
    left, right = st.columns([1.45, 1], gap="large")
    chosen = token if token is not None else _first(points)
    with left:
        draw_scatter(points, token, verified, tied)
        draw_list(points, verified, chosen, f"{run}-{step}")
    with right:
        draw_search(points, chosen, f"{run}-{step}")
        if chosen is not None:
            _token.draw(run, step, chosen, points, verified)


def _empty(run: str) -> None:
    safe_html.verdict(
        ["The tokens of ", code(run), " have not been measured yet"],
        "Measuring compares the embedding of each token with how often the model has seen it, which"
        " is known exactly from the order of the data.",
    )
    safe_html.nothing(
        "This command measures them:",
        f"forensics tokens {run}",
        "It measures the last checkpoint; RUN@STEP measures another.",
    )
    if not jobs.busy(run, "tokens"):
        jobs.launcher(run, "forensics", ["tokens", run], "Measure the tokens", type="primary")


def _offer(run: str, step: int) -> None:
    """Draw the button that verifies the candidates, unless tokens are being measured."""
    arguments = ["tokens", f"{run}@{step}", "--verify"]
    if not any(
        job.status == "running" and job.arguments[:1] == ("tokens",) for job in jobs.listed(run)
    ):
        jobs.launcher(run, "forensics", arguments, "Ask the model to repeat the suspected tokens")


# ---- the overview


def _checkpoints(steps: list[int], step: int) -> None:
    if len(steps) > 1:
        st.session_state["token-step"] = step
        st.select_slider(
            "Checkpoint",
            steps,
            key="token-step",
            on_change=lambda: goto(step=st.session_state["token-step"]),
        )


def _first(points: pyarrow.Table) -> int | None:
    return points["token"][0].as_py() if points.num_rows else None
