"""Which step is blamed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from forensics.detect.spikes import Spike, phase_restarts, robust
from forensics.detect.windows import MAD_TO_SIGMA, smallest_scale
from forensics.errors import ForensicsError
from forensics.train.run import Run
from replay.verify import recorded_steps

SIGMAS = 6.0  # of the robust detector: what counts as a spike
FEWEST = 8  # recorded losses before the step that make a baseline
HISTORY = 128  # recorded losses that a scale is taken of where no detector gives one


@dataclass(frozen=True)
class Asked:
    """The step that is explained, and how it stands in the recorded series."""

    step: int
    spike: bool  # whether the detector calls it (part of) a spike
    value: float
    baseline: float | None  # recorded loss before it; None where too little was recorded
    scale: float | None  # 1.4826·MAD, nats
    kind: str | None
    onset: int | None
    recovered_at: int | None
    words: str

    @property
    def sigma(self) -> float | None:
        if self.baseline is None or not self.scale:
            return None
        return (self.value - self.baseline) / self.scale


def spikes_along(run: Run) -> list[Spike]:
    """Every spike of the recorded loss along the run's lineage, so that a fork has its ancestors'
    history.
    """
    rows = recorded_steps(run, 0, run.header.steps)
    steps = sorted(s for s, row in rows.items() if row["loss"] is not None)
    restarts = phase_restarts([(p.until, p.mix) for p in run.recipe.data.phases])
    return robust([rows[s]["loss"] for s in steps], metric="loss", steps=steps, restarts=restarts)


def the_spike(run: Run, step: int | None, force: bool) -> Asked:
    """The spike that is meant: at its peak where `step` lies inside it; the largest where no step
    is named.

    Errors: usage, for a step that is no spike (with the nearest one), unless forced; missing, where
    it was not recorded.
    """
    found = spikes_along(run)
    if step is None:
        if not found:
            raise ForensicsError(
                "missing",
                f"wanted a spike of the loss of {run.name}, found none",
                "--spike S --force blames any step",
            )
        step = max(found, key=lambda s: s.sigma if math.isfinite(s.sigma) else math.inf).step
    rows = recorded_steps(run, 0, step + 1)
    if step not in rows or rows[step]["loss"] is None:
        last = max((s for s, row in rows.items() if row["loss"] is not None), default=None)
        raise ForensicsError(
            "missing",
            f"wanted the loss of {run.name} at step {step}, found none recorded",
            f"recorded up to {last}" if last is not None else "was it trained?",
        )
    inside = [
        s for s in found if s.onset <= step <= max(s.step, (s.recovered_at or s.step + 1) - 1)
    ]
    if not inside and not force:
        near = min(found, key=lambda s: abs(s.step - step), default=None)
        hint = (
            f"the nearest is at {near.step} ({near.sigma:.1f}σ): --spike {near.step}"
            if near
            else "no step of it is"
        )
        raise ForensicsError(
            "usage",
            f"step {step} of {run.name} is no spike of the loss; {hint}",
            "--force blames it all the same",
        )
    if inside and not force and inside[0].step != step:
        words = (
            f"step {step} belongs to the spike with its peak at {inside[0].step}, which is"
            f" explained (--force explains {step})"
        )
        return _asked(
            rows | recorded_steps(run, step, inside[0].step + 1), inside[0].step, inside[0], words
        )
    return _asked(
        rows,
        step,
        inside[0] if inside else None,
        "" if inside else f"no detector calls step {step} a spike",
    )


def _asked(rows: dict[int, dict[str, Any]], step: int, spike: Spike | None, words: str) -> Asked:
    value, scale = rows[step]["loss"], None
    if (
        spike is not None
        and spike.baseline is not None
        and math.isfinite(spike.sigma)
        and spike.sigma > 0
    ):
        scale = (spike.value - spike.baseline) / spike.sigma
        return Asked(
            step,
            True,
            value,
            spike.baseline,
            scale,
            spike.kind,
            spike.onset,
            spike.recovered_at,
            words,
        )
    past = [rows[s]["loss"] for s in sorted(rows) if s < step and rows[s]["loss"] is not None][
        -HISTORY:
    ]
    past = [x for x in past if math.isfinite(x)]
    baseline = float(np.median(past)) if len(past) >= FEWEST else None
    if baseline is not None:
        scale = max(
            float(MAD_TO_SIGMA * np.median(np.abs(np.array(past) - baseline))),
            smallest_scale(baseline),
        )
    kind, onset, back = (
        (spike.kind, spike.onset, spike.recovered_at) if spike else (None, None, None)
    )
    return Asked(step, spike is not None, value, baseline, scale, kind, onset, back, words)
