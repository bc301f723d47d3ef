"""Which step is blamed: the spike that is asked for, at its peak, or the largest of the run."""

from __future__ import annotations

import math
from typing import Any

from forensics.detect.spikes import Spike, band_at, restarts_of, robust
from forensics.errors import ForensicsError
from forensics.train.run import Run
from replay.blame.result import BlamedStep
from replay.spike_list import METRICS, Metric
from replay.verify import recorded_steps

NOUNS: dict[Metric, str] = {"loss": "loss", "grad_norm": "gradient norm"}
RECOVER_WITHIN = 100  # steps after a peak that the detector waits for its recovery


def spikes_along(run: Run, metric: Metric = "loss") -> list[Spike]:
    """Detect every spike of a recorded metric along the lineage: a fork has its ancestors' past."""
    rows = recorded_steps(run, 0, run.header.steps)
    steps = sorted(step for step, row in rows.items() if row[metric] is not None)
    values = [rows[step][metric] for step in steps]
    return robust(values, metric=metric, steps=steps, restarts=restarts_of(run.recipe))


def spiked_metric(run: Run, step: int | None) -> Metric:
    """Return the metric that a detector flagged at `step`: the loss where both or neither did.

    Where no step is named: the loss where it ever spiked, else the gradient norm where that did.
    """
    for metric in METRICS:
        spikes = spikes_along(run, metric)
        if any(step is None or _holds(spike, step) for spike in spikes):
            return metric
    return "loss"


def the_spike(run: Run, step: int | None, force: bool, metric: Metric = "loss") -> BlamedStep:
    """Find the spike that is meant: the largest where no step is named, else at its peak.

    Errors: usage, for a step that is no spike, unless `force`; missing, where none was recorded.
    """
    spikes = spikes_along(run, metric)
    if step is None:
        if not spikes:
            raise ForensicsError(
                "missing",
                f"wanted a spike of the {NOUNS[metric]} of {run.name}, found none",
                "--spike S --force blames any step",
            )
        largest = max(spikes, key=lambda s: s.sigma if math.isfinite(s.sigma) else math.inf)
        step = largest.step
    rows = recorded_steps(run, 0, step + 1)
    if step not in rows or rows[step][metric] is None:
        last = max((s for s, row in rows.items() if row[metric] is not None), default=None)
        raise ForensicsError(
            "missing",
            f"wanted the {NOUNS[metric]} of {run.name} at step {step}, found none recorded",
            f"recorded up to {last}" if last is not None else "was it trained?",
        )
    spike = next((s for s in spikes if _holds(s, step)), None)
    if spike is None and not force:
        nearest = min(spikes, key=lambda s: abs(s.step - step), default=None)
        hint = (
            f"the nearest is at {nearest.step} ({nearest.sigma:.1f}σ): --spike {nearest.step}"
            if nearest
            else "no step of it is"
        )
        raise ForensicsError(
            "usage",
            f"step {step} of {run.name} is no spike of the {NOUNS[metric]}; {hint}",
            "--force blames it all the same",
        )
    if spike is not None and not force and spike.step != step:
        remark = (
            f"Step {step} belongs to the spike with its peak at {spike.step}, which is"
            f" explained (--force explains {step})."
        )
        rows |= recorded_steps(run, step, spike.step + 1)
        return _blamed_step(run, rows, spike.step, spike, remark, metric)
    remark = "" if spike is not None else f"No detector calls step {step} a spike."
    return _blamed_step(run, rows, step, spike, remark, metric)


def _holds(spike: Spike, step: int) -> bool:
    """Whether the step lies between the spike's onset and its recovery.

    One that was not seen to recover holds as long as the detector waits for it.
    """
    recovered = spike.recovered_at
    last = spike.step + RECOVER_WITHIN if recovered is None else recovered - 1
    return spike.onset <= step <= max(spike.step, last)


def _blamed_step(
    run: Run,
    rows: dict[int, dict[str, Any]],
    step: int,
    spike: Spike | None,
    remark: str,
    metric: Metric,
) -> BlamedStep:
    value = rows[step][metric]
    if (
        spike is not None
        and spike.baseline is not None
        and math.isfinite(spike.sigma)
        and spike.sigma > 0
    ):
        baseline: float | None = spike.baseline
        scale: float | None = (spike.value - spike.baseline) / spike.sigma
    else:
        before = sorted(s for s in rows if s < step and rows[s][metric] is not None)
        values = [rows[s][metric] for s in before]
        band = band_at(step, values, steps=before, restarts=restarts_of(run.recipe))
        baseline, scale = band or (None, None)
    return BlamedStep(
        step=step,
        value=value,
        baseline=baseline,
        scale=scale,
        kind=spike.kind if spike else None,
        onset=spike.onset if spike else None,
        recovered_at=spike.recovered_at if spike else None,
        is_spike=spike is not None,
        remark=remark,
    )
