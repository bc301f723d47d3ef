"""Which tokens never learned? Indicator against exposure at a checkpoint; one token over the run,
and where it stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import streamlit as st

from app import data, show, words, work
from app.charts import theme
from app.charts import vocabulary as charts
from app.pages import _token, chosen_run, guarded
from app.selection import goto, here, picked, picked_row
from app.show import Part, accent, code, strong
from app.tokens import shown

if TYPE_CHECKING:
    import pyarrow

PERCENTILE = (
    2.0  # of the indicator over OK tokens, up to which one is a candidate (arXiv 2405.05417)
)
BINS = (160, 90)  # of the roll-up, across and up
LISTED = 400  # rows of the list


def page() -> None:
    selection = chosen_run()
    if selection is None:
        return
    run = str(selection.run)
    measured = [c for c in data.rows("token_checkpoints", run=run) if c["tokens"]]
    if not measured:
        _empty(run)
        return
    steps = [c["step"] for c in measured]
    best = [c["step"] for c in measured if c["measured"]] or steps
    step = (
        selection.step if selection.step is not None and selection.step in steps else int(best[-1])
    )
    tied = bool((data.header(run).get("shape") or {}).get("tied"))
    points = data.table("token_points", run=run, step=step, tied=int(tied))
    verified, told = _token.verified_of(run, step)
    _verdict(run, step, points, tied, verified, told)
    if told is None and step in [c["step"] for c in measured if c["measured"]]:
        _offer(run, step)
    _checkpoints(steps, step)
    _body(run, step, points, verified, tied)
    if work.listed(run):
        _panel(run)


@st.fragment
def _body(
    run: str, step: int, points: pyarrow.Table, verified: Mapping[int, bool], tied: bool
) -> None:
    """The overview and the token that is chosen in it: a click runs this again, not the page."""
    token = here().token
    left, right = st.columns([1.45, 1], gap="large")
    chosen = token if token is not None else _first(points)
    with left:
        _scatter(points, token, verified, tied)
        _list(points, verified, chosen, f"{run}-{step}")
    with right:
        _find(points, chosen, f"{run}-{step}")
        if chosen is not None:
            _token.draw(run, step, chosen, points, verified)


def _empty(run: str) -> None:
    show.verdict(
        ["No token of ", code(run), " has been measured yet"],
        "Each token's embedding is held against how often the run showed it: exposure is known"
        " exactly, from the data order.",
    )
    show.nothing(
        "From the command line:",
        f"forensics tokens {run}",
        "It measures the last checkpoint; RUN@STEP another one.",
    )
    if not _panel(run):
        st.button(
            "Measure the tokens", type="primary", on_click=_start, args=(run, ["tokens", run])
        )


def _start(run: str, arguments: list[str]) -> None:
    work.start(run, "forensics", arguments)


def _offer(run: str, step: int) -> None:
    """A button that has the candidates verified, unless tokens are being measured already."""
    arguments = ["tokens", f"{run}@{step}", "--verify"]
    if not any(w.status == "running" and w.arguments[:1] == ("tokens",) for w in work.listed(run)):
        st.button("Verify the candidates by prompts", on_click=_start, args=(run, arguments))


def _panel(run: str) -> bool:
    """The newest measurement while it runs, or when it failed; True while it runs."""
    own = [w for w in work.listed(run) if w.arguments[:1] == ("tokens",)][:1]
    if own and own[0].status != "done":
        work.panel(run, most=1, key="work-tokens")
    return bool(own) and own[0].status == "running"


# ---- the sentence


def summary(points: pyarrow.Table) -> dict[str, Any]:
    """What a checkpoint's tokens say in numbers: never met, under the 2 % rule, by cause."""
    import pyarrow.compute as pc

    ok = (
        pc.starts_with(points["category"], "OK")
        if points["category"].null_count < points.num_rows
        else pc.is_valid(points["token"])
    )
    known = points.filter(pc.and_(pc.fill_null(ok, False), pc.is_valid(points["indicator"])))
    threshold = (
        pc.quantile(known["indicator"], q=PERCENTILE / 100)[0].as_py() if known.num_rows else None
    )
    low = (
        known.filter(pc.less_equal(known["indicator"], threshold))
        if threshold is not None
        else known.slice(0, 0)
    )
    never = points.filter(
        pc.and_(pc.equal(points["exposure_in"], 0), pc.equal(points["exposure_out"], 0))
    )
    kinds = {row["values"]: row["counts"] for row in points["kind"].value_counts().to_pylist()}
    return {
        "tokens": points.num_rows,
        "never": never.num_rows,
        "threshold": threshold,
        "candidates": low.num_rows,
        "lowest": low.slice(0, 5).select(["token", "text"]).to_pylist(),
        "kinds": kinds,
        "met_candidates": low.filter(pc.greater(low["exposure"], 0)).num_rows,
        "measured": known.num_rows,
    }


def sentence_of(s: Mapping[str, Any], verified: Mapping[int, bool], told: str | None) -> list[Part]:
    """Candidates and the lowest of them, causes, what verification found; `told`: its verdict on
    the model.
    """
    said: list[Part] = []
    if s["threshold"] is not None:
        said += [
            strong(words.count(s["candidates"])),
            (
                f" of {words.count(s['measured'])} reachable tokens lie at or below the 2nd"
                f" percentile of the indicator ({words.number(s['threshold'])}),"
                f" {words.count(s['met_candidates'])} of them although the model was shown them. "
            ),
        ]
        if s["lowest"]:
            said += ["Lowest: "]
            for i, token in enumerate(s["lowest"]):
                said += [", " if i else "", code(shown(token["text"] or ""))]
            said += [". "]
    else:
        said += ["Only their exposure is known at this checkpoint, no indicator. "]
    causes = [(k, n) for k, n in sorted(s["kinds"].items(), key=lambda e: -e[1]) if k != "ok"]
    if causes:
        said += ["Causes: ", accent(", ".join(f"{k} {n:,}" for k, n in causes)), ". "]
    if verified:
        said += [
            strong(f"{sum(verified.values()):,} of {len(verified):,}"),
            " that were prompted are verified.",
        ]
    elif told is not None:
        said += [f"Prompts: {told}."]
    return said


def _verdict(
    run: str,
    step: int,
    points: pyarrow.Table,
    tied: bool,
    verified: Mapping[int, bool],
    told: str | None,
) -> None:
    s = summary(points)
    title = (
        f"State {words.count(step)}: {words.count(s['never'])} of {words.count(s['tokens'])} tokens"
        " were never shown to the model"
    )
    hedge: list[Part] = (
        ["Low is suspect, not proof."]
        if told is not None
        else [
            "Low is suspect, not proof: ",
            code(f"forensics tokens {run}@{step} --verify"),
            " prompts the model to repeat each candidate.",
        ]
    )
    show.verdict(title, *sentence_of(s, verified, told), hedge=hedge)


# ---- the overview


def _checkpoints(steps: list[int], step: int) -> None:
    if len(steps) > 1:
        st.session_state["token-step"] = step
        st.select_slider(
            "Checkpoint",
            steps,
            key="token-step",
            on_change=lambda: goto(step=st.session_state["token-step"]),
        )


def _scatter(
    points: pyarrow.Table, token: int | None, verified: Mapping[int, bool], tied: bool
) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    known = points.filter(pc.is_valid(points["indicator"]))
    if not known.num_rows:
        show.nothing(
            "No indicator was measured at this checkpoint.",
            hint="Only exposure is known; see the list below.",
        )
        return
    s = summary(points)
    show.caption(
        f"{'Cosine distance to unused rows' if tied else 'Norm of the embedding row'} against"
        " exposure · each mark a token · dashed: the 2nd"
        f" percentile{' · ringed: verified' if any(verified.values()) else ''} · click one"
    )
    _legend(s["kinds"])
    marks, cells = rolled(known, charts.MOST)
    ids = pa.array([i for i, yes in verified.items() if yes], pa.int32())
    tables = {
        "points": marks,
        "cells": cells,
        "verified": known.filter(pc.is_in(known["token"], ids)),
        "chosen": known.filter(pc.equal(known["token"], -1 if token is None else token)),
        "line": pa.table(
            {
                "indicator": pa.array(
                    [] if s["threshold"] is None else [s["threshold"]], pa.float64()
                )
            }
        ),
    }
    columns = ["token", "text", "exposure", "indicator", "documents", "kind", "category"]
    for name in ("points", "verified", "chosen"):
        tables[name] = _spelled(tables[name].select(columns))
    theme.draw(
        charts.scatter(show.dark(), "indicator"), tables, key="token-scatter", on_select=_clicked
    )


def _spelled(rows: pyarrow.Table) -> pyarrow.Table:
    """With texts in which spaces and new lines are seen."""
    import pyarrow as pa

    at = rows.column_names.index("text")
    texts = [None if t is None else spelled(t) for t in rows["text"].to_pylist()]
    return rows.set_column(at, "text", pa.array(texts, pa.string()))


def spelled(text: str) -> str:
    """A token in a list: its spaces as ␣, on one line."""
    return shown(text).replace("↵\n", "↵").replace("→\t", "→").replace(" ", "␣")


def _legend(kinds: Mapping[str, int]) -> None:
    import pyarrow as pa

    there = [k for k in charts.KINDS if kinds.get(k)]
    rows = {
        "place": [i + 0.08 for i in range(len(there))],
        "kind": there,
        "word": [f"{'OK' if k == 'ok' else k} {kinds[k]:,}" for k in there],
    }
    theme.draw(charts.legend(show.dark()), {"kinds": pa.table(rows)}, key="token-legend")


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

    empty = {k: pa.array([], pa.float64()) for k in ("x", "x2", "y", "y2")} | {
        "tokens": pa.array([], pa.int64())
    }
    if known.num_rows <= most:
        return known, pa.table(empty)
    is_ok = pc.equal(known["kind"], "ok")
    ok, others = known.filter(is_ok), known.filter(pc.invert(is_ok))
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
    return others.slice(0, max(0, most - len(i))), pa.table(cells)


def _first(points: pyarrow.Table) -> int | None:
    return points["token"][0].as_py() if points.num_rows else None


# ---- lists


def _find(points: pyarrow.Table, chosen: int | None, of: str) -> None:
    """A token by its id or by a part of its text. `of`: run and checkpoint, for the table's key."""
    text = st.text_input(
        "Find a token", key="token-find", placeholder="an id, or a part of its text"
    )
    if not text:
        return
    found = found_of(points, text)
    if not found:
        show.note("No token holds ", code(text), ".")
        return
    ids = [t["token"] for t in found]
    key = f"token-found-{of}-{hash(tuple(ids))}"
    show.choice(
        [
            {
                "id": t["token"],
                "text": spelled(t["text"] or ""),
                "exposure": t["exposure"],
                "indicator": t["indicator"],
            }
            for t in found
        ],
        row_of(ids, chosen),
        key=key,
        on_select=partial(_chose, key, ids),
        height=min(220, 38 + 35 * len(found)),
    )


def found_of(points: pyarrow.Table, text: str, most: int = 50) -> list[dict[str, Any]]:
    """Tokens whose id or text it is; then those whose text holds it."""
    import pyarrow.compute as pc

    holds = pc.fill_null(pc.match_substring(points["text"], text), False)
    by_id = (
        pc.equal(points["token"], int(text))
        if text.isascii() and text.isdecimal() and len(text) < 9
        else pc.equal(points["token"], -1)
    )
    found = points.filter(pc.or_(holds, by_id)).slice(0, 5000).to_pylist()
    order = sorted(
        found, key=lambda t: (str(t["token"]) != text, t["text"] != text, len(t["text"] or ""))
    )
    return order[:most]


def _list(points: pyarrow.Table, verified: Mapping[int, bool], chosen: int | None, of: str) -> None:
    show.heading(
        "Lowest indicator first; choose a"
        f" row{f' (the first {LISTED} of {points.num_rows:,})' if points.num_rows > LISTED else ''}"
    )
    rows = points.slice(0, LISTED).to_pylist()
    listed = [
        {
            "id": t["token"],
            "text": spelled(t["text"] or ""),
            "indicator": t["indicator"],
            "in": t["exposure_in"],
            "out": t["exposure_out"],
            "grad": t["exposure_grad"],
            "documents": t["documents"],
            "cause": None if t["kind"] == "ok" else t["kind"],
            "verified": verified.get(t["token"]),
        }
        for t in rows
    ]
    config = {"indicator": st.column_config.NumberColumn(format="%.4f")}
    ids, key = [t["token"] for t in rows], f"token-list-{of}"
    show.choice(
        listed,
        row_of(ids, chosen),
        key=key,
        on_select=partial(_chose, key, ids),
        column_config=config,
        height=300,
        placeholder="",
    )


def row_of(ids: Sequence[int], chosen: int | None) -> int | None:
    """Where the chosen token stands in a list."""
    return ids.index(chosen) if chosen is not None and chosen in ids else None


def _chose(key: str, ids: list[int]) -> None:
    token = picked_row(st.session_state[key], ids)
    if token is not None:
        goto(token=token)


guarded(page)
