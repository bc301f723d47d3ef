"""Beside the text: one token, the costliest tokens, the documents."""

from __future__ import annotations

import math
from typing import Any

import streamlit as st

from app import data, formatting, safe_html, tokens
from app.navigation import link
from app.reading import Reading
from app.safe_html import accent, code, strong
from app.selection import Selection
from app.views.batch.summary import BUILD


def draw_beside(
    run: str,
    step: int,
    row: dict[str, Any],
    selection: Selection,
    found: Reading,
    losses: list[float | None] | None,
) -> None:
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
    """The chosen token: its loss, its document, how often the state had met it, and a fork without
    the document.
    """
    with st.container(border=True, key="token-card"):
        safe_html.heading(
            "Token ",
            code(tokens.shown(found.texts[at]).strip("\n") or "␣"),
            f" · id {found.tokens[at]} · position {at}",
        )
        loss = losses[at] if losses is not None else None
        if at == 0:
            safe_html.note("The first token is read, not predicted: it has no loss.")
        elif loss is not None:
            above = (
                ", above ln V: worse than guessing"
                if tokens.level(loss, found.vocabulary)[1]
                else ""
            )
            probability = (
                f", probability {formatting.number(math.exp(-loss))}" if math.isfinite(loss) else ""
            )
            safe_html.note("Loss ", accent(formatting.loss(loss)), f" nats{probability}{above}.")
        span = found.span_of(at)
        if span is None:
            safe_html.note("An intervention made this sequence: it comes from no document.")
        else:
            safe_html.note(
                "Document ",
                strong(span.document),
                ": ",
                code(f"{span.source}: {span.path}"),
                f", token {formatting.count(span.offset + at - span.start)} of it.",
            )
            before = data.rows("document_exposure", run=run, document=span.document, last=step)
            if before:
                safe_html.note(
                    f"Batches before this one held it in {formatting.count(len(before))} sequences,"
                    f" first at step {formatting.count(before[0]['step'])}, last at"
                    f" {formatting.count(before[-1]['step'])}."
                )
            else:
                safe_html.note("No batch before this one held any of it.")
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
        link("tokens", "This token over the run", run=run, token=found.tokens[at])


def _met(run: str, step: int, token: int) -> None:
    rows = data.rows("token_exposure", run=run, step=step, token=token)
    if not rows:
        safe_html.caption(
            "How often the state had met this token is not recorded: ",
            code(f"forensics tokens {run}@{step}"),
        )
        return
    r = rows[0]
    first = (
        f", first at step {formatting.count(r['first_seen'])}"
        if r["first_seen"] is not None
        else ""
    )
    counts = (
        f"{formatting.count(r['exposure_out'])} times a target, {formatting.count(r['exposure_in'])} times an"
        " input"
    )
    safe_html.note(f"By state {formatting.count(r['step'])}: {counts}{first}.")


def draw_documents(found: Reading, losses: list[float | None] | None) -> None:
    if not found.spans:
        return
    safe_html.heading("What it reads")
    rows = []
    for s in found.spans:
        own = [x for x in (losses or [])[s.start : s.stop] if x is not None and math.isfinite(x)]
        rows.append(
            {
                "document": s.document,
                "source": s.source,
                "path": s.path,
                "from token": s.offset,
                "tokens": s.stop - s.start,
                "loss": sum(own) / len(own) if own else None,
            }
        )
    safe_html.frame(
        rows if losses is not None else [{k: v for k, v in r.items() if k != "loss"} for r in rows],
        column_config={"loss": st.column_config.NumberColumn(format="%.3f")},
    )


def _costly(found: Reading, losses: list[float | None], most: int = 8) -> None:
    """The tokens that cost most, with what stands before them."""
    order = sorted(
        (i for i, x in enumerate(losses) if x is not None), key=lambda i: -(losses[i] or 0.0)
    )[:most]
    if not order:
        return
    safe_html.heading("Its costliest tokens")
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
