"""Replays that tell data, state and policy apart: the same window with one thing otherwise.

other data, same state      the touched batches give way to others: a spike that comes all the same
                            is not the data's
same data, other states     the same batches from states before the window (PaLM's test)
up-to-date moments          the same batches and parameters, but second moments with a short memory
the policy as before        each setting that changed in the window as it was, then all of them
neither                     other data and the policy as before
earlier starts              the same from states before the window
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from forensics.errors import ForensicsError
from forensics.step.batch import Batch, BatchStream
from forensics.step.policy import Policy, StepPolicy
from forensics.step.state import Counters, TrainState
from forensics.train.run import Run
from replay.blame.policy_changes import ChangedField, as_before, changed_fields
from replay.blame.result import PolicyChange, StaleTensor, Trial
from replay.blame.rules import BEFORE, EARLIER, HALF, LONG, OTHERS, PAST
from replay.blame.stand_ins import NOTHING, Avoided
from replay.blame.window_replays import ExcessLeft, WindowReplays
from replay.lineage import checkpoint_at_or_before, lowest_state, root


def other_data(
    replays: WindowReplays, first: int, avoided: Avoided = NOTHING, number: int = OTHERS
) -> tuple[Trial, ...]:
    """Replace batches first … S by others, `number` times; fewer where the order has no others."""
    S, trials = replays.control.last, []
    for draw in range(number):
        start, note = replays.control.state(first), f"other data {draw + 1}"
        try:
            left = replays.along(start, _others(replays, first, draw, avoided), note=note)
        except (ForensicsError, AssertionError):
            break  # there are none, neither after the run's end nor before the window
        description = f"other batches instead of {first}:{S + 1}, draw {draw + 1}"
        trials.append(_trial(replays, description, left, first))
    return tuple(trials)


def _others(replays: WindowReplays, first: int, draw: int, avoided: Avoided) -> BatchStream:
    """Return the stream in which batches from `first` on give way to others."""

    def stream(step: int) -> Batch:
        if step < first:
            return replays.run.stream(step)
        return replays.other_batch(step, draw, avoided)

    return stream


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


def changes_inside(replays: WindowReplays) -> list[ChangedField]:
    """List the settings of the policy that changed in the window."""
    control, policies = replays.control, replays.control.stretch.policies
    before = [policies[k] for k in range(control.start, control.first) if k in policies]
    inside = {k: policies[k] for k in range(control.first, control.last) if k in policies}
    return changed_fields(before, inside) if inside else []


def policy_changes(
    replays: WindowReplays, changes: Sequence[ChangedField]
) -> Iterator[PolicyChange]:
    """Put each setting that changed back by itself."""
    for change in changes:
        description, shown = change.words, change.shown
        left = _along_policy(replays, [change], f"with the {description}")
        trial = _trial(replays, description, left, change.first)
        yield PolicyChange(change.field, change.first, shown.before, shown.inside, trial)


def policy_as_before(replays: WindowReplays, changes: Sequence[ChangedField]) -> Trial:
    """Put all settings that changed back together."""
    left = _along_policy(replays, changes, "with the policy as before")
    start = min(change.first for change in changes)
    return _trial(replays, "the policy as before the window", left, start)


def _along_policy(replays: WindowReplays, changes: Sequence[ChangedField], note: str) -> ExcessLeft:
    start = replays.control.state(min(change.first for change in changes))
    return replays.along(start, policy=as_before(replays.run.policy, changes), note=note)


def neither(
    replays: WindowReplays, changes: Sequence[ChangedField], first: int, avoided: Avoided
) -> Trial | None:
    """Replace batches from `first` on and put the policy back; None where no others exist."""
    start = min([first, *(change.first for change in changes)])
    return _neither_from(replays, replays.control.state(start), changes, first, avoided)


def earlier_starts(
    replays: WindowReplays, changes: Sequence[ChangedField], avoided: Avoided
) -> Iterator[Trial]:
    """Run other data and the policy as before from states ever further before the window.

    It ends with the first from which it does not spike.
    """
    run, control = replays.run, replays.control
    lowest = max(lowest_state(run), root(run).recipe.train.warmup, 1)
    for back in EARLIER:
        start = control.first - back
        if start < lowest:
            return
        state = control.state(start) if start >= control.start else run.state_at(start)
        policy = run.policy(state.counters)
        inside = control.stretch.policies
        since = changed_fields([policy], {k: inside[k] for k in inside if k < control.last})
        trial = _neither_from(replays, state, [*changes, *since], start, avoided)
        if trial is None:
            return
        yield trial
        if not trial.spikes:
            return


def _neither_from(
    replays: WindowReplays,
    state: TrainState,
    changes: Sequence[ChangedField],
    first: int,
    avoided: Avoided,
) -> Trial | None:
    policy = as_before(replays.run.policy, changes)
    stream, start = _others(replays, first, 0, avoided), state.counters.step
    try:
        left = replays.along(state, stream, policy, f"other data and policy from state {start}")
    except (ForensicsError, AssertionError):
        return None
    as_then = " and the policy as before" if changes else ""
    return _trial(replays, f"other batches{as_then} from state {start}", left, start)


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
