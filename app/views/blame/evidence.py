"""Where the excess sits, the trials, and sums by document and tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from app import safe_html


def draw_split(d: Mapping[str, Any]) -> None:
    """Where the excess sits: in the batch (data part), in the model (state part)."""
    excess = d["excess"]
    safe_html.heading("Excess")
    parts = (
        ("data", "data part: this batch reads worse than the probes do"),
        ("state", "state part: the model had become worse"),
    )
    rows = [
        {
            "nats/token": excess[k],
            "of the whole": excess[k] / excess["total"] if excess["total"] else None,
            "part": what,
        }
        for k, what in parts
        if excess[k] is not None
    ]
    number = st.column_config.NumberColumn
    safe_html.frame(
        rows,
        column_config={
            "nats/token": number(format="%+.3f"),
            "of the whole": st.column_config.ProgressColumn(
                format="percent", min_value=0, max_value=1
            ),
        },
    )


def draw_trials(d: Mapping[str, Any]) -> None:
    trials = d["trials"]
    named = [("other data", t) for t in trials["other_data"]] + [
        ("other state", t) for t in trials["other_states"]
    ]
    named += [
        (name.replace("_", " "), trials[name])
        for name in ("up_to_date", "steady_rate")
        if trials[name]
    ]
    if named:
        safe_html.heading("Trials: does it spike all the same?")
        rows = [
            {
                "trial": name,
                "what": t["what"],
                "left, nats": t["left"],
                "spikes": "yes" if t["spikes"] else "no",
            }
            for name, t in named
        ]
        safe_html.frame(
            rows,
            column_config={"left, nats": st.column_config.NumberColumn(format="%+.3f")},
            tallest=320,
        )


def draw_sums(d: Mapping[str, Any]) -> None:
    """By document, and the tensors of the update after which the probes' loss rose most."""
    rows = [
        {
            "influence": r["influence"],
            "sequences": r["sequences"],
            "source": r["source"],
            "document": r["path"],
        }
        for r in d["documents"][:8]
    ]
    if rows:
        safe_html.heading("By document")
        safe_html.frame(
            rows,
            column_config={"influence": st.column_config.NumberColumn(format="%+.4f")},
            tallest=290,
        )
    tensors = d["tensors"]
    if tensors:
        stale = [s for s in tensors["stale"] if s["times"]][:3]
        if stale:
            safe_html.heading("Second moments most out of date")
            safe_html.frame(
                [
                    {
                        "tensor": s["tensor"],
                        "staleness": s["staleness"],
                        "usual": s["usual"],
                        "step": s["step"],
                    }
                    for s in stale
                ],
                column_config={
                    k: st.column_config.NumberColumn(format="%.2f") for k in ("staleness", "usual")
                },
            )
