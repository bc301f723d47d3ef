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
SILENT = "stopped without saying so"


def status_of(header: dict[str, Any]) -> str:
    """What it says of itself; of one that says it is running, whether that is believed."""
    status = str(header.get("status") or "?")
    return SILENT if status == "running" and not is_alive(header) else status


def is_alive(header: dict[str, Any]) -> bool:
    """Whether a run trains now: it says so, and its tables were written to not long ago for its
    pace.
    """
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
    """Seconds without a write that are believed, by what its steps between two writes took."""
    return max(FIRST_S if fork else ALIVE_S, SLOW * seconds)


def _seconds_of_a_write(header: dict[str, Any]) -> float:
    """What the steps from one write of the tables to the next take, by the newest that are
    recorded; 0: not known.
    """
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
