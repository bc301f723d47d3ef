"""Beside the text: one token, the costliest tokens, the documents."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import streamlit as st

from app import data, formatting, safe_html, tokens
from app.navigation import link
from app.reading import Reading
from app.safe_html import accent, code, strong
from app.selection import Selection
from app.views.batch.summary import BUILD

if TYPE_CHECKING:
    from forensics.data.shards import Span


def draw_beside(
    run: str,
    step: int,
    row: dict[str, Any],
    selection: Selection,
    found: Reading,
    losses: list[float | None] | None,
) -> None:
    """Draw the chosen token, and the tokens of highest loss."""
    at = selection.position
    if at is not None and at < len(found.tokens):
        _token(run, step, row["slot"], at, found, losses, selection)
    if losses is not None:
        _costly(found, losses)


def _token(
    run: str,
    step: int,
    slot: int,
    at: int,
    found: Reading,
    losses: list[float | None] | None,
    selection: Selection,
) -> None:
    """Draw the chosen token: its loss, its document, how often the model had seen it."""
    with st.container(border=True, key="token-card"):
        safe_html.heading(
            "Token ",
            code(tokens.shown(found.texts[at]).strip("\n") or "␣"),
            f" · id {found.tokens[at]} · position {at}",
        )
        _draw_loss(at, losses[at] if losses is not None else None, found.vocabulary)
        span = found.span_of(at)
        _draw_origin(run, step, at, span)
        _met(run, step, found.tokens[at])
        if span is not None:
            link(
                "forks",
                "Fork without this document",
                **BUILD,
                kind="remove-documents",
                run=run,
                step=step,
                slot=slot,
                document=span.document,
            )
        link("tokens", "This token over the whole run", run=run, token=found.tokens[at])


def _draw_loss(at: int, loss: float | None, vocabulary: int) -> None:
    if at == 0:
        safe_html.note("The first token is only read, not predicted, so it has no loss.")
    elif loss is not None:
        worse = tokens.level(loss, vocabulary)[1]
        above = ", worse than guessing at random (ln V)" if worse else ""
        probability = (
            f": the model gave it the probability {formatting.number(math.exp(-loss))}"
            if math.isfinite(loss)
            else ""
        )
        safe_html.note("Loss ", accent(formatting.loss(loss)), f" nats{probability}{above}.")


def _draw_origin(run: str, step: int, at: int, span: Span | None) -> None:
    """Say which document the token is from, and when the model had trained on that before."""
    if span is None:
        safe_html.note("An intervention made this sequence, so it comes from no document.")
        return
    safe_html.note(
        "Document ",
        strong(span.document),
        ": ",
        code(f"{span.source}: {span.path}"),
        f", its token {formatting.count(span.offset + at - span.start)}.",
    )
    before = data.rows("document_exposure", run=run, document=span.document, last=step)
    if not before:
        safe_html.note("The model had not trained on it before.")
        return
    safe_html.note(
        f"The model had trained on it in {formatting.count(len(before))} sequences before,"
        f" first at step {formatting.count(before[0]['step'])}, last at"
        f" {formatting.count(before[-1]['step'])}."
    )


def _met(run: str, step: int, token: int) -> None:
    rows = data.rows("token_exposure", run=run, step=step, token=token)
    if not rows:
        safe_html.caption(
            "How often the model had seen this token by now was not measured. This command does: ",
            code(f"forensics tokens {run}@{step}"),
        )
        return
    row = rows[0]
    first = (
        f", first at step {formatting.count(row['first_seen'])}"
        if row["first_seen"] is not None
        else ""
    )
    counts = (
        f"as an input {formatting.count(row['exposure_in'])} times, as the token to predict"
        f" {formatting.count(row['exposure_out'])} times"
    )
    safe_html.note(
        f"By state {formatting.count(row['step'])} the model had seen this token {counts}{first}."
    )


def draw_documents(found: Reading, losses: list[float | None] | None) -> None:
    """Draw the documents that the sequence is made of."""
    if not found.spans:
        return
    safe_html.heading("The documents of this sequence")
    rows = []
    for span in found.spans:
        losses_of_span = [
            loss
            for loss in (losses or [])[span.start : span.stop]
            if loss is not None and math.isfinite(loss)
        ]
        rows.append(
            {
                "document": span.document,
                "source": span.source,
                "path": span.path,
                "from token": span.offset,
                "tokens": span.stop - span.start,
                "loss": sum(losses_of_span) / len(losses_of_span) if losses_of_span else None,
            }
        )
    safe_html.frame(
        rows
        if losses is not None
        else [{key: value for key, value in row.items() if key != "loss"} for row in rows],
        column_config={"loss": st.column_config.NumberColumn(format="%.3f")},
    )


def _costly(found: Reading, losses: list[float | None], most: int = 8) -> None:
    """Draw the tokens of highest loss, with what stands before them."""
    order = sorted(
        (i for i, loss in enumerate(losses) if loss is not None), key=lambda i: -(losses[i] or 0.0)
    )[:most]
    if not order:
        return
    safe_html.heading("The tokens with the highest loss")
    safe_html.frame(
        [
            {
                "position": i,
                "loss": losses[i],
                "token": tokens.shown(found.texts[i]).replace(" ", "␣"),
                "after": "".join(found.texts[max(0, i - 6) : i]),
            }
            for i in order
        ],
        column_config={"loss": st.column_config.NumberColumn(format="%.3f")},
    )
