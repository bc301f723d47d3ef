"""The text of one sequence, token by token, coloured by loss or influence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import streamlit as st

from app import formatting, jobs, reading, safe_html, theme, tokens
from app.controls import switch
from app.reading import Influences, Reading, TokenLosses
from app.safe_html import strong
from app.selection import Selection, goto, picked
from app.views.batch import charts
from app.views.batch.token import draw_documents

COLOURS = {"loss": "loss", "influence": "influence"}
ORIGINS = {"recorded": "recorded", "replayed": "computed from the exact state"}


class Shown(NamedTuple):
    """The sequence that was drawn, and the loss of each token, position 0 first."""

    sequence: Reading
    losses: list[float | None] | None


class _Colours(NamedTuple):
    """The strength of each token's colour, and which tokens are underlined."""

    levels: list[int]
    underlined: set[int]


def draw_text(run: str, step: int, row: dict[str, Any], selection: Selection) -> Shown | None:
    """Draw the sequence token by token; return it with the loss of each token.

    None, with what reads it offered, where an intervention made it and nobody has read it yet.
    """
    slot = row["slot"]
    _draw_heading(row)
    if row["sequence"] < 0 and slot not in reading.made(run, step):
        jobs.offer(
            run,
            "forensics",
            ["batch", run, str(step)],
            "Read it from the fork's stream",
            "An intervention made this sequence, so no document holds it. This command asks the"
            " fork for its text:",
            key="batch",
        )
        return None
    sequence = reading.sequence(run, step, slot, row["sequence"])
    recorded = reading.token_losses(run, step, slot)
    influence = reading.influences(run, step, slot)
    losses: list[float | None] | None = [None, *recorded.losses] if recorded else None
    if influence is not None and recorded is not None:
        _measures(selection.metric == "influence")
    if influence is not None and (selection.metric == "influence" or recorded is None):
        colours = _by_influence(influence)
    else:
        colours = _by_loss(sequence, losses, recorded)
    tokens.tokens(
        sequence.texts,
        colours.levels,
        underlined=colours.underlined,
        titles=[
            _title(i, token, losses, influence.values if influence else None)
            for i, token in enumerate(sequence.tokens)
        ],
        key="text",
        chosen=selection.position,
        on_click=_clicked_token,
    )
    if losses is None:
        _offer_losses(run, step)
    else:
        _by_token(sequence, losses, selection.position)
    draw_documents(sequence, losses)
    if influence is None and selection.spike is not None and step <= selection.spike:
        _offer_influence(run, selection.spike)
    return Shown(sequence, losses)


def _draw_heading(row: dict[str, Any]) -> None:
    repeats = (
        f" · {formatting.share(row['repeat_share'])} of it repeats itself"
        if row["repeat_share"]
        else ""
    )
    number = (
        formatting.count(row["sequence"]) if row["sequence"] >= 0 else "made by an intervention"
    )
    safe_html.heading(
        f"Slot {row['slot']} · sequence {number} · loss {formatting.loss(row['loss'])}{repeats}"
    )


def _by_influence(influence: Influences) -> _Colours:
    """Colour by the influence on a spike, and say so."""
    largest = max((abs(value) for value in influence.values if value is not None), default=0.0)
    safe_html.caption(
        f"Colour: influence on the spike at step {formatting.count(influence.spike)}"
        " (metagradient) · orange: raises it, blue: lowers it · largest:"
        f" {formatting.number(largest)} nats · click a token"
    )
    return _Colours(influence_levels(influence.values), set())


def _by_loss(
    sequence: Reading, losses: list[float | None] | None, recorded: TokenLosses | None
) -> _Colours:
    """Colour by the loss, and say where it is from."""
    if recorded is not None and recorded.origin == "tolerance only":
        safe_html.amber(
            strong("Tolerance only: "),
            "on this machine the state that was trained again differs from the recorded one in"
            " some bits.",
        )
    if recorded is not None:
        safe_html.caption(
            f"Colour: loss of the token, up to {math.log(sequence.vocabulary):.3f} nats (ln V,"
            " guessing at random) · underlined: worse than guessing ·"
            f" {ORIGINS.get(recorded.origin, recorded.origin)} · click a token"
        )
    else:
        safe_html.caption(
            "Without colour: the losses of single tokens are not known at this step · click a token"
        )
    return loss_levels(losses or [None] * len(sequence.tokens), sequence.vocabulary)


def _offer_losses(run: str, step: int) -> None:
    jobs.offer(
        run,
        "forensics",
        ["batch", run, str(step), "--token-losses"],
        "Compute the token losses",
        "The loss of each token was not recorded at this step. This command computes it from the"
        " exact state:",
        key="batch",
    )


def _offer_influence(run: str, spike: int) -> None:
    """Colour by influence: what computes it, or why this sequence has none."""
    if reading.blamed_by_token(run, spike):
        safe_html.caption(
            "The influence of these tokens is not known: this sequence is not among those with the"
            f" strongest influence on the spike at step {formatting.count(spike)}."
        )
        return
    jobs.offer(
        run,
        "replay",
        ["blame", run, "--spike", str(spike), "--tokens"],
        "Compute the influence of each token",
        "This command computes how much each token of the strongest sequences raises the spike at"
        f" step {formatting.count(spike)}; it takes some minutes on a small run:",
        key="blame",
    )


def _by_token(found: Reading, losses: Sequence[float | None], position: int | None) -> None:
    """Draw the same losses as bars, in the order of the text."""
    import pyarrow as pa

    top = math.log(found.vocabulary)
    worst = max((loss for loss in losses if loss is not None and math.isfinite(loss)), default=top)
    texts = [tokens.shown(text) for text in found.texts]
    bars = [
        {
            "place": i,
            "position": i + 0.06,
            "position2": i + 0.94,
            "zero": 0.0,
            "loss": loss if math.isfinite(loss) else worst * 1.1,
            "level": tokens.level(loss, found.vocabulary)[0],
            "reads": texts[i],
            "after": "".join(texts[max(0, i - 5) : i]),
        }
        for i, loss in enumerate(losses)
        if loss is not None
    ]
    safe_html.caption(
        "Loss of each token, in the order of the text (nats) · dashed: guessing at random (ln V)"
    )
    theme.draw(
        theme.filled(charts.tokens(safe_html.dark()), positions=[0, len(found.tokens)]),
        {
            "tokens": pa.Table.from_pylist(bars),
            "top": pa.table({"value": [top]}),
            "here": pa.Table.from_pylist(
                [bar for bar in bars if bar["place"] == position],
                schema=pa.Table.from_pylist(bars).schema,
            ),
        },
        key="by-token",
        on_select=_clicked_bar_of_token,
    )


def position_of(event: Any) -> dict[str, int] | None:
    """Return what a click on a token's bar changes in the URL."""
    mark = picked(event, "token", "place")
    return {"position": int(mark["place"])} if mark else None


def _clicked_bar_of_token() -> None:
    change = position_of(st.session_state["by-token"])
    if change:
        goto(**change)


def loss_levels(losses: Sequence[float | None], vocabulary: int) -> _Colours:
    """Strength of each token by its loss, and which are above ln V."""
    both = [tokens.level(loss, vocabulary) for loss in losses]
    return _Colours(
        [strength for strength, _ in both], {i for i, (_, above) in enumerate(both) if above}
    )


def influence_levels(values: Sequence[float | None]) -> list[int]:
    """−6 … 6 by the square root of |influence| over the largest: blue lowers the spike, orange
    raises it.
    """
    top = max(
        (abs(value) for value in values if value is not None and math.isfinite(value)), default=0.0
    )
    levels = []
    for value in values:
        size = (
            0
            if value is None or not top or not math.isfinite(value)
            else round((tokens.LEVELS - 1) * math.sqrt(abs(value) / top))
        )
        levels.append(-size if value is not None and value < 0 else size)
    return levels


def _title(
    i: int,
    token: int,
    losses: Sequence[float | None] | None,
    influence: Sequence[float | None] | None,
) -> str:
    title = f"position {i} · token {token}"
    if losses is not None and losses[i] is not None:
        title += f" · loss {formatting.loss(losses[i])}"
    if influence is not None and influence[i] is not None:
        title += f" · influence {formatting.number(influence[i])}"
    return title


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
