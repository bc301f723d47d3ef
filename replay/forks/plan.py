"""The replay engine: verify a window, plan a fork, run it or find it done."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from forensics.errors import ForensicsError
from forensics.progress import Report as Progress
from forensics.progress import silent
from forensics.step.state import TrainState
from forensics.store.writer import Writer
from forensics.train.loop import now
from forensics.train.run import Run
from replay.compare import distances
from replay.compare.distances import Report, Witness
from replay.forks.run import RESULT, Fork
from replay.forks.spec import Spec
from replay.interventions.registry import to_dict
from replay.lineage import open_trajectory, require_intact


def verify(
    runs: Path, name: str, first: int, last: int, progress: Progress = silent
) -> tuple[Report, int]:
    """Replay first:last unaltered and compare every bit and every recorded loss; writes a
    certificate.

    Returns the report and the last step that was replayed, which lies further where no digest was
    recorded at `last`. Errors: usage, missing, integrity.
    """
    run = open_trajectory(runs, name)
    if not 0 <= first < last <= run.header.steps:
        raise ForensicsError(
            "missing",
            f"wanted a window of {name}, found {first}:{last}",
            f"it has steps 0 to {run.header.steps}",
        )
    trained = run.last_step()
    if last > trained:
        raise ForensicsError(
            "missing",
            f"{name} has been trained to step {trained}, not to {last}",
            f"verify up to {trained}",
        )
    require_intact(run)
    end = _last_with_digest(run, first, last)
    witness = Witness(run, first, end)

    def after(state: TrainState, result: Any) -> None:
        # steps before the window only lead up to it, but a difference there is one too
        witness.see(state, result)
        progress(state.counters.step - origin, end - origin, "")

    base = run if first >= run.header.first_step or run.parent is None else run.parent
    origin = base.checkpoint_before(first)
    witness.recorded |= distances.recorded_steps(run, origin, first)
    state = run.state_at(first, after)
    if state.counters.step < run.header.first_step:
        raise ForensicsError(
            "usage",
            f"{name} is a fork that starts at {run.header.first_step}, found {first}",
            f"verify its own window, or its parent {run.header.parent}",
        )
    run.replay(state, end, after=after)
    report = witness.report()
    certify(run, first, end, report, "verify")
    return report, end


def _last_with_digest(run: Run, first: int, last: int) -> int:
    """`last`, or the next checkpoint where no digest of that state was recorded."""
    row = distances.recorded_steps(run, last - 1, last).get(last - 1)
    if row is not None and row["state_digest"] is not None:
        return last
    later = [s for s in run.saved_steps() if s >= last]
    return later[0] if later else last


def certify(run: Run, first: int, last: int, report: Report, source: str) -> None:
    """Write what was proven to the run's `certificates`."""
    with Writer(run.folder) as writer:
        writer.append(
            "certificates",
            first=first,
            last=last,
            bitwise=report.bitwise,
            level=report.level,
            compared=report.compared,
            first_difference=report.first_difference["step"] if report.first_difference else None,
            max_abs_difference=report.max_abs_difference,
            fingerprint_equal=report.fingerprint_equal,
            fingerprint=json.dumps(run.fingerprint()),
            source=source,
            created=now(),
        )


def plan(spec: Spec, runs: Path) -> dict[str, Any]:
    """What a fork would do, without a step of it: the steps and sequences that differ, hours and
    memory.
    """
    run = open_trajectory(runs, spec.parent)
    spec.check(run)
    touched = [slot for i in spec.interventions for slot in i.touches(run, run.stream)]
    rows = run.table("steps", ["step", "seconds"])
    seconds = float(np.median(rows["seconds"].to_numpy())) if rows.num_rows else math.nan
    arms = 2 + spec.placebos + spec.chaos
    lead = spec.first - (
        run.checkpoint_before(spec.first) if spec.first >= run.header.first_step else 0
    )
    steps = (spec.last - spec.first) * arms + lead
    by_step: dict[int, int] = {}
    for step, _ in {(slot.step, slot.slot) for slot in touched}:
        by_step[step] = by_step.get(step, 0) + 1
    return {
        "fork": spec.fork,
        "parent": spec.parent,
        "from": spec.first,
        "to": spec.last,
        "does": spec.sentence(),
        "interventions": [to_dict(i) for i in spec.interventions],
        "arms": arms,
        "sequences": sum(by_step.values()),
        "sequences_by_step": by_step,
        "tokens": sum(slot.last - slot.first for slot in touched),
        "documents": sorted({d for i in spec.interventions for d in getattr(i, "documents", ())}),
        "steps_to_compute": steps,
        "hours": steps * seconds / 3600,
        "memory_bytes": arms * 3 * 4 * run.header.parameters,
    }


def fork(
    spec: Spec, runs: Path, progress: Progress = silent, *, again: bool = False
) -> dict[str, Any]:
    """Run a fork with its control and null forks; returns and keeps `fork.json`.

    A fork that is done is not run again unless more is asked of it now; one that was interrupted
    goes on. Errors: usage, missing, integrity, storage.
    """
    parent = open_trajectory(runs, spec.parent)
    spec.check(parent)
    done = runs / spec.fork / RESULT
    if done.is_file() and not again:
        kept = json.loads(done.read_bytes())
        enough = (
            kept.get("placebos_asked", kept["placebos"]) >= spec.placebos
            and kept["chaos"] >= spec.chaos
        )
        if enough and set(spec.barrier) <= {each["step"] for each in kept.get("barriers", [])}:
            return kept
    require_intact(parent)
    return Fork(spec, parent, progress, anew=again).go()
