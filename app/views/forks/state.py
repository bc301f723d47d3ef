"""A fork as its folder tells of it: done, running, stopped half-way; and the fork file that goes on
with it.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app import data, documents, jobs
from forensics.errors import ForensicsError
from forensics.store import manifest
from replay.forks import toml_text
from replay.forks.result import RESULT_FILE, ForkResult

# since the last write, after which a fork that says it runs is believed to have been stopped
RECENT_S = 60
HEAD = ("placebos", "chaos", "seed", "probe_every", "record", "barrier")


@dataclass(frozen=True)
class State:
    """What is known of a fork now.

    status: done | running | stopped (it can go on) | starting (its process has not yet made the
    folder) | absent.
    """

    fork: str
    status: str
    header: dict[str, Any]  # run.json; empty where there is none yet
    result: ForkResult | None
    halfway: dict[str, Any] | None  # {"step"} of what was saved on the way
    job: jobs.Job | None  # the newest process of this app that runs or ran it
    unreadable: ForensicsError | None = None  # why there is a result that cannot be read

    @property
    def parent(self) -> str:
        """Return the name of the run that it left."""
        return str(self.header.get("parent") or "")

    @property
    def window(self) -> tuple[int, int]:
        """Return the state that it starts from and the first step that it does not run."""
        return int(self.header.get("parent_step") or 0), int(self.header.get("steps") or 0)


def state_of(fork: str, parent: str) -> State:
    """Return what is known of a fork now. Errors: usage."""
    header = data.header(fork)
    header = header if header.get("parent") else {}
    folder = data.runs_folder() / fork
    result, unreadable = None, None
    try:
        result = documents.read(ForkResult, folder / RESULT_FILE)
    except ForensicsError as error:
        unreadable = error
    notes = data.document(folder / "halfway" / "notes.json")
    halfway = {"step": notes.get("step")} if notes else None
    job = next((job for job in jobs.listed(parent) if _fork_of(job) == fork), None)
    if job is not None and job.status == "running":
        status = "running" if header else "starting"
    elif result is not None or unreadable is not None:
        status = "done"
    elif not header:
        status = "absent"
    else:
        status = "running" if job is None and _written_s(folder) < RECENT_S else "stopped"
    return State(fork, status, header, result, halfway, job, unreadable)


def _fork_of(job: jobs.Job) -> str | None:
    """Return the fork that a job runs; None where it is something else, or only a plan."""
    if job.program != "replay" or job.arguments[:1] != ("fork",) or "--dry-run" in job.arguments:
        return None
    return data.document(job.folder / "fork.json").get("fork")


def _written_s(folder: Path) -> float:
    """Return the seconds since it was last written to."""
    times = []
    for path in (manifest.folder(folder, "divergence") / "manifest.json", folder / "run.json"):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return time.time() - max(times, default=0.0)


def file_of(state: State, **changes: Any) -> str:
    """Return the fork file that makes this very fork, with `changes` to how it is compared."""
    first, last = state.window
    identity = state.header.get("identity") or {}
    comparison = {key: identity.get(key) or None for key in HEAD}
    head = {
        "parent": state.parent,
        "from": first,
        "to": last,
        "name": state.fork,
        **comparison,
        **changes,
    }
    return toml_text.written(head, state.header.get("interventions") or [])


def launch(parent: str, fork: str, text: str, *, again: bool = False) -> jobs.Job:
    """Run a fork file in a process; it goes on where it was, if it was stopped.

    `again`: also where it is done. Errors: usage, missing.
    """
    files = {"spec.toml": text, "fork.json": json.dumps({"fork": fork})}
    arguments = ["fork", "{folder}/spec.toml", *(["--again"] if again else [])]
    return jobs.start(parent, "replay", arguments, files)
