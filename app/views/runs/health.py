"""Whether a run still writes: its status as run.json and the times of its files tell it."""

from __future__ import annotations

import functools
import time
from typing import Any

from app import data
from forensics.store import manifest

# seconds since the last write after which a run that says it is running is believed to be dead,
ALIVE_S = 180
FIRST_S = 1800  # or before its first; a fork's, whose steps are those of all its arms
SLOW = 3  # or that many times what the steps between two writes take
SILENT = "silent"  # it says that it runs, and has written nothing for too long
WORDS = {SILENT: "stopped without an end being recorded"}


def status_of(header: dict[str, Any]) -> str:
    """Return the status that run.json holds; SILENT for a run that says it runs and does not."""
    status = str(header.get("status") or "?")
    return SILENT if status == "running" and not is_alive(header) else status


def words_of(status: str) -> str:
    """Return a status as a page writes it."""
    return WORDS.get(status, status)


def is_alive(header: dict[str, Any]) -> bool:
    """Return whether a run trains now: it says so, and wrote not long ago for its pace."""
    if header.get("status") != "running":
        return False
    run = data.runs_folder() / header["name"]
    path = manifest.folder(run, "steps") / "manifest.json"
    try:
        return time.time() - path.stat().st_mtime < patience(
            bool(header.get("parent")), _seconds_of_a_write(header)
        )
    except OSError:
        try:
            return time.time() - (run / "run.json").stat().st_mtime < FIRST_S
        except OSError:
            return False


def patience(fork: bool, seconds: float) -> float:
    """Return the seconds without a write after which a run is not believed to train."""
    return max(FIRST_S if fork else ALIVE_S, SLOW * seconds)


def _seconds_of_a_write(header: dict[str, Any]) -> float:
    """Return what the steps from one write of the tables to the next take; 0: not known."""
    parts = manifest.load(data.runs_folder() / header["name"], "steps").parts
    if not parts:
        return 0.0
    every = ((header.get("config") or {}).get("record") or {}).get("flush_every")
    path = manifest.folder(data.runs_folder() / header["name"], "steps") / parts[-1].file
    return _mean_seconds(str(path)) * (every if isinstance(every, int) else parts[-1].rows)


@functools.lru_cache(64)
def _mean_seconds(path: str) -> float:
    """Of the steps in a part of the table `steps`."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        return pc.mean(pq.read_table(path, columns=["seconds"])["seconds"]).as_py() or 0.0
    except (
        OSError,
        KeyError,
        ValueError,
    ):  # merged away meanwhile, or of a version that did not record them
        return 0.0
