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
    """Write a token in a list: its spaces as ␣, on one line."""
    return shown(text).replace("↵\n", "↵").replace("→\t", "→").replace(" ", "␣")


def draw_search(points: pyarrow.Table, chosen: int | None, of: str) -> None:
    """Draw the search for a token by its id or a part of its text.

    `of`: run and checkpoint, for the table's key.
    """
    text = st.text_input(
        "Find a token", key="token-find", placeholder="its id, or a part of its text"
    )
    if not text:
        return
    matches = found_of(points, text)
    if not matches:
        safe_html.note("No token contains ", code(text), ".")
        return
    ids = [token["token"] for token in matches]
    key = f"token-found-{of}-{hash(tuple(ids))}"
    safe_html.choice(
        [
            {
                "id": token["token"],
                "text": spelled(token["text"] or ""),
                "exposure": token["exposure"],
                "indicator": token["indicator"],
            }
            for token in matches
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
    matches = points.filter(pc.or_(holds, by_id)).slice(0, 5000).to_pylist()
    order = sorted(
        matches, key=lambda t: (str(t["token"]) != text, t["text"] != text, len(t["text"] or ""))
    )
    return order[:most]


def draw_list(
    points: pyarrow.Table, verified: Mapping[int, bool], chosen: int | None, of: str
) -> None:
    """Draw the tokens by their indicator; a click chooses one."""
    safe_html.heading(
        "Tokens, lowest indicator first. Choose a row to see it"
        f"{f' (the first {LISTED} of {points.num_rows:,})' if points.num_rows > LISTED else ''}."
    )
    rows = points.slice(0, LISTED).to_pylist()
    listed = [
        {
            "id": token["token"],
            "text": spelled(token["text"] or ""),
            "indicator": token["indicator"],
            "in": token["exposure_in"],
            "out": token["exposure_out"],
            "grad": token["exposure_grad"],
            "documents": token["documents"],
            "cause": None if token["kind"] == "ok" else token["kind"],
            "verified": verified.get(token["token"]),
        }
        for token in rows
    ]
    config = {"indicator": st.column_config.NumberColumn(format="%.4f")}
    ids, key = [token["token"] for token in rows], f"token-list-{of}"
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
