"""Where does this text stand, and when was it read? The documents that hold it, the batches."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import streamlit as st

from app import data, formatting, jobs, safe_html
from app.navigation import chosen_run, link
from app.safe_html import code
from app.selection import LONGEST, Selection, goto, picked_row
from forensics.counted import counted, times
from forensics.visible import visible

if TYPE_CHECKING:
    from replay.where import TextReading, WhereResult

AT_ONCE = 20_000_000  # tokens of a corpus whose index is made while the page waits: some seconds
SHOWN = 200  # documents and readings of the tables
WINDOW = 40  # steps of the fork that is proposed
EXCERPT = 60  # characters of the text in sentences


def page() -> None:
    """Draw the page: the text that is looked for, the documents that hold it, its readings."""
    selection = chosen_run()
    if selection is None:
        return
    run, text = str(selection.run), selection.text
    st.session_state["where-text"] = text or ""
    st.text_area(
        "Text",
        key="where-text",
        height=68,
        max_chars=LONGEST,
        placeholder="Text as it stands in the documents; capitals count",
        on_change=lambda: goto(text=st.session_state["where-text"] or None),
    )
    if not text:
        safe_html.nothing(
            "A text of any length is found wherever the run's data hold it, however it was cut into"
            " tokens.",
            f"forensics where {run} 'import os'",
        )
        return
    if not _is_ready(run):
        jobs.offer(
            run,
            "forensics",
            ["where", run, text],
            "Index the text",
            "The text of this run's data has not been indexed yet.",
            hint="It is done once for each corpus.",
            key="where-index",
        )
        return
    _draw(selection, _found(run, text, _state(run)))


def _is_ready(run: str) -> bool:
    """Whether the corpus has an index, or one is made while the page waits."""
    from forensics.data.text_index import is_built
    from forensics.train.run import open_run

    corpus = open_run(data.runs_folder(), run).corpus
    return corpus.tokens_in_all <= AT_ONCE or is_built(corpus)


def _state(run: str) -> Any:
    """Return what changes when the run reads more: a search is asked again then."""
    return data.header(run).get("created"), data.reached(run)


@st.cache_data(max_entries=32, show_spinner="Searching")
def _found(run: str, text: str, state: Any) -> WhereResult:
    from replay.where import where_of

    return where_of(data.runs_folder(), run, text, SHOWN)


def _draw(selection: Selection, found: WhereResult) -> None:
    run = found.run
    name = found.text if len(found.text) <= EXCERPT else found.text[:EXCERPT] + "…"
    if not found.times:
        safe_html.verdict(["No document of ", code(run), " holds ", code(name)])
        return
    safe_html.verdict(
        [
            code(name),
            f" stands {times(found.times)} in {counted(found.in_documents, 'document')}",
        ],
        f"{counted(found.in_sequences, 'sequence')} hold a token of it, {found.held_out} of them"
        f" kept out of training. It was read {times(found.times_read)} before step"
        f" {formatting.count(found.steps)}, {formatting.count(found.times_read_whole)} of these"
        " whole.",
    )
    if found.unsearched:
        safe_html.note(
            f"{counted(found.unsearched, 'row')} that interventions made are not of the corpus and"
            " were not searched."
        )
    left, right = st.columns([1, 1.35], gap="large")
    with left:
        safe_html.heading("Documents")
        safe_html.frame(
            [
                {
                    "document": each.document,
                    "source": each.source,
                    "path": each.path,
                    "times": each.times,
                    "first at token": each.offset,
                }
                for each in found.documents
            ],
            tallest=420,
        )
        _more(found.in_documents - len(found.documents), "document")
        link(
            "forks",
            "Fork without the first document",
            part="build",
            kind="remove-documents",
            document=found.documents[0].document,
        )
        safe_html.caption("A fork without all documents that hold it:")
        st.code(_fork_command(found), language=None, wrap_lines=True)
    with right:
        safe_html.heading("Read at")
        _readings(selection, found)


def _readings(selection: Selection, found: WhereResult) -> None:
    """Draw the readings; a click on one opens its batch."""
    if not found.readings:
        safe_html.nothing("No batch so far held it.")
        return
    rows = [_row(reading) for reading in found.readings]
    if all(reading.text_loss is None for reading in found.readings):  # recorded densely only
        rows = [{key: row[key] for key in row if key != "loss on it"} for row in rows]
    safe_html.choice(
        rows,
        None,
        key="where-readings",
        on_select=lambda: _pick(found),
        height=420,
    )
    _more(found.times_read - len(rows), "reading")
    step = selection.step if selection.step is not None else found.readings[0].step
    link("batch", f"Batch {formatting.count(step)}", step=step, slot=_slot(found, step, selection))


def _fork_command(found: WhereResult) -> str:
    """Return the command that forks the run from before the text's first reading."""
    first = found.steps_read[0] if found.steps_read else 0
    last = min(first + WINDOW, max(found.steps, first + 1))
    text = shlex.quote(visible(found.text))
    return f"replay fork {found.run} --from {first} --to {last} --remove-text {text}"


def _pick(found: WhereResult) -> None:
    reading = picked_row(st.session_state["where-readings"], found.readings)
    if reading is not None:
        goto(step=reading.step, slot=reading.slot)


def _slot(found: WhereResult, step: int, selection: Selection) -> int | None:
    if selection.step == step and selection.slot is not None:
        return selection.slot
    return next((reading.slot for reading in found.readings if reading.step == step), None)


def _row(reading: TextReading) -> dict[str, Any]:
    return {
        "step": reading.step,
        "slot": reading.slot,
        "position": reading.position,
        "tokens": reading.tokens,
        "whole": reading.whole,
        "loss of the sequence": reading.loss,
        "loss on it": reading.text_loss,
        "document": reading.document,
    }


def _more(count: int, noun: str) -> None:
    if count > 0:
        safe_html.caption(f"and {counted(count, f'more {noun}')}")
