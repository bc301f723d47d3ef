"""Where the window begins: early enough that the run was calm, and no earlier than it may be.

The recorded losses tell where the run was calm. A window that cannot reach back so far begins in a
run that may already be worse; then the probes' loss at both states tells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from forensics.errors import ForensicsError
from forensics.train.run import Run
from replay.blame.result import BlamedStep
from replay.blame.rules import BEFORE, CALM_BAND, CALM_STEPS, LONGEST, MARGIN, WINDOW
from replay.lineage import lowest_state
from replay.verify import recorded_steps

LOCAL = 16  # calm losses that the spike's height is measured from


@dataclass(frozen=True)
class Window:
    """The window of a spike at S."""

    first: int  # A
    calm: int  # the last state before S at which the recorded loss was calm
    height: float | None  # of the recorded spike above the calm losses, nats

    @property
    def reaches_calm(self) -> bool:
        """Whether it begins where the run was calm."""
        return self.first <= self.calm


def choose_window(run: Run, blamed: BlamedStep, length: int | None) -> Window:
    """Choose WINDOW steps, or as many as lead back to a calm run; exactly `length`, if given.

    Errors: missing, where no state lies before the spike.
    """
    S, lowest = blamed.step, lowest_state(run)
    losses = _losses(run, S)
    calm = _calm_before(losses, blamed)
    if length is None:
        first = max(min(S - WINDOW, calm - MARGIN), S - LONGEST)
    else:
        first = S - length
    first = max(lowest, first)
    if first >= S:
        raise ForensicsError(
            "missing",
            f"wanted a state of {run.name} before step {S}, found none: it starts at {first}",
            "blame a later spike",
        )
    return Window(first, calm, _height(losses, blamed, calm))


def _losses(run: Run, stop: int) -> dict[int, float]:
    """Return the finite recorded losses of steps before `stop`, nats."""
    rows = recorded_steps(run, 0, stop)
    losses = {step: rows[step]["loss"] for step in sorted(rows)}
    return {s: loss for s, loss in losses.items() if loss is not None and math.isfinite(loss)}


def _calm_before(losses: dict[int, float], blamed: BlamedStep) -> int:
    """Return the last state before S, and before the onset, whose loss is the last of CALM_STEPS
    calm ones in a row.
    """
    last = (blamed.step if blamed.onset is None else min(blamed.step, blamed.onset)) - 1
    if blamed.baseline is None or not blamed.scale:
        return last
    top = blamed.baseline + CALM_BAND * blamed.scale
    for state in range(last, -1, -1):
        row = [losses.get(k, math.inf) for k in range(state - CALM_STEPS + 1, state + 1)]
        if all(loss <= top for loss in row):
            return state
    return last


def _height(losses: dict[int, float], blamed: BlamedStep, calm: int) -> float | None:
    """Return how high the recorded loss stands above the lower of its two baselines.

    They are the detector's, of up to 128 losses, and the median of the last calm ones: where the
    loss falls fast, the first lies too high.
    """
    local = [losses[k] for k in range(calm - LOCAL + 1, calm + 1) if k in losses]
    baselines = [] if blamed.baseline is None else [blamed.baseline]
    if len(local) >= BEFORE:
        baselines.append(float(np.median(local)))
    return blamed.value - min(baselines) if baselines else None
