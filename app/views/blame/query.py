"""Which data moved the loss of a text? What `replay blame --query` and `--eval` found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from app import formatting, safe_html
from app.controls import pick
from app.documents import Document, documents, draw_unreadable
from app.safe_html import code, spoken

SHOWN = 12  # sequences and documents of the tables
EXCERPT = 60  # characters of a text in the list


def draw_questions(run: str) -> None:
    """Draw the newest question about a text, or the one that is picked."""
    draw_unreadable(run, "influence")
    questions = documents(run, "influence")
    safe_html.heading("Which data moved the loss of a text?")
    if not questions:
        safe_html.nothing(
            "No text has been asked about in this run yet. This command asks:",
            f"replay blame {run} --query 'TEXT' --validate",
        )
        return
    _draw_answer(_picked(questions))


def _picked(asked: list[Document]) -> Mapping[str, Any]:
    by_name = dict(asked)
    names, key = list(by_name), "blame-question"
    name = st.session_state.get(key)
    name = name if name in by_name else names[0]
    if len(names) > 1:

        def choose(picked_name: str) -> None:
            st.session_state[key] = picked_name

        pick(
            "Text",
            names,
            name,
            key=f"{key}-pick",
            choose=choose,
            name=lambda option: label_of(by_name[option]),
        )
    return by_name[name]


def label_of(answer: Mapping[str, Any]) -> str:
    """Name a question: its text or file, and the state."""
    query = answer["query"]
    text = query["file"] or " ".join(query["text"].split())
    shown = text if len(text) <= EXCERPT else text[:EXCERPT] + "…"
    return f"{shown} · state {formatting.count(answer['at'])}"


def _draw_answer(answer: Mapping[str, Any]) -> None:
    if not answer["control"]["bitwise"]:
        safe_html.amber("Tolerance only. ", answer["control"]["sentence"], ".")
    safe_html.note(*spoken(answer["sentence"]))
    for note in answer["notes"]:
        safe_html.note("Note: ", *spoken(note))
    if answer["validation"]:
        safe_html.note(answer["validation"]["sentence"])
    else:
        safe_html.note("How good these influences are was not measured: ", code("--validate"), ".")
    first, last = answer["window"]
    safe_html.caption(
        f"Batches {formatting.count(first)} to {formatting.count(last - 1)}. influence: by how much"
        " the loss falls without it, nats/token, estimated (first order); below 0 it lowers the"
        " loss"
    )
    number = {"influence": st.column_config.NumberColumn(format="%+.4f")}
    left, right = st.columns([1.25, 1], gap="medium")
    with left:
        safe_html.frame(
            [
                {
                    "batch": candidate["step"],
                    "slot": candidate["slot"],
                    "influence": candidate["influence"],
                    "source": candidate["source"],
                    "document": candidate["path"],
                    "text": candidate["text"],
                }
                for candidate in answer["candidates"][:SHOWN]
            ],
            column_config=number,
            tallest=330,
        )
    with right:
        safe_html.frame(
            [
                {
                    "influence": row["influence"],
                    "sequences": row["sequences"],
                    "source": row["source"],
                    "document": row["path"],
                }
                for row in answer["documents"][:SHOWN]
            ],
            column_config=number,
            tallest=330,
        )
