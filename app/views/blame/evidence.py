"""Where the excess sits, the trials, and sums by document and tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from app import safe_html


def draw_split(d: Mapping[str, Any]) -> None:
    """Where the excess sits: in the batch (data part), in the model (state part)."""
    excess = d["excess"]
    safe_html.heading("Where the spike sits")
    parts = (
        ("data", "data: this batch rose more than the probe sequences"),
        ("state", "state: the probe sequences rose too, so the model had become worse"),
    )
    rows = [
        {
            "nats/token": excess[name],
            "share": excess[name] / excess["total"] if excess["total"] else None,
            "part": meaning,
        }
        for name, meaning in parts
        if excess[name] is not None
    ]
    number = st.column_config.NumberColumn
    safe_html.frame(
        rows,
        column_config={
            "nats/token": number(format="%+.3f"),
            "share": st.column_config.ProgressColumn(format="percent", min_value=0, max_value=1),
        },
    )


def draw_trials(d: Mapping[str, Any]) -> None:
    """Draw whether it spikes with other data, from other states, with the policy as before."""
    trials = d["trials"]
    trial_rows = [("other data", trial) for trial in trials["other_data"]] + [
        ("other state", trial) for trial in trials["other_states"]
    ]
    trial_rows += [("policy as before", change["trial"]) for change in trials["policy"]]
    trial_rows += [
        (title, trials[name])
        for name, title in (
            ("policy_as_before", "policy as before"),
            ("neither", "neither data nor policy"),
            ("up_to_date", "up-to-date moments"),
        )
        if trials[name] and not (name == "policy_as_before" and len(trials["policy"]) == 1)
    ]
    trial_rows += [("earlier start", trial) for trial in trials["earlier"]]
    if trial_rows:
        safe_html.heading("Does it spike under other conditions?")
        rows = [
            {
                "trial": name,
                "what": trial["what"],
                "left, nats/token": trial["left"],
                "spikes": "yes" if trial["spikes"] else "no",
            }
            for name, trial in trial_rows
        ]
        safe_html.frame(
            rows,
            column_config={"left, nats/token": st.column_config.NumberColumn(format="%+.3f")},
            tallest=320,
        )


def draw_sums(d: Mapping[str, Any]) -> None:
    """By document, and the tensors of the update after which the probes' loss rose most."""
    rows = [
        {
            "influence": row["influence"],
            "sequences": row["sequences"],
            "source": row["source"],
            "document": row["path"],
        }
        for row in d["documents"][:8]
    ]
    if rows:
        safe_html.heading("Influence by document")
        safe_html.frame(
            rows,
            column_config={"influence": st.column_config.NumberColumn(format="%+.4f")},
            tallest=290,
        )
    tensors = d["tensors"]
    if tensors:
        stale = [tensor for tensor in tensors["stale"] if tensor["times"]][:3]
        if stale:
            safe_html.heading("Second moments that were most out of date")
            safe_html.frame(
                [
                    {
                        "tensor": tensor["tensor"],
                        "staleness": tensor["staleness"],
                        "usual": tensor["usual"],
                        "step": tensor["step"],
                    }
                    for tensor in stale
                ],
                column_config={
                    name: st.column_config.NumberColumn(format="%.2f")
                    for name in ("staleness", "usual")
                },
            )
