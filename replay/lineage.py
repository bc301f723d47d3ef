"""Opening a run or a fork as something to replay: a fork's stream and policy are its parent's,
altered.

Below a fork's first step its stream and states are its ancestors'; past the parent's end the stream
goes on.
"""

from __future__ import annotations

import math
from pathlib import Path

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
