"""One head's weights on one sequence before, at and after the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import streamlit as st

from app import formatting, safe_html, theme, tokens
from app.reading import Reading
from app.safe_html import code
from app.selection import goto, picked
from app.views.attention import charts
from app.views.attention.states import Kept, of_head, whens
from forensics.visible import visible

if TYPE_CHECKING:
    import numpy as np
    import pyarrow


class _Panel(NamedTuple):
    """One picture of the triptych: the weights of a state, or the change between two."""

    key: str
    caption: str
    weights: np.ndarray
    scores: np.ndarray
    is_state: bool


def draw_triptych(
    about: dict[str, Any], kept: Kept, head: dict[str, Any], read: Reading, position: int | None
) -> None:
    """Draw one head's attention at each state, and the change between the first and the last."""
    import pyarrow as pa

    block, T = about["block"], len(about["tokens"]) - 1
    pooled = (
        f" · a cell is {block} × {block} positions, with the largest weight in it"
        if block > 1
        else ""
    )
    safe_html.caption(
        "Attention of each position (down) on each earlier one (across) · colour from"
        f" {', '.join(f'{100 * threshold:g}' for threshold in charts.WEIGHTS)}% of the"
        f" attention, blank below{pooled} · click a row"
    )
    texts = [visible(text).replace("\n", "↵") for text in read.texts]
    row = _row_of(position, block, T)
    half = pa.table({"key": [0, T], "query": [0, T], "below": [T, T]})
    panels = _panels(about, kept, head)
    for column, panel in zip(st.columns(len(panels)), panels):
        with column:
            safe_html.caption(panel.caption)
            cells = cells_of(panel.weights, panel.scores, block, texts)
            theme.draw(
                charts.weights(safe_html.dark(), T, panel.is_state),
                {"cells": cells, "half": half, "row": row},
                key=panel.key,
                on_select=partial(_clicked_row, panel.key) if panel.is_state else None,
            )


def _panels(about: dict[str, Any], kept: Kept, head: dict[str, Any]) -> list[_Panel]:
    """Return a picture of each state, then the difference of the last and the first of interest."""
    states = about["states"]
    panels = []
    for index, (state, when) in enumerate(zip(states, whens(states, about["step"]))):
        scores = of_head(kept, "scores", index, head)
        caption = (
            f"{when.capitalize()}: state {formatting.count(state)} · largest logit"
            f" {formatting.number(float(scores.max()))}"
        )
        weights = of_head(kept, "weights", index, head)
        panels.append(_Panel(f"weights-{state}", caption, weights, scores, True))
    if len(states) > 1:
        last = len(states) - 1
        at = states.index(about["step"]) if about["step"] in states else last
        early = 0 if states[0] < about["step"] else at
        caption = (
            f"State {formatting.count(states[last])} minus state"
            f" {formatting.count(states[early])} · orange: more, blue: less"
        )
        weights = panels[last].weights - panels[early].weights
        scores = _difference(panels[last].scores, panels[early].scores)
        panels.append(_Panel("weights-gap", caption, weights, scores, False))
    return panels


def _row_of(position: int | None, block: int, T: int) -> pyarrow.Table:
    """Return the row of the chosen position, none where it is not among the queries."""
    import pyarrow as pa

    rows = []
    if position is not None and position < T:
        query = position // block * block
        rows = [{"query": query, "query2": query + block, "zero": 0, "all": T}]
    schema = pa.schema([(name, pa.int64()) for name in ("query", "query2", "zero", "all")])
    return pa.Table.from_pylist(rows, schema=schema)


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Subtract b from a; masked pairs, −∞ in both, are 0."""
    import numpy as np

    with np.errstate(invalid="ignore"):
        return np.nan_to_num(a - b, nan=0.0, posinf=0.0, neginf=0.0)


def cells_of(weight: np.ndarray, score: np.ndarray, block: int, texts: Sequence[str]) -> Any:
    """Return the pairs whose |weight| passes the first threshold, as rectangles.

    A weight that is not finite passes none.
    """
    import numpy as np
    import pyarrow as pa

    finite = np.nan_to_num(weight, nan=0.0, posinf=0.0, neginf=0.0)
    level = (
        np.searchsorted(charts.WEIGHTS, np.abs(finite) + 1e-9, side="right") * np.sign(finite)
    ).astype(int)
    query, key = np.nonzero(level)
    names = np.array([*texts, ""], dtype=object)
    return pa.table(
        {
            "query": query * block,
            "query2": query * block + block,
            "key": key * block,
            "key2": key * block + block,
            "level": level[query, key],
            "weight": weight[query, key].astype(float),
            "score": score[query, key].astype(float),
            "reads": pa.array(names[query * block].tolist(), pa.string()),
            "looks": pa.array(names[key * block].tolist(), pa.string()),
        }
    )


def query_of(event: Any) -> dict[str, int] | None:
    """Return what a click on a pair changes in the URL: the query's position."""
    mark = picked(event, "pair", "query")
    return {"position": int(mark["query"])} if mark else None


def _clicked_row(key: str) -> None:
    change = query_of(st.session_state[key])
    if change:
        goto(**change)


def draw_query(
    about: dict[str, Any], kept: Kept, head: dict[str, Any], read: Reading, position: int | None
) -> None:
    """Draw the text, coloured by the attention of the chosen position, else of all on average."""
    states, block = about["states"], about["block"]
    T = len(about["tokens"]) - 1
    at = states.index(about["step"]) if about["step"] in states else 0
    weight = of_head(kept, "weights", at, head)
    if position is not None and position < T:
        by_key = weight[position // block]
        safe_html.caption(
            f"What position {position}, ",
            code(tokens.shown(read.texts[position]).strip("\n") or "␣"),
            f", attends to, at state {formatting.count(states[at])} · click another token",
        )
    else:
        by_key = weight.mean(0)
        safe_html.caption(
            "How much attention each token gets on average, at state"
            f" {formatting.count(states[at])} · click a token to see what it attends to"
        )
    levels = attention_levels([float(by_key[i // block]) for i in range(T)])
    titles = [f"position {i} · attention {by_key[i // block]:.3f}" for i in range(T)]
    tokens.tokens(
        read.texts[:T],
        levels,
        titles=titles,
        key="attended",
        chosen=position,
        on_click=_clicked_token,
    )


def attention_levels(weights: Sequence[float]) -> list[int]:
    """Strength 0 … 6 by the square root of the weight over the largest, so that small ones can be
    seen.
    """
    top = max((weight for weight in weights if math.isfinite(weight)), default=0.0)
    return [
        round((tokens.LEVELS - 1) * math.sqrt(weight / top))
        if top > 0 and math.isfinite(weight)
        else 0
        for weight in weights
    ]


def _clicked_token() -> None:
    at = tokens.clicked_token(st.session_state["attended"])
    if at is not None:
        goto(position=at)
