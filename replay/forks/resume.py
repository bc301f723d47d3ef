"""A fork that was interrupted goes on where it was: the states of all its arms, and what was
compared so far.

    <fork>/halfway/<arm>/step-NNNNNN/ · <fork>/halfway/notes.json (written last)

Only the newest is kept. It is taken up where the fork's whole identity is the same.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from forensics.errors import ForensicsError
from forensics.step.state import TrainState
from forensics.store.writer import write_atomic
from forensics.train import checkpoint
from replay.forks.lockstep import Arm

FOLDER, NOTES = "halfway", "notes.json"


def save(
    fork: Path,
    identity: dict[str, Any],
    step: int,
    arms: Mapping[str, Arm],
    eot: int,
    notes: dict[str, Any],
) -> None:
    """Keep all arms at `step`. Errors: storage."""
    folder = fork / FOLDER
    for name, arm in arms.items():
        checkpoint.save(folder / name, arm.state, arm.model.decoder.shape, None, eot)
    # the notes name the step: until they are replaced, the states of the step before them still
    # count
    document = {"identity": identity, "step": step, "notes": notes}
    write_atomic(folder / NOTES, json.dumps(document).encode())
    for left in folder.glob("*/step-*"):
        if left.name != checkpoint.name_of(step):
            shutil.rmtree(left, ignore_errors=True)


def load(
    fork: Path, identity: dict[str, Any], arms: Iterable[str], device: str
) -> tuple[int, dict[str, TrainState], dict[str, Any]] | None:
    """(step, states by arm, notes) of what was kept; None where nothing was, or of another fork, or
    damaged.
    """
    folder = fork / FOLDER
    try:
        document = json.loads((folder / NOTES).read_bytes())
        if document["identity"] != json.loads(json.dumps(identity)):
            return None
        step = int(document["step"])
        states = {
            arm: checkpoint.load(folder / arm / checkpoint.name_of(step), device)[0] for arm in arms
        }
    except (OSError, ValueError, KeyError, TypeError, ForensicsError):
        return None
    return step, states, document["notes"]


def clear(fork: Path) -> None:
    """Forget it: the fork is done, or starts anew."""
    shutil.rmtree(fork / FOLDER, ignore_errors=True)
