"""The scope of a matrix: which batches, which states; what is not said lies around the spike.

scope_of(run)                                   # of the largest spike
scope_of(run, 398, 406, [200, 390, 401])
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from forensics.errors import ForensicsError
from forensics.step.batch import Batch
from forensics.step.policy import StepPolicy
from forensics.step.state import TrainState
from forensics.train.run import Run
from replay.blame.blamed_step import spikes_along, the_spike
from replay.blame.result import BlamedStep
from replay.compare.probe_sequences import Probe
from replay.experiments.results import MatrixResult, WindowsResult
from replay.forks.lockstep import require_steps
from replay.lineage import identity_text, require_intact

PLACEBOS = 19  # batches: the fewest that can show p = 0.05 for one batch
OTHERS = 20  # states beside the judged one: the fewest whose rises can show p = 0.05 for a state
STRIDE = 4  # steps between them at least: near the spike, and some way from one another
BATCHES = 4  # of the window, from the spike's step on, where none is asked for
STEPPING = 3  # of the chosen states, that take steps: one costs as much as ten losses


class Scope(NamedTuple):
    """Which batches from which states; of `stepping` a step is taken on each batch."""

    first: int
    last: int
    states: tuple[int, ...]
    stepping: tuple[int, ...]


def scope_of(
    run: Run,
    first: int | None = None,
    last: int | None = None,
    states: Sequence[int] | None = None,
    spike: int | None = None,
) -> Scope:
    """Choose what is not said: the spike's batches, its state and 20 before its onset.

    Errors: usage, missing.
    """
    onset = judged = first
    if first is not None and last is not None and spike is None:
        peaks = [s for s in spikes_along(run) if first <= s.step < last]
        if peaks:
            largest = max(peaks, key=lambda s: s.sigma if math.isfinite(s.sigma) else math.inf)
            onset, judged = largest.onset, largest.step
    else:
        blamed = _spike(run, spike)
        onset, judged = blamed.onset or blamed.step, blamed.step
    assert onset is not None and judged is not None
    if first is None or last is None:
        first, last = judged, min(judged + BATCHES, run.header.steps)
    if states is not None:
        chosen = tuple(sorted({*states}))
        return Scope(first, last, chosen, chosen)
    lowest = 0 if run.parent is not None else run.header.first_step
    apart = max(STRIDE, judged - onset + 1)  # the nearest of them lies before the onset
    beside = sorted(s for k in range(OTHERS) if (s := judged - apart * (k + 1)) >= lowest)
    spread = np.linspace(0, len(beside) - 1, min(STEPPING - 1, len(beside))).astype(int)
    stepping = (*(beside[i] for i in sorted({*spread.tolist()})), judged)
    return Scope(first, last, (*beside, judged), stepping)


def _spike(run: Run, step: int | None) -> BlamedStep:
    """Return the spike that is meant, or the step though no detector calls it one."""
    try:
        return the_spike(run, step, force=step is not None)
    except ForensicsError as e:
        raise ForensicsError(e.kind, e.message, "--batches A:B takes any batches") from None


def placebos_of(scope: Scope) -> range:
    """Batches that follow the window, and that no state has been trained on."""
    start = max(scope.last, scope.states[-1])
    return range(start, start + PLACEBOS)


def applied(run: Run, state: TrainState) -> StepPolicy:
    """Return the run's policy at this state, applied even where a fork leaves its own step out.

    The batch is to act.
    """
    return dataclasses.replace(run.policy(state.counters), update="apply")


def probed(state: TrainState, probe: Probe) -> float | None:
    """Return the loss on the probe set; None where there is none."""
    return probe.read(state.params, {})["control"].loss if probe.sequences else None


def batch_of(run: Run, step: int) -> Batch:
    """Return a batch of the run's stream, which goes on past its end. Errors: missing."""
    try:
        return run.stream(step)
    except ForensicsError as e:
        if step < run.header.steps:
            raise
        raise ForensicsError(
            e.kind,
            f"wanted placebo batches after the window of {run.name}, found: {e.message}",
            "its order file ends with the run: a longer one is needed",
        ) from None


def require(run: Run, scope: Scope) -> None:
    """Refuse batches and states that the run does not have. Errors: usage, missing, integrity."""
    if not 0 <= scope.first < scope.last <= run.header.steps:
        raise ForensicsError(
            "missing",
            f"wanted batches of {run.name}, found {scope.first}:{scope.last}",
            f"it has batches 0:{run.header.steps}",
        )
    require_steps(run, scope.states, "--states", lineage=True)
    require_intact(run)


def identity_of(run: Run) -> str:
    """Tell what a cell depends on beside its state and batch."""
    return f"{identity_text(run)} {MatrixResult.VERSION} {WindowsResult.VERSION}"
