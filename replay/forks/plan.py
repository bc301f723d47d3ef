"""The replay engine: verify a window, plan a fork, run it or find it done."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from replay.forks.spec import Spec
from replay.interventions.registry import to_dict
from replay.lineage import open_trajectory


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
