"""Search and the list of candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import streamlit as st

from app import safe_html
from app.safe_html import code
from app.selection import goto, picked_row
from app.tokens import shown

if TYPE_CHECKING:
    import pyarrow

LISTED = 400  # rows of the list


def spelled(text: str) -> str:
    """A token in a list: its spaces as ␣, on one line."""
    return shown(text).replace("↵\n", "↵").replace("→\t", "→").replace(" ", "␣")


def draw_search(points: pyarrow.Table, chosen: int | None, of: str) -> None:
    """A token by its id or by a part of its text. `of`: run and checkpoint, for the table's key."""
    text = st.text_input(
        "Find a token", key="token-find", placeholder="an id, or a part of its text"
    )
    if not text:
        return
    found = found_of(points, text)
    if not found:
        safe_html.note("No token holds ", code(text), ".")
        return
    ids = [t["token"] for t in found]
    key = f"token-found-{of}-{hash(tuple(ids))}"
    safe_html.choice(
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
        tallest=220,
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


def draw_list(
    points: pyarrow.Table, verified: Mapping[int, bool], chosen: int | None, of: str
) -> None:
    safe_html.heading(
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
    safe_html.choice(
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
