"""The logit lens: what each layer would predict."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import streamlit as st

from app import data, formatting, reading, safe_html, theme, tokens
from app.reading import Reading
from app.safe_html import code
from app.selection import goto, picked
from app.views.attention import charts
from app.views.attention.states import (
    Kept,
    whens,
)
from forensics.visible import visible

if TYPE_CHECKING:
    import numpy as np


def draw_lens(about: dict[str, Any], kept: Kept, read: Reading, position: int | None) -> None:
    """Draw the loss after each layer, and at one position what each layer would predict."""
    import pyarrow as pa

    safe_html.heading("Logit lens: what the model would predict after each layer")
    if not about["lens"]:
        safe_html.nothing(
            "No logit lens was computed: " + (about["why"] or "it was left out by --no-lens") + "."
        )
        return
    loss = kept[1]("lens_loss")  # (states, L+1, T)
    states, step = about["states"], about["step"]
    layers = loss.shape[1] - 1
    lines = [
        {"state": state, "when": when, "layer": layer, "loss": float(loss[index, layer].mean())}
        for index, (state, when) in enumerate(zip(states, whens(states, step)))
        for layer in range(layers + 1)
    ]
    left, right = st.columns([1, 2.1])
    with left:
        signs = {"before": "● before", "at": "▼ at", "after": "■ after"}
        safe_html.caption(
            "Mean loss after each layer (nats/token) · "
            + " · ".join(
                f"{signs[when]} {formatting.count(state)}"
                for state, when in zip(states, whens(states, step))
            )
        )
        theme.draw(
            charts.lens(safe_html.dark(), layers), {"lens": pa.Table.from_pylist(lines)}, key="lens"
        )
    with right:
        at = states.index(step) if step in states else 0
        safe_html.caption(
            "Loss of the next token after each layer (down) at each position (across), at state"
            f" {formatting.count(states[at])} · darker: higher,"
            f" {'yellow' if safe_html.dark() else 'dark red'}: worse than guessing at random"
            " (ln V) ·"
            " click a column"
        )
        cells = lens_cells(
            loss[at], kept[1]("lens_top", at), kept[1]("lens_top_p", at), read, _names(about["run"])
        )
        T = loss.shape[2]
        column = (
            []
            if position is None or position >= T
            else [{"position": position, "position2": position + 1, "zero": 0, "all": layers + 1}]
        )
        schema = pa.schema(
            [(index, pa.int64()) for index in ("position", "position2", "zero", "all")]
        )
        theme.draw(
            charts.reads(safe_html.dark(), layers, T),
            {"reads": cells, "column": pa.Table.from_pylist(column, schema=schema)},
            key="reads",
            on_select=_clicked_column,
        )
    if position is not None and position < loss.shape[2]:
        _by_layer(about, kept, read, position)


def _names(run: str) -> Any:
    """id → text of a token of the run."""
    header = data.header(run)
    return reading.token_name(data.runs_folder() / "_data" / header["corpus"])


def lens_cells(
    loss: np.ndarray, top: np.ndarray, top_p: np.ndarray, read: Reading, name: Any
) -> Any:
    """Layers by positions as rectangles; more than 20,000 are put together by the largest loss of
    neighbours.
    """
    import numpy as np
    import pyarrow as pa

    L, T = loss.shape
    width = math.ceil(L * T / theme.STEPS_MOST)
    starts = np.arange(0, T, width)
    worst = np.stack(
        [
            starts
            + np.argmax(
                np.nan_to_num(
                    loss[i][np.minimum(starts[:, None] + np.arange(width), T - 1)], nan=np.inf
                ),
                1,
            )
            for i in range(L)
        ]
    ).clip(max=T - 1)
    layer, stretch = (
        axis.ravel() for axis in np.meshgrid(np.arange(L), np.arange(len(starts)), indexing="ij")
    )
    at = worst[layer, stretch]
    levels = [tokens.level(float(axis), read.vocabulary) for axis in loss[layer, at]]
    texts = [visible(text).replace("\n", "↵") for text in read.texts]
    names = {int(i): visible(name(int(i))).replace("\n", "↵") for i in np.unique(top)}
    return pa.table(
        {
            "layer": layer,
            "layer2": layer + 1,
            "position": starts[stretch],
            "position2": np.minimum(starts[stretch] + width, T),
            "level": [tokens.LEVELS if above else strength for strength, above in levels],
            "loss": loss[layer, at].astype(float),
            "top_p": top_p[layer, at].astype(float),
            "predicts": [names[int(i)] for i in top[layer, at]],
            "reads": [texts[i] for i in at],
            "follows": [texts[i + 1] for i in at],
        }
    )


def column_of(event: Any) -> dict[str, int] | None:
    """Return what a click on the lens changes in the URL."""
    mark = picked(event, "read", "position")
    return {"position": int(mark["position"])} if mark else None


def _clicked_column() -> None:
    change = column_of(st.session_state["reads"])
    if change:
        goto(**change)


def _by_layer(about: dict[str, Any], kept: Kept, read: Reading, position: int) -> None:
    """At one position: what each layer would have said, at each state."""
    name = _names(about["run"])
    loss, top, top_p = (kept[1](f"lens_{index}") for index in ("loss", "top", "top_p"))
    safe_html.caption(
        f"After position {position}, ",
        code(tokens.shown(read.texts[position]).strip("\n") or "␣"),
        ", comes ",
        code(tokens.shown(read.texts[position + 1]).strip("\n") or "␣"),
        ": its loss and the likeliest token after each layer",
    )
    rows = []
    for layer in range(loss.shape[1]):
        row: dict[str, Any] = {"after": "embedding" if layer == 0 else f"layer {layer - 1}"}
        for index, state in enumerate(about["states"]):
            row[f"loss at {state:,}"] = float(loss[index, layer, position])
            row[f"likeliest at {state:,}"] = (
                f"{name(int(top[index, layer, position]))!r}"
                f" {100 * float(top_p[index, layer, position]):.0f}%"
            )
        rows.append(row)
    numbers = {
        f"loss at {state:,}": st.column_config.NumberColumn(format="%.3f")
        for state in about["states"]
    }
    safe_html.frame(rows, column_config=numbers)
