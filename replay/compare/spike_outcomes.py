"""Did the spike vanish? The spikes of a control's losses, and whether its fork has them too.

Both are judged after the same past: the recorded losses before the fork's start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from forensics.detect.spikes import Spike, restarts_of, robust
from forensics.train.run import Run
from replay.verify import recorded_steps

NEAR = 2  # steps by which a spike may come earlier or later and still be the same one
STILL = 0.5  # share of its excess over the baseline at which it still happens

Losses = Mapping[int, float | None]  # by step; None: nothing was computed


@dataclass(frozen=True)
class SpikeOutcome:
    """One spike of the loss in the control's window, or one that only the fork has."""

    step: int  # the peak
    baseline: float | None  # nats/token, of the band before it
    loss: float | None  # the control's at its peak; None: only the fork has it
    fork_loss: float | None  # the fork's highest within 2 steps; None: it computed none
    sigma: float  # over the baseline
    happens: bool | None  # in the fork, at half the excess or more; None: not known


def spike_outcomes(run: Run, first: int, control: Losses, fork: Losses) -> tuple[SpikeOutcome, ...]:
    """Compare the spikes of the control's losses (by step, from `first` on) with the fork's."""
    history: Losses = {step: row["loss"] for step, row in recorded_steps(run, 0, first).items()}
    in_control = _spikes(run, history, control)
    outcomes = [_outcome(spike, fork) for spike in in_control]
    outcomes += [
        SpikeOutcome(spike.step, spike.baseline, None, spike.value, spike.sigma, happens=True)
        for spike in _spikes(run, history, fork)
        if not any(abs(s.step - spike.step) <= NEAR for s in in_control)
    ]
    return tuple(sorted(outcomes, key=lambda outcome: outcome.step))


def _outcome(spike: Spike, fork: Losses) -> SpikeOutcome:
    near = [
        loss
        for step in range(spike.step - NEAR, spike.step + NEAR + 1)
        if (loss := fork.get(step)) is not None
    ]
    highest = max(near, key=lambda loss: loss if math.isfinite(loss) else math.inf, default=None)
    happens = None if highest is None else still_happens(spike.value, spike.baseline, highest)
    return SpikeOutcome(spike.step, spike.baseline, spike.value, highest, spike.sigma, happens)


def still_happens(peak: float, baseline: float | None, highest: float) -> bool:
    """Tell whether a value is at least half as far above the baseline as the peak was; one that is
    not finite always is.
    """
    if not math.isfinite(highest):
        return True
    if baseline is None or not math.isfinite(peak):
        return False
    return highest - baseline >= STILL * (peak - baseline)


def _spikes(run: Run, history: Losses, losses: Losses) -> list[Spike]:
    """Find the spikes whose peak lies in a window, after its past."""
    values = {**history, **losses}
    steps = sorted(values)
    restarts = restarts_of(run.recipe)
    spikes = robust([values[step] for step in steps], steps=steps, restarts=restarts)
    return [spike for spike in spikes if spike.step in losses]
