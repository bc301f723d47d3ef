"""The strongest sequences, and forks without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import streamlit as st

from app import safe_html
from app.navigation import link
from app.selection import Selection, goto, picked_row
from forensics.visible import visible

SHOWN = 12  # candidates


def chosen_of(shown: Sequence[Mapping[str, Any]], selection: Selection) -> Mapping[str, Any]:
    """Return the candidate of the URL, else the strongest."""
    return next(
        (
            candidate
            for candidate in shown
            if (candidate["step"], candidate["slot"]) == (selection.step, selection.slot)
        ),
        shown[0],
    )


def draw_candidates(run: str, d: Mapping[str, Any], selection: Selection) -> None:
    """Draw the strongest sequences; of the chosen one its text, and forks without it."""
    shown, spike = d["candidates"][:SHOWN], d["spike"]["step"]
    if not shown:
        return
    safe_html.heading("The sequences with the strongest influence. Choose one to fork without it.")
    chosen = chosen_of(shown, selection)
    rows = [
        {
            "": "●" if candidate is chosen else "",
            "batch": candidate["step"],
            "slot": candidate["slot"],
            "influence": candidate["influence"],
            "falls by": candidate["replayed_effect"],
            "source": candidate["source"],
            "document": candidate["path"],
            "text": candidate["text"],
        }
        for candidate in shown
    ]
    number = st.column_config.NumberColumn
    columns = {
        "": st.column_config.TextColumn(width=24),
        "influence": number(
            format="%+.4f", help="estimated influence on the spike, nats/token (first order)"
        ),
        "falls by": number(
            format="%+.4f",
            help="by how much the spike falls without it alone, nats/token, trained again",
        ),
        "text": st.column_config.TextColumn(width="large"),
    }
    # a key of this choice: the tick of another, from before Back, would not go away
    key = f"blame-candidates-{run}-{spike}-{chosen['step']}-{chosen['slot']}"
    safe_html.frame(
        rows,
        key=key,
        on_select=partial(_picked, run, spike, shown, key),
        selection_mode="single-row",
        column_config=columns,
        tallest=330,
    )
    step, slot, document = chosen["step"], chosen["slot"], chosen["document"]
    st.text(visible(str(chosen["text"])))
    places = st.columns(3)
    build = partial(
        goto,
        run=run,
        part="build",
        fork=None,
        spike=spike,
        first=d["window"][0],
        last=spike + 24,
        values=None,
    )
    places[0].button(
        f"Fork without batch {step:,}, slot {slot}",
        key="blame-fork-sequence",
        on_click=partial(build, kind="remove-sequences", step=step, slot=slot, document=None),
    )
    if document is not None:
        places[1].button(
            f"Fork without document {document:,}",
            key="blame-fork-document",
            on_click=partial(build, kind="remove-documents", step=None, document=document),
        )
    link(
        "batch", f"Batch {step:,}", container=places[2], run=run, spike=spike, step=step, slot=slot
    )


def place_of(
    event: Mapping[str, Any] | None, shown: Sequence[Mapping[str, Any]]
) -> dict[str, int] | None:
    """Return what a click into the table of candidates changes in the URL."""
    candidate = picked_row(event, shown)
    return None if candidate is None else {"step": candidate["step"], "slot": candidate["slot"]}


def _picked(run: str, spike: int, shown: Sequence[Mapping[str, Any]], key: str) -> None:
    place = place_of(st.session_state[key], shown)
    if place:
        goto(run=run, spike=spike, **place)
