"""What commands kept in a run's folder: sweeps, matrices, blame; the one that is looked at, and
whether one is made now.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from app import data
from app.controls import pick
from app.selection import Selection, goto
from replay.result_files import kept_results


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
    return list(kept_results(Path(folder), what))


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
        pick(
            "Measured",
            names,
            name,
            key="measured",
            choose=lambda chosen_name: goto(run=run, query=chosen_name),
            name=lambda option: label(about[option]),
        )
    return dict(found)[name]
