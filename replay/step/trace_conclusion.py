"""What a trace concludes: how much of a step's rise the update before it carries, and which part.

docs/formulas.md, "Trace", defines the numbers; the sentences are made from the record.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from forensics.train.run import Run
from replay.compare.medians import spread_of_present
from replay.step.result import LayerBlame, StepTrace, TraceConclusion, UpdatePart
from replay.verify import recorded_steps

BEFORE = 128  # steps whose differences say what an ordinary rise is
FEWEST = 16  # of them that a scale is taken of
SCALES = 2.0  # from which a difference between two steps is a rise: 1 in 50 ordinary ones
HALF = 0.5  # of the rise, or of the update's part of it, from which something carries it


def recorded_differences(run: Run, step: int) -> list[float]:
    """Return the differences of recorded loss from step to step before `step`, at most 128.

    A fork has its ancestors' too.
    """
    rows = recorded_steps(run, max(0, step - BEFORE - 1), step)
    losses = [rows[s]["loss"] for s in sorted(rows) if rows[s]["loss"] is not None]
    return [float(x) for x in np.diff(losses) if math.isfinite(x)]


def conclude(
    before: float | None, at: float | None, differences: Sequence[float], blame: LayerBlame
) -> TraceConclusion:
    """Say whether the loss rose, and what of the rise is the update's (nats)."""
    scale = spread_of_present(list(differences)) if len(differences) >= FEWEST else None
    if before is None or at is None or not math.isfinite(at - before + blame.rise_batch):
        return TraceConclusion("not finite", None, scale, None)
    rise = at - before
    if rise <= 0 or (scale is not None and rise < SCALES * scale):
        return TraceConclusion("no rise", rise, scale, blame.rise_batch)
    if blame.rise_batch < HALF * rise:
        return TraceConclusion("not the update", rise, scale, blame.rise_batch)
    largest, carries = _part(blame)
    leading = next(
        (
            effect
            for effect in blame.tensors
            if effect.alone_batch >= HALF * blame.rise_batch
            and blame.rise_batch - effect.without_batch >= HALF * blame.rise_batch
        ),
        None,
    )
    return TraceConclusion(
        "update",
        rise,
        scale,
        blame.rise_batch,
        largest,
        carries,
        leading.tensor if leading else None,
        leading.alone_batch if leading else None,
        leading.without_batch if leading else None,
    )


def _part(blame: LayerBlame) -> tuple[UpdatePart, float]:
    """Return the part of the update that alone brings half of its rise, and what it brings."""
    enough = HALF * blame.rise_batch
    if blame.data_batch >= enough > blame.memory_batch:
        return "gradient", blame.data_batch
    if blame.memory_batch >= enough > blame.data_batch:
        return "moments", blame.memory_batch
    return "both", blame.rise_batch


def sentence(trace: StepTrace) -> str:
    """Say the conclusion of a trace."""
    conclusion, before = trace.conclusion, trace.baseline
    rise, by_update = conclusion.rise, conclusion.by_update
    if conclusion.verdict == "not finite" or rise is None or by_update is None:
        return (
            f"A loss of steps {before} and {trace.step}, or along update {before}, is not finite:"
            " no rise can be measured."
        )
    size = f"the loss of step {trace.step} stands {rise:+.3f} nats/token over step {before}"
    if conclusion.scale:
        size += f" ({rise / conclusion.scale:.1f} times the usual difference of two steps)"
    if conclusion.verdict == "no rise":
        return f"No rise beyond the usual: {size}."
    if conclusion.verdict == "not the update":
        return (
            f"Not the update: {size}, and update {before} changed the loss of this batch by"
            f" {by_update:+.3f}. The rest was there before the update: it is the batch's."
        )
    return f"Update {before} carries {by_update:+.3f} of the rise: {size}. {_of_the_update(trace)}"


def _of_the_update(trace: StepTrace) -> str:
    """Say which part of the update, and which tensor's, carries its rise."""
    conclusion, before = trace.conclusion, trace.baseline
    carries = f"{conclusion.part_carries or 0.0:+.3f}"
    largest = {
        "gradient": f"the gradient of batch {before} alone brings {carries}",
        "moments": f"the moments, carried from before, alone bring {carries}",
        "both": "neither its gradient alone nor the moments alone bring half of it",
    }[conclusion.part or "both"]
    if conclusion.tensor is None:
        return f"Of the update {largest}, and no tensor by itself carries half of it."
    return (
        f"Of the update {largest}; the part of {conclusion.tensor} alone brings"
        f" {conclusion.tensor_alone or 0.0:+.3f}, and all others without it"
        f" {conclusion.tensor_without or 0.0:+.3f}."
    )
