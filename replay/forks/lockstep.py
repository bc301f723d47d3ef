"""Several trajectories from one state, one step of each at a time: what `noise` and `sweep` measure
distances between.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from forensics.errors import ForensicsError
from forensics.step.batch import BatchStream
from forensics.step.policy import Policy, StepPolicy
from forensics.step.result import StepResult
from forensics.step.state import Counters, TrainState
from forensics.train.advance import StepModel, advance
from forensics.train.run import Run
from replay.interventions.base import Intervention
from replay.interventions.registry import composed


@dataclass
class Track:
    """One trajectory; `state` moves."""

    state: TrainState
    stream: BatchStream
    policy: Policy


def track(start: TrainState, run: Run, interventions: Sequence[Intervention] = ()) -> Track:
    """A trajectory of `run` from a copy of `start`, altered; without interventions it is the
    control.
    """
    state = start.clone()
    for intervention in interventions:
        intervention.state(state, run)
    return Track(state, *composed(interventions, run))


def march(
    tracks: dict[str, Track], first: int, last: int, model: StepModel
) -> Iterator[tuple[int, dict[str, StepResult]]]:
    """Yields (state number, what the step to it did, by name) for first+1 … last; states move in
    place.
    """
    for step in range(first, last):
        results = {}
        for name, each in tracks.items():
            policy = each.policy(each.state.counters)
            batch = each.stream(step) if policy.update != "none" else None
            results[name] = advance(each.state, batch, policy, model)
        yield step + 1, results


def at_learning_rate(run: Run, rate: float) -> Run:
    """The same run, its own policy holding the learning rate at `rate` whatever the step."""
    held, own = copy.copy(run), run.policy

    def policy(counters: Counters) -> StepPolicy:
        return replace(own(counters), learning_rate=rate)

    held.policy = policy
    return held


def require_steps(
    run: Run, steps: Sequence[int], flag: str, horizon: int = 0, lineage: bool = False
) -> None:
    """Refuse steps without a state, or without `horizon` trained steps after them. Errors: usage,
    missing.

    With `lineage`, a fork's ancestors' states below its first step count too.
    """
    if not steps:
        raise ForensicsError("usage", f"{flag}: wanted steps, found none", f"e.g. {flag} 50,200")
    first, last = 0 if lineage else run.header.first_step, run.last_step()
    for step in steps:
        if not first <= step <= last - horizon:
            wanted = (
                f"a state of {run.name} with {horizon} steps after it"
                if horizon
                else f"a state of {run.name}"
            )
            raise ForensicsError(
                "missing",
                f"{flag}: wanted {wanted}, found {step}",
                f"it has states {first} to {last}",
            )
