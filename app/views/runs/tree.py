"""All runs and forks as a tree on the axis of steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from app import data, formatting, safe_html, theme
from app.safe_html import Part, strong
from app.selection import goto, picked
from app.views.runs import charts
from app.views.runs.health import SILENT, WORDS, status_of, words_of
from forensics.train.header import is_parent

MOST = 60  # rows of the tree


def draw_overview(run: str) -> None:
    """Draw what is the case with all runs, and their tree."""
    headers = data.headers()
    health = {header["run"]: header for header in data.rows("run_health")}
    title, sentence = summary(headers, health)
    safe_html.verdict(title, *sentence)
    rows = tree(headers, health)
    safe_html.caption(
        "Each bar is a run, from its first step to the last that it has trained · grey: a run ·"
        " blue: a fork · light: the null forks it is compared with · marks: spikes of the loss ·"
        " click a bar"
    )
    _draw(rows[:MOST], run)
    if len(rows) > MOST:
        safe_html.caption(f"and {len(rows) - MOST} more: choose one in the list above")


def summary(
    headers: list[dict[str, Any]], health: dict[str, dict[str, Any]]
) -> tuple[str, list[Part]]:
    """Return how many runs and forks there are as a title, and what is the case with them."""
    forks = [header for header in headers if header.get("parent")]
    runs = [header for header in headers if not header.get("parent")]
    healthy = {"loss_spikes": 0, "nonfinite": 0}
    spiky = [
        header["name"] for header in runs if health.get(header["name"], healthy)["loss_spikes"]
    ]
    broken = [
        header["name"] for header in headers if health.get(header["name"], healthy)["nonfinite"]
    ]
    stopped = [
        header["name"] for header in runs if header.get("status") in ("interrupted", "failed")
    ]
    status = {header["name"]: status_of(header) for header in headers}
    training = [name for name in status if status[name] == "running"]
    silent = [name for name in status if status[name] == SILENT]
    title = f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}"
    title += f", {len(forks)} {'fork' if len(forks) == 1 else 'forks'}" if forks else ""
    sentence: list[Part] = []
    for names, predicate in (
        (training, "training now"),
        (spiky, "with spikes of the loss"),
        (broken, "with values that are not finite"),
        (stopped, "interrupted or failed"),
        (silent, WORDS[SILENT]),
    ):
        if names:
            sentence += [f"{predicate[:1].upper()}{predicate[1:]}: "]
            sentence += [strong(formatting.listed(names)), ". "]
    troubled = {*spiky, *broken, *stopped, *silent}
    quiet = [header["name"] for header in runs if header["name"] not in troubled]
    if quiet:
        sentence += ["Without a spike of the loss or a value that is not finite: "]
        sentence += [strong(formatting.listed(quiet)), ". "]
    return title, sentence


def tree(headers: list[dict[str, Any]], health: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the tree, depth first.

    Each has row, run, first, last, ahead, kind, status, does, parent_row and parent_step.
    """
    rows: list[dict[str, Any]] = []

    def add(header: dict[str, Any], depth: int, parent: str | None) -> None:
        reached = data.reached(header["name"])
        about = health.get(header["name"], {})
        label = ("  " * (depth - 1) + "└ " if depth else "") + header["name"]
        last = max(reached if reached is not None else header["first_step"], header["first_step"])
        row = {
            "row": label,
            "run": header["name"],
            "first": header["first_step"],
            "last": last,
            "ahead": header["steps"],
            "kind": "fork" if header.get("parent") else "run",
            "status": words_of(status_of(header)),
            "does": about.get("sentence") or "",
            "parent_row": parent,
            "parent_step": header.get("parent_step"),
        }
        rows.append(row)
        nulls = (about.get("placebos") or 0) + (about.get("chaos") or 0)
        if nulls:
            rows.append(
                {
                    **row,
                    "row": "  " * depth + f"└ null ×{nulls} of {header['name']}",
                    "kind": "null",
                    "parent_row": parent,
                    "does": f"{about['placebos']} placebos, {about['chaos']} chaos forks",
                    "ahead": last,
                }
            )
        for child in headers:
            if _left(child, header) and child["name"] not in {row["run"] for row in rows}:
                add(child, depth + 1, label)

    for header in headers:
        orphan = not any(_left(header, parent) for parent in headers)
        if orphan and header["name"] not in {row["run"] for row in rows}:
            add(header, 0, None)
    return rows


def _left(fork: Mapping[str, Any], run: Mapping[str, Any]) -> bool:
    """Whether a run is the very one that the fork left, not another of its name."""
    return fork.get("parent") == run["name"] and is_parent(run, fork)


def _draw(rows: list[dict[str, Any]], run: str) -> None:
    import pyarrow as pa

    text, integer = pa.string(), pa.int64()
    by_run = {row["run"]: row for row in rows if row["kind"] != "null"}
    marks = [
        {"row": by_run[mark["run"]]["row"], "step": mark["step"], "kind": mark["kind"]}
        for mark in data.rows("run_marks")
        if mark["run"] in by_run
    ]
    bars = pa.schema(
        [
            (name, text if name in ("row", "run", "kind", "status", "does") else integer)
            for name in ("row", "run", "first", "last", "kind", "status", "does")
        ]
    )
    span = pa.schema([("row", text), ("first", integer), ("last", integer)])
    joins = [
        {"step": row["parent_step"], "row": row["parent_row"], "row2": row["row"]}
        for row in rows
        if row["parent_row"] is not None and row["parent_step"] is not None
    ]
    shown = {
        "bars": pa.Table.from_pylist(rows, schema=bars),
        "ahead": pa.Table.from_pylist(
            [
                {**row, "first": row["last"], "last": row["ahead"]}
                for row in rows
                if row["ahead"] > row["last"]
            ],
            schema=span,
        ),
        "chosen": pa.Table.from_pylist(
            [row for row in rows if row["run"] == run and row["kind"] != "null"], schema=span
        ),
        "joins": pa.Table.from_pylist(
            joins, schema=pa.schema([("step", integer), ("row", text), ("row2", text)])
        ),
        "marks": pa.Table.from_pylist(
            marks, schema=pa.schema([("row", text), ("step", integer), ("kind", text)])
        ),
    }
    spec = theme.filled(charts.tree(safe_html.dark(), len(rows)), rows=[row["row"] for row in rows])
    theme.draw(spec, shown, key="tree", on_select=_clicked)


def bar_of(event: Any) -> dict[str, str] | None:
    """Return what a click on a bar changes in the URL."""
    mark = picked(event, "bar", "run")
    return {"run": str(mark["run"])} if mark else None


def _clicked() -> None:
    change = bar_of(st.session_state["tree"])
    if change:
        goto(**change)
