"""Which data made the spike? Blame's verdict, what goes when its suspects are removed, and who they
are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from app import data, formatting, jobs, safe_html
from app.controls import pick
from app.documents import documents, draw_unreadable
from app.navigation import chosen_run
from app.safe_html import code, spoken, strong
from app.selection import Selection, goto
from app.views.blame.evidence import draw_split, draw_sums, draw_trials
from app.views.blame.quantities import draw_quantities
from app.views.blame.query import draw_questions
from app.views.blame.removal import draw_curve
from app.views.blame.summary import lacks_tokens, method_of, sentence_of, title_of
from app.views.blame.suspects import draw_candidates

KEPT = 16  # candidates of a document: replay.blame.investigate.SHOWN
TOKEN_BYTES = 40  # of a token's id and influence in the document
CHEAP = 16 << 20  # bytes of a document up to which they are kept without asking


def page() -> None:
    """Draw the page: what blame found about a spike of the run."""
    selection = chosen_run(of_model=True)
    if selection is not None:
        draw(str(selection.run), selection)
        draw_quantities(str(selection.run))
        draw_questions(str(selection.run))


def draw(run: str, selection: Selection) -> None:
    """Draw what blame found about the spike of the URL; else about the newest one blamed."""
    draw_unreadable(run, "blame")
    by_step = {
        int(document.content["spike"]["step"]): document.content
        for document in reversed(documents(run, "blame"))
        if isinstance(document.content.get("spike"), Mapping)
    }
    spikes = data.rows("spikes", run=run, metric="loss")
    newest = next(reversed(by_step), None)
    spike = selection.spike if selection.spike is not None else newest
    if spike is None and spikes:
        spike = max(spikes, key=lambda row: row["sigma"] or 0.0)["step"]
    _picker(run, sorted({*by_step, *(row["step"] for row in spikes)}), by_step, spike)
    if spike is None:
        safe_html.verdict(
            ["No spike of the loss was found in ", code(run), ", so there is nothing to explain"],
            hedge=[
                "Any step can be examined with ",
                code(f"replay blame {run} --spike STEP --force"),
                ".",
            ],
        )
        return
    document = by_step.get(spike)
    if document is None:
        safe_html.verdict(
            f"The cause of the spike at step {formatting.count(spike)} has not been examined yet",
            "Blame ranks each sequence of the steps before by its influence on the spike. Then it"
            " trains the steps again without the strongest 1, 2, 4 … of them, and again without as"
            " many random ones.",
        )
        length = _length(run)
        arguments = arguments_of(run, spike, length)
        safe_html.nothing(
            "This command examines it:",
            " ".join(["replay", *arguments]),
            f"It takes some minutes on a small run. {cost_of(length)}",
        )
        if not jobs.busy(run, "blame"):
            jobs.launcher(run, "replay", arguments, "Find the cause", type="primary")
        return
    _document(run, document, selection)


def _picker(run: str, steps: list[int], found: Mapping[int, Any], spike: int | None) -> None:
    if len(steps) > 1 and spike is not None:
        if spike not in steps:
            steps = sorted([*steps, spike])
        pick(
            "Spike",
            steps,
            spike,
            key="blamed",
            choose=lambda step: goto(run=run, spike=step),
            name=lambda step: f"step {step:,}" + ("" if step in found else " (not examined yet)"),
            width=280,
        )


def _length(run: str) -> int:
    """Targets of a sequence; 0 where the header does not say."""
    try:
        return data.cut_of(data.header(run)).targets
    except (KeyError, TypeError, ValueError):
        return 0


def arguments_of(run: str, spike: int, length: int) -> list[str]:
    """Return the arguments of `replay blame`, with --tokens where the document stays small."""
    return [
        "blame",
        run,
        "--spike",
        str(spike),
        *(["--tokens"] if KEPT * length * TOKEN_BYTES <= CHEAP else []),
    ]


def cost_of(length: int) -> str:
    """Say what --tokens costs: the gradient has them anyway, only the document grows."""
    size = KEPT * length * TOKEN_BYTES / 1000
    room = f"{size:,.0f} kB" if size < 1000 else f"{size / 1000:,.0f} MB"
    if "--tokens" in arguments_of("", 0, length):
        return (
            f"It also saves the influence of each token: up to {room} on disk, and no further"
            " training."
        )
    return (
        f"--tokens also saves the influence of each token: up to {room} on disk, and no further"
        " training."
    )


def _document(run: str, d: dict[str, Any], selection: Selection) -> None:
    safe_html.verdict(title_of(d), *sentence_of(d), hedge=[method_of(d)])
    if not d["control"]["bitwise"]:
        safe_html.amber(strong("Tolerance only. "), d["control"]["sentence"], ".")
    for note in d["notes"]:
        safe_html.note("Note: ", *spoken(note.removesuffix(".")), ".")
    _again(run, d)
    left, right = st.columns([1.25, 1], gap="medium")
    with left:
        draw_curve(d)
        draw_candidates(run, d, selection)
    with right:
        draw_split(d)
        draw_trials(d)
        draw_sums(d)


def _again(run: str, d: Mapping[str, Any]) -> None:
    """Blame once more, for the influence of each token, where it was not kept; while that runs, how
    far it is.
    """
    busy, length = jobs.busy(run, "blame"), _length(run)
    if lacks_tokens(d) and not busy:
        spike = d["spike"]["step"]
        safe_html.note(
            "The influence of each token was not saved. Finding it takes as long as this took,"
            f" {d['seconds']:,.0f} s. ",
            cost_of(length),
        )
        arguments = arguments_of(run, spike, length)
        if "--tokens" in arguments:
            jobs.launcher(
                run, "replay", arguments, "Find the influence of each token", key="blame-again"
            )
        else:
            safe_html.nothing(
                "This command finds it:", f"replay blame {run} --spike {spike} --tokens"
            )
