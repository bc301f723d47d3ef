"""Step several trajectories from one state together, one step of each at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from forensics.errors import ForensicsError
from forensics.model.step_model import StepModel
from forensics.step.batch import BatchStream
from forensics.step.observer import SILENT, Observer
from forensics.step.policy import Policy, StepPolicy
from forensics.step.result import StepResult
from forensics.step.state import Counters, TrainState
from forensics.train.advance import take_step
from forensics.train.run import Run, build_model
from replay.interventions.base import Intervention
from replay.interventions.composition import altered_shape, composed


@dataclass
class Arm:
    """One trajectory among those that advance in lock-step; `state` moves."""

    state: TrainState
    stream: BatchStream
    policy: Policy
    model: StepModel
    watch: Observer = SILENT


def arm_from(
    start: TrainState,
    run: Run,
    interventions: Sequence[Intervention] = (),
    watch: Observer = SILENT,
) -> Arm:
    """Start an arm of `run` from a copy of `start`, altered; without interventions the control."""
    state = start.clone()
    for intervention in interventions:
        intervention.state(state, run)
    stream, policy = composed(interventions, run)
    return Arm(state, stream, policy, altered_model(interventions, run), watch)


def altered_model(interventions: Sequence[Intervention], run: Run) -> StepModel:
    """Return the run's own model, or one of another shape where an intervention gives it one."""
    shape = altered_shape(interventions, run)
    if shape == run.shape:
        return run.model
    device = run.model.device  # building the run's own sets the switches that it was trained under
    return build_model(run.recipe, shape, device, run.header.eot)


def step_all(arms: Mapping[str, Arm]) -> dict[str, StepResult]:
    """Take one step of every arm, in their order; states move in place."""
    return {
        name: take_step(arm.state, arm.stream, arm.policy, arm.model, arm.watch)
        for name, arm in arms.items()
    }


class Stride(NamedTuple):
    """One step of all arms: the state that it led to, and what it did, by arm."""

    state: int
    results: dict[str, StepResult]


def march(arms: Mapping[str, Arm], first: int, last: int) -> Iterator[Stride]:
    """Step all arms from state `first` to `last`."""
    for step in range(first, last):
        yield Stride(step + 1, step_all(arms))


def at_learning_rate(run: Run, rate: float) -> Run:
    """Return the same run, its own policy holding the learning rate at `rate` whatever the step."""
    fixed, usual_policy = copy.copy(run), run.policy

    def policy(counters: Counters) -> StepPolicy:
        return replace(usual_policy(counters), learning_rate=rate)

    fixed.policy = policy
    return fixed


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
            described = (
                f"a state of {run.name} with {horizon} steps after it"
                if horizon
                else f"a state of {run.name}"
            )
            raise ForensicsError(
                "missing",
                f"{flag}: wanted {described}, found {step}",
                f"it has states {first} to {last}",
            )
