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
    import pyarrow as pa

    safe_html.heading("Logit lens: what each layer would have predicted")
    if not about["lens"]:
        safe_html.nothing(
            "There is no logit lens here: " + (about["why"] or "it was left out (--no-lens)") + "."
        )
        return
    loss = kept[1]("lens_loss")  # (states, L+1, T)
    states, step = about["states"], about["step"]
    layers = loss.shape[1] - 1
    lines = [
        {"state": s, "when": when, "layer": i, "loss": float(loss[k, i].mean())}
        for k, (s, when) in enumerate(zip(states, whens(states, step)))
        for i in range(layers + 1)
    ]
    left, right = st.columns([1, 2.1])
    with left:
        signs = {"before": "● before", "at": "▼ at", "after": "■ after"}
        safe_html.caption(
            "Mean loss read out after each layer (nats/token) · "
            + " · ".join(
                f"{signs[w]} {formatting.count(s)}" for s, w in zip(states, whens(states, step))
            )
        )
        theme.draw(
            charts.lens(safe_html.dark(), layers), {"lens": pa.Table.from_pylist(lines)}, key="lens"
        )
    with right:
        at = states.index(step) if step in states else 0
        safe_html.caption(
            "Loss of the token that follows, by layer (down) and position (across), at state"
            f" {formatting.count(states[at])} · as the tokens: 0 … ln V on seven strengths,"
            f" {'yellow' if safe_html.dark() else 'dark red'}: above ln V · click a column"
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
        schema = pa.schema([(k, pa.int64()) for k in ("position", "position2", "zero", "all")])
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
    layer, k = (x.ravel() for x in np.meshgrid(np.arange(L), np.arange(len(starts)), indexing="ij"))
    at = worst[layer, k]
    levels = [tokens.level(float(x), read.vocabulary) for x in loss[layer, at]]
    texts = [visible(t).replace("\n", "↵") for t in read.texts]
    said = {int(i): visible(name(int(i))).replace("\n", "↵") for i in np.unique(top)}
    return pa.table(
        {
            "layer": layer,
            "layer2": layer + 1,
            "position": starts[k],
            "position2": np.minimum(starts[k] + width, T),
            "level": [tokens.LEVELS if above else strength for strength, above in levels],
            "loss": loss[layer, at].astype(float),
            "top_p": top_p[layer, at].astype(float),
            "predicts": [said[int(i)] for i in top[layer, at]],
            "reads": [texts[i] for i in at],
            "follows": [texts[i + 1] for i in at],
        }
    )


def column_of(event: Any) -> dict[str, int] | None:
    """What a click on the lens changes in the URL."""
    mark = picked(event, "read", "position")
    return {"position": int(mark["position"])} if mark else None


def _clicked_column() -> None:
    change = column_of(st.session_state["reads"])
    if change:
        goto(**change)


def _by_layer(about: dict[str, Any], kept: Kept, read: Reading, position: int) -> None:
    """At one position: what each layer would have said, at each state."""
    name = _names(about["run"])
    loss, top, top_p = (kept[1](f"lens_{k}") for k in ("loss", "top", "top_p"))
    safe_html.caption(
        f"After position {position}, ",
        code(tokens.shown(read.texts[position]).strip("\n") or "␣"),
        ", comes ",
        code(tokens.shown(read.texts[position + 1]).strip("\n") or "␣"),
        ": loss and likeliest token, layer by layer",
    )
    rows = []
    for i in range(loss.shape[1]):
        row: dict[str, Any] = {"after": "embedding" if i == 0 else f"layer {i - 1}"}
        for k, state in enumerate(about["states"]):
            row[f"loss at {state:,}"] = float(loss[k, i, position])
            row[f"likeliest at {state:,}"] = (
                f"{name(int(top[k, i, position]))!r} {100 * float(top_p[k, i, position]):.0f}%"
            )
        rows.append(row)
    numbers = {
        f"loss at {s:,}": st.column_config.NumberColumn(format="%.3f") for s in about["states"]
    }
    safe_html.frame(rows, column_config=numbers)
