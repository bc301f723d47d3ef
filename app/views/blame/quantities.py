"""What made a gradient norm spike, or a number not finite? What `replay blame` kept of those."""

from __future__ import annotations

import streamlit as st

from app import formatting, safe_html
from app.documents import draw_unreadable, results
from app.safe_html import spoken, strong
from replay.blame.nonfinite.result import NonFiniteResult, Place
from replay.blame.norm.result import NormBlameResult

SHOWN = 8  # sequences of a table


def draw_quantities(run: str) -> None:
    """Draw every kept result about a gradient norm, then about a number that is not finite."""
    for kind in ("norm", "nonfinite"):
        draw_unreadable(run, kind)
    norms = [result.content for result in results(run, "norm", NormBlameResult)]
    broken = [result.content for result in results(run, "nonfinite", NonFiniteResult)]
    if not norms and not broken:
        return
    safe_html.heading("Gradient norms, and numbers that are not finite")
    for norm in norms:
        _draw_norm(norm)
    for result in broken:
        _draw_broken(result)


def _draw_norm(result: NormBlameResult) -> None:
    step = formatting.count(result.spike.step)
    safe_html.note("Gradient norm of step ", strong(step), ": ", strong(result.verdict), ". ")
    safe_html.note(*spoken(result.sentence))
    for note in result.notes:
        safe_html.note("Note: ", *spoken(note))
    safe_html.caption("The sequences with the largest share of the norm; shares sum to the norm")
    number = {"share": st.column_config.NumberColumn(format="%+.4f")}
    safe_html.frame(
        [
            {
                "slot": candidate.slot,
                "share": candidate.influence,
                "source": candidate.source,
                "document": candidate.path,
            }
            for candidate in result.candidates[:SHOWN]
        ],
        column_config=number,
    )


def _draw_broken(result: NonFiniteResult) -> None:
    noun = "Loss" if result.of == "loss" else "Gradient norm"
    safe_html.note(
        f"{noun} of step ", strong(formatting.count(result.spike)), ": ", strong(result.verdict)
    )
    safe_html.note(*spoken(result.sentence))
    if result.place is not None:
        safe_html.note("The first number that is not finite: ", *_where(result.place), ".")


def _where(place: Place) -> list[safe_html.Part]:
    parts: list[safe_html.Part] = [
        strong(place.value),
        " in ",
        safe_html.code(place.tensor),
        f" ({place.stage}) of step {formatting.count(place.step)}",
    ]
    if place.slot is not None:
        parts.append(f", slot {place.slot}")
    if place.position is not None:
        parts.append(f", position {place.position}")
    if place.text is not None:
        parts += [", token ", safe_html.code(place.text)]
    return parts
