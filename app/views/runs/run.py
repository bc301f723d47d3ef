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
from app.views.runs.health import status_of


def draw_header(run: str) -> None:
    h = data.header(run)
    safe_html.heading(code(run), f" · {status_of(h)}")
    if h.get("parent"):
        about = next(iter(data.recorded("forks", run)), {})
        safe_html.note(
            "A fork of ",
            code(h["parent"]),
            f" at step {formatting.count(h.get('parent_step'))}: ",
            strong(about.get("sentence") or altered(h.get("interventions") or [])),
            ".",
        )
        if about and not about.get("control_bitwise"):
            safe_html.amber(
                "Tolerance only: the control did not equal the parent bit for bit on this machine."
            )
    pairs = {
        "steps": (
            f"{formatting.count(h.get('first_step'))} to {formatting.count(data.reached(run))} of"
            f" {formatting.count(h.get('steps'))}"
        ),
        "parameters": formatting.count(h.get("parameters")),
        "recipe": h.get("recipe"),
        "device": f"{h.get('device')}, {h.get('precision')}, {h.get('threads')} threads",
        "created": h.get("created"),
        "software": h.get("git_commit") or formatting.NONE,
        "started with": " ".join(map(str, h.get("arguments") or [])) or formatting.NONE,
    }
    safe_html.frame([{"": k, run: str(v)} for k, v in pairs.items()], tallest=1000)
    with st.container(horizontal=True):
        link("spikes", "Spikes", run=run)
        link("forks", "Forks", run=run, fork=None)
        link("tokens", "Tokens", run=run)


def altered(interventions: list[dict[str, Any]]) -> str:
    """What a fork does that is not done yet, and so has no sentence: the kinds of its
    interventions.
    """
    return formatting.listed([i.get("kind", "?") for i in interventions]) or "changes nothing"


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """A configuration as dotted keys and JSON values."""
    found: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            found |= flat(value, f"{name}.")
        else:
            found[name] = json.dumps(value, ensure_ascii=False)
    return found


def differs(mine: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(key, the other's value, mine) of every key in which two configurations differ; – where one
    lacks it.
    """
    a, b = flat(other), flat(mine)
    return [
        (k, a.get(k, formatting.NONE), b.get(k, formatting.NONE))
        for k in dict.fromkeys([*b, *a])
        if a.get(k) != b.get(k)
    ]


def draw_configuration(run: str) -> None:
    h = data.header(run)
    parent = data.header(h["parent"]) if h.get("parent") else {}
    if parent:
        rows, other = differs(h.get("config") or {}, parent.get("config") or {}), str(h["parent"])
        safe_html.heading("Configuration: only what differs from ", code(other))
        if not rows:
            safe_html.note("Nothing: it differs by its interventions alone.")
        for each in h.get("interventions") or []:
            st.code(
                safe_html.visible(json.dumps(each, ensure_ascii=False)[:600]),
                language=None,
                wrap_lines=True,
            )
    else:
        from forensics.config import Recipe, to_dict

        rows, other = differs(h.get("config") or {}, to_dict(Recipe())), "default"
        safe_html.heading("Configuration: only what differs from the defaults")
    if rows:
        table = [
            {"key": k, other: a, "here" if other != "here" else "this run": b} for k, a, b in rows
        ]
        safe_html.frame(table, tallest=360)


def draw_events(run: str) -> None:
    found = sorted(data.recorded("events", run), key=lambda e: (e["step"], e["metric"] or ""))
    spikes = [e for e in found if e["kind"] == "spike"]
    bad = [e for e in found if e["kind"] == "nonfinite"]
    rest = [e for e in found if e["kind"] not in ("spike", "nonfinite")]
    safe_html.heading(f"Spikes: {len(spikes)}", f" · not finite: {len(bad)}")
    if spikes or bad:
        step = chosen_spike(run)
        rows = [
            {
                "": "●" if e["step"] == step else "",
                "step": e["step"],
                "metric": e["metric"] or e["tensor"],
                "kind": e["spike_kind"] or "not finite",
                "from": e["baseline"],
                "to": e["value"],
                "σ": e["sigma"],
                "back at": e["recovered_at"],
            }
            for e in spikes + bad
        ]
        numbers = {n: st.column_config.NumberColumn(format="%.3f") for n in ("from", "to")}
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
            on_select=partial(_chose_spike, key, [r["step"] for r in rows]),
        )
        if step is not None:
            link("spikes", f"Look at the spike at {formatting.count(step)}", run=run, spike=step)
    else:
        safe_html.note("None was found.")
    safe_html.heading(f"Notes and other events: {len(rest)}")
    if rest:
        safe_html.frame(
            [
                {"step": e["step"], "kind": e["kind"], "text": e["text"] or e["metric"]}
                for e in rest
            ],
            tallest=220,
        )
    else:
        safe_html.nothing(
            "The logbook is empty.",
            f'forensics note {run} {max(0, (data.reached(run) or 1) - 1)} "what was seen"',
        )


def chosen_spike(run: str) -> int | None:
    """The spike that the URL names, if it is of this run."""
    chosen = shown()
    return chosen.spike if chosen.run == run else None


def _chose_spike(key: str, steps: list[int]) -> None:
    step = picked_row(st.session_state[key], steps)
    if step is not None:
        goto(spike=step)


def draw_certificates(run: str) -> None:
    found = data.recorded("certificates", run)
    safe_html.heading(
        f"Certificates: {sum(bool(c['bitwise']) for c in found)} of {len(found)} bit for bit"
    )
    if not found:
        at = data.reached(run) or 0
        safe_html.nothing(
            "No window was replayed and compared yet.",
            f"replay verify {run} {max(0, at - 10)} {at}",
        )
        return
    rows = [
        {
            "steps": f"{c['first']:,}:{c['last']:,}",
            "bit for bit": c["bitwise"],
            "level": c["level"],
            "compared": c["compared"],
            "first difference": c["first_difference"],
            "same fingerprint": c["fingerprint_equal"],
            "by": c["source"],
            "when": c["created"],
        }
        for c in found
    ]
    safe_html.frame(rows, tallest=220)
