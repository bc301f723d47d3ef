"""Opening a run or a fork as something to replay: a fork's stream and policy are its parent's,
altered.

Below a fork's first step its stream and states are its ancestors'; past the parent's end the stream
goes on.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from forensics.errors import ForensicsError
from forensics.train.run import Run, open_run
from replay.interventions.composition import composed
from replay.interventions.registry import from_dict


def open_trajectory(runs: Path, name: str) -> Run:
    """Open a run or fork with the stream and policy that made it. Errors: usage, missing,
    integrity.
    """
    run = open_run(runs, name)
    if run.header.parent is not None:
        parent = open_trajectory(runs, run.header.parent)
        run.parent = parent
        run.stream, run.policy = composed(
            [from_dict(document) for document in run.header.interventions or []], parent
        )
    return run


def require_intact(run: Run) -> None:
    """Refuse to replay a run whose data changed on disk since. Errors: integrity."""
    problems = run.corpus.verify()
    if problems:
        raise ForensicsError(
            "integrity",
            f"the data of {run.name} is not what it was trained on: {problems[0]}",
            "restore the corpus; `forensics doctor RUN` lists every problem",
        )


def own_steps(run: Run) -> dict[str, tuple[int, float]]:
    """Return the run and its ancestors, each with the steps first … last−1 that are its part of the
    lineage; the run's own last is infinite.
    """
    steps: dict[str, tuple[int, float]] = {}
    last = math.inf
    ancestor: Run | None = run
    while ancestor is not None:
        steps[ancestor.name] = (ancestor.header.first_step, last)
        last = min(last, ancestor.header.first_step)
        ancestor = ancestor.parent
    return steps


def identity(run: Run) -> dict[str, Any]:
    """Tell everything that a run's states depend on: its own making; of a fork its window and
    interventions, and its parent's identity.
    """
    header = run.header
    if run.parent is None:
        return {
            "name": run.name,
            "created": header.created,
            "order": header.order,
            "corpus": header.corpus,
        }
    return {
        "name": run.name,
        "from": header.first_step,
        "to": header.steps,
        "interventions": header.interventions or [],
        "parent": identity(run.parent),
    }


def root(run: Run) -> Run:
    """Return the run of its own that a fork descends from; a run itself."""
    return root(run.parent) if run.parent is not None else run


def holder_of(run: Run, step: int) -> Run:
    """Return the run or ancestor that ran batch `step`: below a fork's start it is an ancestor."""
    holder = run
    while holder.parent is not None and step < holder.header.first_step:
        holder = holder.parent
    return holder


def lowest_state(run: Run) -> int:
    """Return the first state from which the run's stream and policy lead to its own states.

    A fork agrees with its parent below its start, unless it moved the state there.
    """
    if run.parent is None:
        return run.header.first_step
    if any(from_dict(each).moves_start() for each in run.header.interventions or []):
        return run.header.first_step
    return lowest_state(run.parent)


def checkpoint_at_or_before(run: Run, step: int) -> int | None:
    """Return the latest saved state at or before `step` along the lineage; None: there is none."""
    saved = [state for state in run.saved_steps() if state <= step]
    if saved:
        return saved[-1]
    return checkpoint_at_or_before(run.parent, step) if run.parent is not None else None
