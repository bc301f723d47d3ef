"""Plan a fork without a step of it: what differs, and what it costs."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np

from replay.compare.probe_sequences import Probe
from replay.forks.comparison import UNSEEN
from replay.forks.draft import Draft
from replay.forks.identity import standing
from replay.forks.result import ForkPlan
from replay.forks.spec import Spec
from replay.interventions import placebo
from replay.interventions.placebo import placebos_of
from replay.interventions.registry import to_dict
from replay.lineage import open_trajectory

STATE_TENSORS = 3  # parameters and both moments
BYTES = 4  # of an fp32 number
FORWARD = 1 / 3  # of a step: its backward computes twice as much


def plan(spec: Spec, runs: Path, *, again: bool = False) -> ForkPlan:
    """Plan a fork: what differs, hours and memory. Refused is what could not be run, a name that
    holds another fork too. Errors: usage, missing.
    """
    run = open_trajectory(runs, spec.parent)
    spec.check(run)
    spec = spec.settled(run)
    standing(spec, run, again)
    touched, draft = [], Draft(run, spec.first, spec.last)
    for intervention in spec.interventions:
        touched += intervention.touches(run, draft.stream)
        draft.add(intervention)
    rows = run.table("steps", ["step", "seconds"])
    seconds = float(np.median(rows["seconds"].to_numpy())) if rows.num_rows else math.nan
    nulls = placebos_of(spec.interventions, run, spec.first, spec.last, spec.placebos, spec.seed)
    arms = 2 + sum(null.arms for null in nulls) + spec.chaos
    lead = spec.first - (
        run.checkpoint_before(spec.first) if spec.first >= run.header.first_step else 0
    )
    steps = (spec.last - spec.first) * arms + lead
    readings = -(-(spec.last - spec.first) // spec.steps_between_probes)
    rows_read = readings * arms * (Probe(run).sequences + UNSEEN)
    passes = steps + rows_read * FORWARD / run.recipe.train.batch
    by_step = Counter(step for step, _ in {(slot.step, slot.slot) for slot in touched})
    documents = {
        d for intervention in spec.interventions for d in getattr(intervention, "documents", ())
    }
    return ForkPlan(
        fork=spec.fork,
        parent=spec.parent,
        first=spec.first,
        last=spec.last,
        does=spec.sentence(),
        interventions=tuple(to_dict(intervention) for intervention in spec.interventions),
        arms=arms,
        placebos=len(nulls),
        placebos_exist=placebo.exist(spec.interventions),
        sequences=by_step.total(),
        sequences_by_step=dict(by_step),
        tokens=sum(slot.last - slot.first for slot in touched),
        documents=tuple(sorted(documents)),
        steps_to_compute=steps,
        probe_readings=readings,
        hours=passes * seconds / 3600,
        memory_bytes=arms * STATE_TENSORS * BYTES * run.header.parameters,
    )
