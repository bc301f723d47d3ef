"""Counterfactual replays that tell data from state."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from forensics.errors import ForensicsError
from forensics.step.batch import Batch
from forensics.step.policy import Policy, StepPolicy
from forensics.step.state import Counters
from forensics.train.run import Run
from replay.blame.deletion import HALF
from replay.blame.excess import BEFORE, checkpoint_at_or_before, root
from replay.blame.window_replays import Outcome, Replays

OTHERS = 3  # replays with other data
LONG = 0.98  # β₂ from which second moments can be out of date: a memory of 50 steps


JUMP = 1.5  # × the learning rate before the window, from which a steady one is tried
STALE = 1.5  # × its own median, from which a tensor's second moment is called out of date


@dataclass(frozen=True)
class Trial:
    """One altered replay: what was left of the excess, and whether that is still (at least half of)
    the spike.
    """

    what: str
    left: float  # nats
    spikes: bool


def _trial(replays: Replays, what: str, outcome: Outcome) -> Trial:
    left = outcome.total
    return Trial(what, left, not math.isfinite(left) or left >= HALF * replays.excess)


def other_data(replays: Replays, first: int, number: int = OTHERS) -> list[Trial]:
    """Batches first … S replaced by others, `number` times; fewer where the order has no others."""
    run, S = replays.run, replays.control.last
    found = []
    for draw in range(number):

        def stream(step: int, draw: int = draw) -> Batch:
            return replays.other_batch(step, draw) if step >= first else run.stream(step)

        try:
            outcome = replays.along(
                replays.control.state(first), stream, note=f"other data {draw + 1}"
            )
        except (
            ForensicsError,
            AssertionError,
        ):  # neither after the run's end nor before the window
            break
        found.append(
            _trial(replays, f"other batches instead of {first}:{S + 1}, draw {draw + 1}", outcome)
        )
    return found


def other_states(replays: Replays, first: int) -> list[Trial]:
    """Batches first … S from the first state of the control, and from the checkpoint a window
    earlier, past warm-up.
    """
    run, control = replays.run, replays.control
    warm = root(run).recipe.train.warmup
    early = checkpoint_at_or_before(run, control.start - BEFORE)
    states = [
        s
        for s in dict.fromkeys([control.start, early])
        if s is not None and s < first and s >= max(1, warm)
    ]
    found = []
    for s in states:
        state = control.state(s) if s >= control.start else run.state_at(s)
        outcome = replays.from_state(state, first, f"the same batches from state {s}")
        found.append(_trial(replays, f"from state {s}", outcome))
    return found


def up_to_date(replays: Replays, first: int) -> Trial | None:
    """β₂ lowered to β₁ from state `first` on, its second moments rescaled so that v̂ goes on where
    it was.

    None where the run's own β₂ is short already, or no update was made yet.
    """
    state = replays.control.state(first).clone()
    own = replays.run.policy(state.counters)
    (beta1, beta2), t = own.betas, state.counters.updates
    if beta2 < LONG or t == 0 or first == replays.control.last:
        return None
    factor = (1 - beta1**t) / (1 - beta2**t)
    for v in state.exp_avg_sq.values():
        v.mul_(factor)
    policy = _altered(replays.run.policy, lambda p: dataclasses.replace(p, betas=(beta1, beta1)))
    outcome = replays.along(state, policy=policy, note="with up-to-date second moments")
    return _trial(replays, f"β₂ {beta2:g} → {beta1:g} from state {first}", outcome)


def steady_rate(replays: Replays) -> Trial | None:
    """The window at the learning rate that held before it; None where it held inside too."""
    control, policy = replays.control, replays.run.policy
    before = [
        policy(control.state(s).counters).learning_rate for s in range(control.start, control.first)
    ]
    inside = [
        policy(control.state(s).counters).learning_rate for s in range(control.first, control.last)
    ]
    rate = float(np.median(before)) if before else min(inside)
    if max(inside) <= JUMP * rate:
        return None
    held = _altered(
        policy, lambda p: dataclasses.replace(p, learning_rate=min(p.learning_rate, rate))
    )
    outcome = replays.along(
        control.state(control.first), policy=held, note="at a steady learning rate"
    )
    return _trial(
        replays, f"learning rate held at {rate:.3g} (it reached {max(inside):.3g})", outcome
    )


def _altered(policy: Policy, change: Callable[[StepPolicy], StepPolicy]) -> Policy:
    def altered(counters: Counters) -> StepPolicy:
        return change(policy(counters))

    return altered


def stale_tensors(run: Run, first: int, last: int) -> list[dict[str, Any]]:
    """Recorded `staleness` of each tensor at its highest in first … last−1, against its median
    before; most stale first.
    """
    import pyarrow.compute as pc

    rows: list[dict[str, Any]] = []
    at: Run | None = run
    while at is not None:
        table = at.table("tensors", ["step", "tensor", "staleness", "rms_t"])
        upper = last if at is run else min(last, run.header.first_step)
        keep = pc.and_(pc.greater_equal(table["step"], first - 32), pc.less(table["step"], upper))
        rows += table.filter(keep).to_pylist()
        at = at.parent if first - 32 < at.header.first_step else None
    found = []
    for name in dict.fromkeys(row["tensor"] for row in rows):
        own = [row for row in rows if row["tensor"] == name and row["staleness"] is not None]
        past = [row["staleness"] for row in own if row["step"] < first]
        here = [row for row in own if row["step"] >= first]
        if not past or not here:
            continue
        worst, usual = max(here, key=lambda row: row["staleness"]), float(np.median(past))
        found.append(
            {
                "tensor": name,
                "step": worst["step"],
                "staleness": worst["staleness"],
                "rms_t": worst["rms_t"],
                "usual": usual,
                "times": worst["staleness"] / usual if usual > 0 else None,
            }
        )
    return sorted(found, key=lambda row: -(row["times"] or 0.0))
