"""A fork as its folder tells of it: done, running, stopped half-way; and the fork file that goes on
with it.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app import data
from app import jobs as work
from forensics.store import manifest
from replay.forks import toml_text

# since the last write, after which a fork that says it runs is believed to have been stopped
RECENT_S = 60
HEAD = ("placebos", "chaos", "seed", "probe_every", "record", "barrier")


@dataclass(frozen=True)
class State:
    """status: done | running | stopped (it can go on) | starting (its process has not yet made the
    folder) | absent.
    """

    fork: str
    status: str
    header: dict[str, Any]  # run.json; empty where there is none yet
    result: dict[str, Any] | None  # fork.json
    halfway: dict[str, Any] | None  # {"identity", "step"} of what was kept on the way
    work: work.Work | None  # the newest process of this app that runs or ran it

    @property
    def parent(self) -> str:
        return str(self.header.get("parent") or "")

    @property
    def window(self) -> tuple[int, int]:
        return int(self.header.get("parent_step") or 0), int(self.header.get("steps") or 0)


def state_of(fork: str, parent: str) -> State:
    """What is known of a fork now. Errors: usage."""
    header = data.header(fork)
    header = header if header.get("parent") else {}
    folder = data.runs_folder() / fork
    result, notes = (
        data.document(folder / "fork.json") or None,
        data.document(folder / "halfway" / "notes.json"),
    )
    halfway = {"identity": notes.get("identity", {}), "step": notes.get("step")} if notes else None
    own = next((w for w in work.listed(parent) if _fork_of(w) == fork), None)
    if own is not None and own.status == "running":
        status = "running" if header else "starting"
    elif result is not None:
        status = "done"
    elif not header:
        status = "absent"
    else:
        status = "running" if own is None and _written_s(folder) < RECENT_S else "stopped"
    return State(fork, status, header, result, halfway, own)


def _fork_of(w: work.Work) -> str | None:
    """The fork that a piece of work runs; None where it is something else, or only a plan."""
    if w.program != "replay" or w.arguments[:1] != ("fork",) or "--dry-run" in w.arguments:
        return None
    return data.document(w.folder / "fork.json").get("fork")


def _written_s(folder: Path) -> float:
    """Seconds since it was last written to."""
    times = []
    for path in (manifest.folder(folder, "divergence") / "manifest.json", folder / "run.json"):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return time.time() - max(times, default=0.0)


def file_of(state: State, **changes: Any) -> str:
    """The fork file that makes this very fork (under its own name), with `changes` to how it is
    compared.
    """
    first, last = state.window
    known = (state.halfway or {}).get("identity", {})
    asked = {
        "placebos": known.get("placebos", (state.result or {}).get("placebos", 0)),
        "chaos": known.get("chaos", (state.result or {}).get("chaos", 0)),
        "seed": known.get("seed", 0),
        "probe_every": known.get("every"),
        "record": known.get("record", "light"),
        "barrier": known.get("barrier") or None,
    }
    head = {
        "parent": state.parent,
        "from": first,
        "to": last,
        "name": state.fork,
        **asked,
        **changes,
    }
    return toml_text.written(head, state.header.get("interventions") or [])


def launch(parent: str, fork: str, text: str) -> work.Work:
    """Run a fork file in a process; it goes on where it was, if it was stopped. Errors: usage,
    missing.
    """
    files = {"spec.toml": text, "fork.json": json.dumps({"fork": fork})}
    return work.start(parent, "replay", ["fork", "{folder}/spec.toml"], files)
