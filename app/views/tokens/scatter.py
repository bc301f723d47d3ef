"""Indicator against exposure, a mark for each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import streamlit as st

from app import safe_html, theme
from app.selection import goto, picked
from app.views.tokens import charts
from app.views.tokens.lists import spelled
from app.views.tokens.summary import summary

if TYPE_CHECKING:
    import pyarrow

BINS = (160, 90)  # of the roll-up, across and up


def draw_scatter(
    points: pyarrow.Table, token: int | None, verified: Mapping[int, bool], tied: bool
) -> None:
    """Draw indicator against exposure, a mark for each token; a click chooses one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    measured = points.filter(pc.is_valid(points["indicator"]))
    if not measured.num_rows:
        safe_html.nothing(
            "The indicator was not measured at this checkpoint.",
            hint="How often each token was seen is known; see the list below.",
        )
        return
    counts = summary(points)
    safe_html.caption(
        f"Indicator ({'cosine distance to unused rows' if tied else 'norm of the embedding row'})"
        " against how often the token was seen · each mark is a token · dashed: the 2nd percentile"
        f"{' · ringed: the model cannot repeat it' if any(verified.values()) else ''} · click one"
    )
    _legend(counts["kinds"])
    marks, cells = rolled(measured, charts.MOST)
    ids = pa.array([token_id for token_id, yes in verified.items() if yes], pa.int32())
    tables = {
        "points": marks,
        "cells": cells,
        "verified": measured.filter(pc.is_in(measured["token"], ids)),
        "chosen": measured.filter(pc.equal(measured["token"], -1 if token is None else token)),
        "line": pa.table(
            {
                "indicator": pa.array(
                    [] if counts["threshold"] is None else [counts["threshold"]], pa.float64()
                )
            }
        ),
    }
    columns = ["token", "text", "exposure", "indicator", "documents", "kind", "category"]
    for name in ("points", "verified", "chosen"):
        tables[name] = _spelled(tables[name].select(columns))
    theme.draw(
        charts.scatter(safe_html.dark(), "indicator"),
        tables,
        key="token-scatter",
        on_select=_clicked,
    )


def _spelled(rows: pyarrow.Table) -> pyarrow.Table:
    """With texts in which spaces and new lines are seen."""
    import pyarrow as pa

    at = rows.column_names.index("text")
    texts = [None if text is None else spelled(text) for text in rows["text"].to_pylist()]
    return rows.set_column(at, "text", pa.array(texts, pa.string()))


def _legend(kinds: Mapping[str, int]) -> None:
    import pyarrow as pa

    there = [key for key in charts.KINDS if kinds.get(key)]
    rows = {
        "place": [i + 0.08 for i in range(len(there))],
        "kind": there,
        "word": [f"{'OK' if key == 'ok' else key} {kinds[key]:,}" for key in there],
    }
    theme.draw(charts.legend(safe_html.dark()), {"kinds": pa.table(rows)}, key="token-legend")


def _clicked() -> None:
    mark = picked(st.session_state["token-scatter"], "token", "token")
    if mark:
        goto(token=int(mark["token"]))


def rolled(known: pyarrow.Table, most: int) -> tuple[pyarrow.Table, pyarrow.Table]:
    """(tokens drawn each, cells of the others): all up to `most`; beyond, OK tokens are counted in
    cells of log(1 + exposure).

    Tokens with a cause are always drawn, the lowest first where even they are too many. Cells: x,
    x2, y, y2, tokens.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    empty = {key: pa.array([], pa.float64()) for key in ("x", "x2", "y", "y2")} | {
        "tokens": pa.array([], pa.int64())
    }
    if known.num_rows <= most:
        return known, pa.table(empty)
    is_ok = pc.equal(known["kind"], "ok")
    ok, caused = known.filter(is_ok), known.filter(pc.invert(is_ok))
    x = np.log1p(ok["exposure"].to_numpy().astype(np.float64))
    y = ok["indicator"].to_numpy().astype(np.float64)
    counts, edges_x, edges_y = np.histogram2d(x, y, bins=BINS)
    i, j = np.nonzero(counts)
    cells = {
        "x": np.expm1(edges_x[i]),
        "x2": np.expm1(edges_x[i + 1]),
        "y": edges_y[j],
        "y2": edges_y[j + 1],
        "tokens": counts[i, j].astype(np.int64),
    }
    return caused.slice(0, max(0, most - len(i))), pa.table(cells)
