"""What commands kept in a run's folder: sweeps, matrices, blame; the one that is looked at, and
whether one is made now.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from app import data, jobs
from app.selection import Selection, goto
from forensics.visible import visible
from replay.result_files import kept


def documents(run: str, what: str) -> list[tuple[str, dict[str, Any]]]:
    """(its name, the document) of what a command kept in the run's folder, newest first; read again
    when a file changes.
    """
    folder = data.runs_folder() / data.require(run)
    stamp = tuple(sorted((p.name, p.stat().st_mtime_ns) for p in folder.glob(f"{what}-*.json")))
    return _documents(str(folder), what, stamp)


def written(run: str, name: str) -> float:
    """When such a document was written, in seconds since 1970; 0 where it has gone."""
    try:
        return (data.runs_folder() / run / f"{name}.json").stat().st_mtime
    except OSError:
        return 0.0


@functools.lru_cache(32)
def _documents(folder: str, what: str, stamp: tuple[Any, ...]) -> list[tuple[str, dict[str, Any]]]:
    return kept(Path(folder), what)


def chosen(
    run: str,
    found: Sequence[tuple[str, dict[str, Any]]],
    selection: Selection,
    label: Callable[[dict[str, Any]], str],
) -> dict[str, Any]:
    """The document of the URL, or the newest; a picker where there are several."""
    names = [name for name, _ in found]
    name = selection.query if selection.query in names else names[0]
    if len(names) > 1:
        about = dict(found)
        st.session_state["measured"] = name
        st.selectbox(
            "Measured",
            names,
            key="measured",
            format_func=lambda n: visible(label(about[n])),
            label_visibility="collapsed",
            on_change=lambda: goto(run=run, query=st.session_state["measured"]),
        )
    return dict(found)[name]


def busy(run: str, command: str) -> bool:
    """Whether this command runs now; then the panel of work is drawn, which looks again by
    itself.
    """
    running = any(w.status == "running" and w.arguments[:1] == (command,) for w in jobs.listed(run))
    if running or any(
        w.status in ("failed", "lost") and w.arguments[:1] == (command,)
        for w in jobs.listed(run)[:1]
    ):
        jobs.panel(run, most=2, key=f"work-{command}")
    return running
