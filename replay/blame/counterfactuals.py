"""Replays that tell data from state: the same window with one thing otherwise.

other data, same state      the touched batches give way to others: a spike that comes all the same
                            is not the data's
same data, other states     the same batches from states before the window (PaLM's test)
up-to-date moments          the same batches and parameters, but second moments with a short memory
a steady learning rate      the same batches at the rate that held before the window
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from forensics.errors import ForensicsError
from forensics.step.batch import Batch
from forensics.step.policy import Policy, StepPolicy
from forensics.step.state import Counters
from forensics.train.run import Run
from replay.blame.deletion import HALF
from replay.blame.excess import BEFORE
from replay.blame.result import StaleTensor, Trial
from replay.blame.window_replays import ExcessLeft, WindowReplays
from replay.lineage import checkpoint_at_or_before, root

OTHERS = 3  # replays with other data
LONG = 0.98  # β₂ from which second moments can be out of date: a memory of 50 steps
JUMP = 1.5  # × the learning rate before the window, from which a steady one is tried
PAST = 32  # steps before the window that tell a tensor's usual staleness


def other_data(replays: WindowReplays, first: int, number: int = OTHERS) -> tuple[Trial, ...]:
    """Replace batches first … S by others, `number` times; fewer where the order has no others."""
    run, S = replays.run, replays.control.last
    trials = []
    for draw in range(number):

        def stream(step: int, draw: int = draw) -> Batch:
            return replays.other_batch(step, draw) if step >= first else run.stream(step)

        start, note = replays.control.state(first), f"other data {draw + 1}"
        try:
            left = replays.along(start, stream, note=note)
        except (ForensicsError, AssertionError):
            break  # there are none, neither after the run's end nor before the window
        description = f"other batches instead of {first}:{S + 1}, draw {draw + 1}"
        trials.append(_trial(replays, description, left, first))
    return tuple(trials)


def other_states(replays: WindowReplays, first: int) -> tuple[Trial, ...]:
    """Run batches first … S from earlier states, past warm-up.

    These are the first state of the control and the checkpoint a window before it.
    """
    run, control = replays.run, replays.control
    warm = max(1, root(run).recipe.train.warmup)
    early = checkpoint_at_or_before(run, control.start - BEFORE)
    candidates = dict.fromkeys([control.start, early])
    trials = []
    for step in (s for s in candidates if s is not None and warm <= s < first):
        state = control.state(step) if step >= control.start else run.state_at(step)
        left = replays.from_state(state, first, f"the same batches from state {step}")
        trials.append(_trial(replays, f"from state {step}", left, step))
    return tuple(trials)


def up_to_date(replays: WindowReplays, first: int) -> Trial | None:
    """Lower β₂ to β₁ from state `first` on, second moments rescaled so that v̂ goes on as it was.

    None where the run's own β₂ is short already, or no update was made yet.
    """
    state = replays.control.state(first).clone()
    (beta1, beta2) = replays.run.policy(state.counters).betas
    updates = state.counters.updates
    if beta2 < LONG or updates == 0 or first == replays.control.last:
        return None
    factor = (1 - beta1**updates) / (1 - beta2**updates)
    for second_moment in state.exp_avg_sq.values():
        second_moment.mul_(factor)
    policy = _altered(
        replays.run.policy,
        lambda step_policy: dataclasses.replace(step_policy, betas=(beta1, beta1)),
    )
    left = replays.along(state, policy=policy, note="with up-to-date second moments")
    return _trial(replays, f"β₂ {beta2:g} → {beta1:g} from state {first}", left, first)


def steady_rate(replays: WindowReplays) -> Trial | None:
    """Hold the learning rate at that before the window; None where it held inside too."""
    control, policy = replays.control, replays.run.policy

    def rates(first: int, stop: int) -> list[float]:
        states = (control.state(step) for step in range(first, stop))
        return [policy(state.counters).learning_rate for state in states]

    before = rates(control.start, control.first)
    inside = rates(control.first, control.last)
    rate = float(np.median(before)) if before else min(inside)
    if max(inside) <= JUMP * rate:
        return None
    steady_policy = _altered(
        policy,
        lambda step_policy: dataclasses.replace(
            step_policy, learning_rate=min(step_policy.learning_rate, rate)
        ),
    )
    start = control.state(control.first)
    left = replays.along(start, policy=steady_policy, note="at a steady learning rate")
    description = f"learning rate held at {rate:.3g} (it reached {max(inside):.3g})"
    return _trial(replays, description, left, control.first)


def _trial(replays: WindowReplays, what: str, left: ExcessLeft, start: int) -> Trial:
    spikes = not math.isfinite(left.total) or left.total >= HALF * replays.excess
    return Trial(what, left.total, spikes, start)


def _altered(policy: Policy, change: Callable[[StepPolicy], StepPolicy]) -> Policy:
    def altered(counters: Counters) -> StepPolicy:
        return change(policy(counters))

    return altered


def stale_tensors(run: Run, first: int, last: int) -> tuple[StaleTensor, ...]:
    """Find each tensor's highest recorded `staleness` in first … last−1, most stale first.

    It is held against the tensor's median in the steps before.
    """
    rows = _recorded_staleness(run, first - PAST, last)
    tensors = []
    for name in dict.fromkeys(row["tensor"] for row in rows):
        recorded = [r for r in rows if r["tensor"] == name and r["staleness"] is not None]
        before = [row["staleness"] for row in recorded if row["step"] < first]
        inside = [row for row in recorded if row["step"] >= first]
        if not before or not inside:
            continue
        worst, usual = max(inside, key=lambda row: row["staleness"]), float(np.median(before))
        times = worst["staleness"] / usual if usual > 0 else None
        tensors.append(
            StaleTensor(name, worst["step"], worst["staleness"], worst["rms_t"], usual, times)
        )
    return tuple(sorted(tensors, key=lambda tensor: -(tensor.times or 0.0)))


def _recorded_staleness(run: Run, first: int, last: int) -> list[dict[str, Any]]:
    """List the rows of `tensors` in first … last−1 along the lineage."""
    import pyarrow.compute as pc

    rows: list[dict[str, Any]] = []
    holder: Run | None = run
    while holder is not None:
        table = holder.table("tensors", ["step", "tensor", "staleness", "rms_t"])
        stop = last if holder is run else min(last, run.header.first_step)
        keep = pc.and_(pc.greater_equal(table["step"], first), pc.less(table["step"], stop))
        rows += table.filter(keep).to_pylist()
        holder = holder.parent if first < holder.header.first_step else None
    return rows
