"""One run: its header, configuration, events and certificates."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import streamlit as st

from app import data, formatting, safe_html
from app.navigation import link
from app.safe_html import code, strong
from app.selection import goto, picked_row, shown
from app.views.runs.health import status_of, words_of


def draw_header(run: str) -> None:
    """Draw what a run is: its steps, size, device and how it was started."""
    header = data.header(run)
    safe_html.heading(code(run), f" · {words_of(status_of(header))}")
    if header.get("parent"):
        about = next(iter(data.recorded("forks", run)), {})
        safe_html.note(
            "A fork of ",
            code(header["parent"]),
            f" at state {formatting.count(header.get('parent_step'))}, which ",
            strong(about.get("sentence") or altered(header.get("interventions") or [])),
            ".",
        )
        if about and not about.get("control_bitwise"):
            safe_html.amber(
                "Tolerance only: the control did not equal the parent bit for bit on this machine."
            )
    pairs = {
        "steps": (
            f"{formatting.count(header.get('first_step'))} to"
            f" {formatting.count(data.reached(run))} of"
            f" {formatting.count(header.get('steps'))}"
        ),
        "parameters": formatting.count(header.get("parameters")),
        "recipe": header.get("recipe"),
        "device": ", ".join(
            [
                str(header.get("device")),
                str(header.get("precision")),
                f"{header.get('threads')} threads",
            ]
        ),
        "created": header.get("created"),
        "software": header.get("git_commit") or formatting.NONE,
        "started with": " ".join(map(str, header.get("arguments") or [])) or formatting.NONE,
    }
    safe_html.frame([{"": key, run: str(value)} for key, value in pairs.items()], tallest=1000)
    with st.container(horizontal=True):
        link("spikes", "Spikes", run=run)
        link("forks", "Forks", run=run, fork=None)
        link("tokens", "Tokens", run=run)


def altered(interventions: list[dict[str, Any]]) -> str:
    """Return the kinds of a fork's interventions, where it is not done and has no sentence yet."""
    return (
        formatting.listed([intervention.get("kind", "?") for intervention in interventions])
        or "nothing altered"
    )


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a configuration as dotted keys and JSON values."""
    pairs: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            pairs |= flat(value, f"{name}.")
        else:
            pairs[name] = json.dumps(value, ensure_ascii=False)
    return pairs


def differs(mine: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (key, the other's value, mine) where two configurations differ."""
    theirs, ours = flat(other), flat(mine)
    return [
        (key, theirs.get(key, formatting.NONE), ours.get(key, formatting.NONE))
        for key in dict.fromkeys([*ours, *theirs])
        if theirs.get(key) != ours.get(key)
    ]


def draw_configuration(run: str) -> None:
    """Draw where the configuration differs from the defaults, or from the parent's."""
    header = data.header(run)
    parent = data.header(header["parent"]) if header.get("parent") else {}
    if parent:
        rows, column = (
            differs(header.get("config") or {}, parent.get("config") or {}),
            str(header["parent"]),
        )
        safe_html.heading("Configuration, where it differs from ", code(column))
        if not rows:
            safe_html.note("Its configuration is the same; it differs by its interventions alone.")
        for intervention in header.get("interventions") or []:
            st.code(
                safe_html.visible(json.dumps(intervention, ensure_ascii=False)[:600]),
                language=None,
                wrap_lines=True,
            )
    else:
        from forensics.config import Recipe, to_dict

        rows, column = differs(header.get("config") or {}, to_dict(Recipe())), "default"
        safe_html.heading("Configuration, where it differs from the defaults")
    if rows:
        table = [
            {"key": key, column: default, "here" if column != "here" else "this run": value}
            for key, default, value in rows
        ]
        safe_html.frame(table, tallest=360)


def draw_events(run: str) -> None:
    """Draw the spikes, values that are not finite, and notes of a run."""
    events = sorted(
        data.recorded("events", run), key=lambda event: (event["step"], event["metric"] or "")
    )
    spikes = [event for event in events if event["kind"] == "spike"]
    bad = [event for event in events if event["kind"] == "nonfinite"]
    notes = [event for event in events if event["kind"] not in ("spike", "nonfinite")]
    safe_html.heading(f"Spikes: {len(spikes)}", f" · values not finite: {len(bad)}")
    if spikes or bad:
        _draw_spikes(run, spikes + bad)
    else:
        safe_html.note("No spike was found, and every value was finite.")
    safe_html.heading(f"Notes and other events: {len(notes)}")
    if notes:
        safe_html.frame(
            [
                {
                    "step": event["step"],
                    "kind": event["kind"],
                    "text": event["text"] or event["metric"],
                }
                for event in notes
            ],
            tallest=220,
        )
    else:
        safe_html.nothing(
            "No note was written on this run. This command writes one:",
            f'forensics note {run} {max(0, (data.reached(run) or 1) - 1)} "what you saw"',
        )


def _draw_spikes(run: str, events: list[dict[str, Any]]) -> None:
    """Draw spikes and values that are not finite as a table, of which a row is chosen."""
    step = chosen_spike(run)
    rows = [
        {
            "": "●" if event["step"] == step else "",
            "step": event["step"],
            "metric": event["metric"] or event["tensor"],
            "kind": "not finite" if event["kind"] == "nonfinite" else event["spike_kind"] or "–",
            "from": event["baseline"],
            "to": event["value"],
            "σ": event["sigma"],
            "back at": event["recovered_at"],
        }
        for event in events
    ]
    numbers = {name: st.column_config.NumberColumn(format="%.3f") for name in ("from", "to")}
    columns = {
        "": st.column_config.TextColumn(width=24),
        **numbers,
        "σ": st.column_config.NumberColumn(format="%.0f"),
    }
    # of this choice: the tick of another, from before Back, would not go away
    key = f"events-{run}-{step}"
    safe_html.frame(
        rows,
        key=key,
        tallest=290,
        selection_mode="single-row",
        column_config=columns,
        on_select=partial(_chose_spike, key, [row["step"] for row in rows]),
    )
    if step is not None:
        link("spikes", f"Look at the spike at {formatting.count(step)}", run=run, spike=step)


def chosen_spike(run: str) -> int | None:
    """Return the spike that the URL names, if it is of this run."""
    chosen = shown()
    return chosen.spike if chosen.run == run else None


def _chose_spike(key: str, steps: list[int]) -> None:
    step = picked_row(st.session_state[key], steps)
    if step is not None:
        goto(spike=step)


def draw_certificates(run: str) -> None:
    """Draw which parts were trained again and compared with the recording."""
    certificates = data.recorded("certificates", run)
    equal = sum(bool(certificate["bitwise"]) for certificate in certificates)
    safe_html.heading(
        f"Replays compared with the recording: {equal} of {len(certificates)} equal bit for bit"
    )
    if not certificates and data.is_log_alone(run):
        safe_html.nothing("A log alone cannot be trained again.")
        return
    if not certificates:
        at = data.reached(run) or 0
        safe_html.nothing(
            "No part of this run has been trained again and compared yet. This command does it:",
            f"replay verify {run} {max(0, at - 10)} {at}",
        )
        return
    rows = [
        {
            "steps": f"{certificate['first']:,}:{certificate['last']:,}",
            "bit for bit": certificate["bitwise"],
            "level": certificate["level"],
            "compared": certificate["compared"],
            "first difference": certificate["first_difference"],
            "same fingerprint": certificate["fingerprint_equal"],
            "by": certificate["source"],
            "when": certificate["created"],
        }
        for certificate in certificates
    ]
    safe_html.frame(rows, tallest=220)
