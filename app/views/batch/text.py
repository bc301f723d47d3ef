"""The text of one sequence, token by token, coloured by loss or influence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import streamlit as st

from app import formatting, jobs, reading, safe_html, theme, tokens
from app.controls import switch
from app.reading import Reading
from app.safe_html import strong
from app.selection import Selection, goto, picked
from app.views.batch import charts
from app.views.batch.token import draw_documents

COLOURS = {"loss": "loss", "influence": "influence"}
Found = tuple[Reading, list[float | None] | None]


def draw_text(run: str, step: int, row: dict[str, Any], selection: Selection) -> Found | None:
    """The sequence token by token; returns it with the loss of each token (None: not known),
    position 0 first.

    None, with what reads it offered, where an intervention made it and nobody has read it yet.
    """
    slot = row["slot"]
    repeats = (
        f" · {formatting.share(row['repeat_share'])} in repeats" if row["repeat_share"] else ""
    )
    number = (
        formatting.count(row["sequence"]) if row["sequence"] >= 0 else "made by an intervention"
    )
    safe_html.heading(
        f"Slot {slot} · sequence {number} · loss {formatting.loss(row['loss'])}{repeats}"
    )
    if row["sequence"] < 0 and slot not in reading.made(run, step):
        jobs.offer(
            run,
            "forensics",
            ["batch", run, str(step)],
            "Read it from the fork's stream",
            "It stands in no document: what the fork read here is known to its own stream alone.",
            key="batch",
        )
        return None
    found = reading.sequence(run, step, slot, row["sequence"])
    known = reading.token_losses(run, step, slot)
    influence = reading.influences(run, step, slot)
    losses: list[float | None] | None = [None, *known[0]] if known is not None else None
    by_influence = influence is not None and (selection.metric == "influence" or known is None)
    if influence is not None and known is not None:
        _measures(by_influence)
    if known is not None and known[1] == "tolerance only" and not by_influence:
        safe_html.amber(
            strong("Tolerance only: "),
            "the replayed state is not the recorded one bit for bit on this machine.",
        )
    if by_influence and influence is not None:
        levels, under = influence_levels(influence[0]), set[int]()
        safe_html.caption(
            f"Colour: influence on the spike at {formatting.count(influence[1])} by metagradient ·"
            " orange raises it, blue lowers it · largest"
            f" {formatting.number(max((abs(x) for x in influence[0] if x is not None), default=0.0))}"
            " nats · click a token"
        )
    else:
        levels, under = loss_levels(losses or [None] * len(found.tokens), found.vocabulary)
        if known is not None:
            how = {"recorded": "recorded", "replayed": "from the exact state, replayed"}.get(
                known[1], known[1]
            )
            safe_html.caption(
                f"Colour: loss of the token, 0 … ln V = {math.log(found.vocabulary):.3f} nats ·"
                f" underlined: above ln V, worse than guessing · {how} · click a token"
            )
        else:
            safe_html.caption(
                "No colour: the losses of single tokens are not known at this step · click a token"
            )
    titles = [
        _title(i, found.tokens[i], losses, influence[0] if influence else None)
        for i in range(len(found.tokens))
    ]
    tokens.tokens(
        found.texts,
        levels,
        underlined=under,
        titles=titles,
        key="text",
        chosen=selection.position,
        on_click=_clicked_token,
    )
    if known is None:
        jobs.offer(
            run,
            "forensics",
            ["batch", run, str(step), "--token-losses"],
            "Compute the token losses",
            "The loss of each token was not recorded here (only dense windows record it). From the"
            " exact state, by replay:",
            key="batch",
        )
    else:
        _by_token(found, losses or [], selection.position)
    draw_documents(found, losses)
    if influence is None and selection.spike is not None and step <= selection.spike:
        _offer_influence(run, selection.spike)
    return found, losses


def _offer_influence(run: str, spike: int) -> None:
    """Colour by influence: what computes it, or why this sequence has none."""
    if reading.blamed_by_token(run, spike):
        safe_html.caption(
            f"No colour by influence: blame of the spike at {formatting.count(spike)} does not count"
            " this sequence among its strongest."
        )
        return
    jobs.offer(
        run,
        "replay",
        ["blame", run, "--spike", str(spike), "--tokens"],
        "Compute the influence of each token",
        "By influence instead: what each token of the strongest sequences does to the spike at"
        f" {formatting.count(spike)}, by metagradient; some minutes on a small run:",
        key="blame",
    )


def _by_token(found: Reading, losses: Sequence[float | None], position: int | None) -> None:
    """The same losses as bars, in the order of the text."""
    import pyarrow as pa

    top = math.log(found.vocabulary)
    worst = max((x for x in losses if x is not None and math.isfinite(x)), default=top)
    texts = [tokens.shown(t) for t in found.texts]
    bars = [
        {
            "place": i,
            "position": i + 0.06,
            "position2": i + 0.94,
            "zero": 0.0,
            "loss": x if math.isfinite(x) else worst * 1.1,
            "level": tokens.level(x, found.vocabulary)[0],
            "reads": texts[i],
            "after": "".join(texts[max(0, i - 5) : i]),
        }
        for i, x in enumerate(losses)
        if x is not None
    ]
    safe_html.caption("Loss by token, in the order of the text (nats) · dashed: ln V")
    theme.draw(
        theme.filled(charts.tokens(safe_html.dark()), positions=[0, len(found.tokens)]),
        {
            "tokens": pa.Table.from_pylist(bars),
            "top": pa.table({"value": [top]}),
            "here": pa.Table.from_pylist(
                [b for b in bars if b["place"] == position],
                schema=pa.Table.from_pylist(bars).schema,
            ),
        },
        key="by-token",
        on_select=_clicked_bar_of_token,
    )


def position_of(event: Any) -> dict[str, int] | None:
    """What a click on a token's bar changes in the URL."""
    mark = picked(event, "token", "place")
    return {"position": int(mark["place"])} if mark else None


def _clicked_bar_of_token() -> None:
    change = position_of(st.session_state["by-token"])
    if change:
        goto(**change)


def loss_levels(losses: Sequence[float | None], vocabulary: int) -> tuple[list[int], set[int]]:
    """Strength of each token by its loss, and which are above ln V."""
    both = [tokens.level(x, vocabulary) for x in losses]
    return [strength for strength, _ in both], {i for i, (_, above) in enumerate(both) if above}


def influence_levels(values: Sequence[float | None]) -> list[int]:
    """−6 … 6 by the square root of |influence| over the largest: blue lowers the spike, orange
    raises it.
    """
    top = max((abs(x) for x in values if x is not None and math.isfinite(x)), default=0.0)
    found = []
    for x in values:
        size = (
            0
            if x is None or not top or not math.isfinite(x)
            else round((tokens.LEVELS - 1) * math.sqrt(abs(x) / top))
        )
        found.append(-size if x is not None and x < 0 else size)
    return found


def _title(
    i: int,
    token: int,
    losses: Sequence[float | None] | None,
    influence: Sequence[float | None] | None,
) -> str:
    said = f"position {i} · token {token}"
    if losses is not None and losses[i] is not None:
        said += f" · loss {formatting.loss(losses[i])}"
    if influence is not None and influence[i] is not None:
        said += f" · influence {formatting.number(influence[i])}"
    return said


def _measures(by_influence: bool) -> None:
    switch(
        "Colour by",
        COLOURS,
        "influence" if by_influence else "loss",
        key="colour-by",
        choose=lambda name: goto(metric=name),
    )


def _clicked_token() -> None:
    at = tokens.clicked_token(st.session_state["text"])
    if at is not None:
        goto(position=at)
