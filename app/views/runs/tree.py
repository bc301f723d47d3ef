"""All runs and forks as a tree on the axis of steps."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import data, formatting, safe_html, theme
from app.safe_html import strong
from app.selection import goto, picked
from app.views.runs import charts
from app.views.runs.health import SILENT, status_of

MOST = 60  # rows of the tree


def draw_overview(run: str) -> None:
    headers = data.headers()
    health = {h["run"]: h for h in data.rows("run_health")}
    title, sentence = summary(headers, health)
    safe_html.verdict(title, *sentence)
    rows = tree(headers, health)
    safe_html.caption(
        "A bar is a run, from its first step to where it is; grey: a run, blue: a fork, light: its"
        " null forks · marks: spikes of the loss · click a bar"
    )
    _draw(rows[:MOST], run)
    if len(rows) > MOST:
        safe_html.caption(f"and {len(rows) - MOST} more: choose one above")


def summary(
    headers: list[dict[str, Any]], health: dict[str, dict[str, Any]]
) -> tuple[str, list[Any]]:
    """What is the case with the runs, as a title and a sentence."""
    forks = [h for h in headers if h.get("parent")]
    own = [h for h in headers if not h.get("parent")]
    nothing = {"loss_spikes": 0, "nonfinite": 0}
    spiky = [h["name"] for h in own if health.get(h["name"], nothing)["loss_spikes"]]
    broken = [h["name"] for h in headers if health.get(h["name"], nothing)["nonfinite"]]
    stopped = [h["name"] for h in own if h.get("status") in ("interrupted", "failed")]
    status = {h["name"]: status_of(h) for h in headers}
    training = [name for name, said in status.items() if said == "running"]
    silent = [name for name, said in status.items() if said == SILENT]
    quiet = [h for h in own if h["name"] not in {*spiky, *broken, *stopped, *silent}]
    counted = f"{len(own)} {'run' if len(own) == 1 else 'runs'}"
    title = counted + (f", {len(forks)} {'fork' if len(forks) == 1 else 'forks'}" if forks else "")
    title += f": {len(quiet)} without a spike of the loss or a value that is not finite"
    said: list[Any] = []
    for names, what in (
        (training, "Training now"),
        (spiky, "With spikes of the loss"),
        (broken, "With values not finite"),
        (stopped, "Interrupted or failed"),
        (silent, SILENT.capitalize()),
    ):
        if names:
            said += [f"{what}: ", strong(formatting.listed(names)), ". "]
    return title, said


def tree(headers: list[dict[str, Any]], health: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the tree, depth first: {row, run, first, last, ahead, kind, status, does, parent_row,
    parent_step}.
    """
    known = {h["name"] for h in headers}
    rows: list[dict[str, Any]] = []

    def add(h: dict[str, Any], depth: int, parent: str | None) -> None:
        reached = data.reached(h["name"])
        about = health.get(h["name"], {})
        label = ("  " * (depth - 1) + "└ " if depth else "") + h["name"]
        last = max(reached if reached is not None else h["first_step"], h["first_step"])
        row = {
            "row": label,
            "run": h["name"],
            "first": h["first_step"],
            "last": last,
            "ahead": h["steps"],
            "kind": "fork" if h.get("parent") else "run",
            "status": status_of(h),
            "does": about.get("sentence") or "",
            "parent_row": parent,
            "parent_step": h.get("parent_step"),
        }
        rows.append(row)
        nulls = (about.get("placebos") or 0) + (about.get("chaos") or 0)
        if nulls:
            rows.append(
                {
                    **row,
                    "row": "  " * depth + f"└ null ×{nulls} of {h['name']}",
                    "kind": "null",
                    "parent_row": parent,
                    "does": f"{about['placebos']} placebos, {about['chaos']} chaos forks",
                    "ahead": last,
                }
            )
        for child in headers:
            if child.get("parent") == h["name"] and child["name"] not in {r["run"] for r in rows}:
                add(child, depth + 1, label)

    for h in headers:
        if h.get("parent") not in known and h["name"] not in {r["run"] for r in rows}:
            add(h, 0, None)
    return rows


def _draw(rows: list[dict[str, Any]], run: str) -> None:
    import pyarrow as pa

    text, whole = pa.string(), pa.int64()
    by_run = {r["run"]: r for r in rows if r["kind"] != "null"}
    marks = [
        {"row": by_run[m["run"]]["row"], "step": m["step"], "kind": m["kind"]}
        for m in data.rows("run_marks")
        if m["run"] in by_run
    ]
    bars = pa.schema(
        [
            (n, text if n in ("row", "run", "kind", "status", "does") else whole)
            for n in ("row", "run", "first", "last", "kind", "status", "does")
        ]
    )
    span = pa.schema([("row", text), ("first", whole), ("last", whole)])
    joins = [
        {"step": r["parent_step"], "row": r["parent_row"], "row2": r["row"]}
        for r in rows
        if r["parent_row"] is not None and r["parent_step"] is not None
    ]
    shown = {
        "bars": pa.Table.from_pylist(rows, schema=bars),
        "ahead": pa.Table.from_pylist(
            [{**r, "first": r["last"], "last": r["ahead"]} for r in rows if r["ahead"] > r["last"]],
            schema=span,
        ),
        "chosen": pa.Table.from_pylist(
            [r for r in rows if r["run"] == run and r["kind"] != "null"], schema=span
        ),
        "joins": pa.Table.from_pylist(
            joins, schema=pa.schema([("step", whole), ("row", text), ("row2", text)])
        ),
        "marks": pa.Table.from_pylist(
            marks, schema=pa.schema([("row", text), ("step", whole), ("kind", text)])
        ),
    }
    spec = theme.filled(charts.tree(safe_html.dark(), len(rows)), rows=[r["row"] for r in rows])
    theme.draw(spec, shown, key="tree", on_select=_clicked)


def bar_of(event: Any) -> dict[str, str] | None:
    """What a click on a bar changes in the URL."""
    mark = picked(event, "bar", "run")
    return {"run": str(mark["run"])} if mark else None


def _clicked() -> None:
    change = bar_of(st.session_state["tree"])
    if change:
        goto(**change)
