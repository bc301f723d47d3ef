"""A replay of a run made elsewhere, beside what its own trainer wrote: its log and its checkpoints.

Other kernels and another order of sums give other bits, so the replay is never bit for bit: it is
held to a tolerance, and what is said of it says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from forensics.result_records import part_to_document, read_part
from forensics.step.result import StepResult
from forensics.step.state import TrainState
from forensics.train.origin import origin_of
from forensics.train.run import Run

# nats: of a loss that float32 sums in another order. Rounding of 2⁻²⁴ moves a loss of 5 nats by
# 3e-7; tens of updates carry that on. Ten times what is asked of the runs that are tried here.
LOSS_TOLERANCE = 1e-4
# nats: products of bfloat16 are rounded to 2⁻⁹, which moves a mean loss in its third decimal
LOSS_TOLERANCE_BF16 = 2e-2
# of the distance that the other trainer's state travelled over the window
STATE_TOLERANCE = 1e-3
STATE_TOLERANCE_BF16 = 0.2  # rounding of each gradient is a twentieth of an update, and adds up


class Tolerance(NamedTuple):
    """How far a replay may be from what was logged and saved, and still reproduce it."""

    loss: float  # nats
    state: float  # of the distance travelled


@dataclass
class Beside:
    """What was compared so far with a run's own log and checkpoints."""

    format: str
    warm_moments: int = 0  # batches that the moments of the start were made of; 0: saved ones
    losses: int = 0  # logged ones that were compared
    loss_max_abs_difference: float | None = None  # nats
    loss_step: int | None = None  # where it is largest
    grad_norm_max_relative_difference: float | None = None
    state: int | None = None  # the last of its checkpoints that was compared
    state_relative_difference: float | None = None  # ‖θ−θ_theirs‖ / ‖θ_theirs−θ_A‖

    @property
    def compared(self) -> bool:
        """Whether anything was there to compare with."""
        return self.losses > 0 or self.state is not None

    def within(self, tolerance: Tolerance) -> bool:
        """Whether all that was compared lies within the tolerance."""
        pairs = (
            (self.loss_max_abs_difference, tolerance.loss),
            (self.state_relative_difference, tolerance.state),
        )
        return self.compared and all(far is None or far <= limit for far, limit in pairs)

    def see_step(self, result: StepResult, row: dict[str, Any]) -> None:
        """Hold a replayed step against what was logged of it."""
        if row["loss"] is not None and result.loss is not None:
            self.losses += 1
            far = _apart(result.loss, row["loss"])
            if self.loss_max_abs_difference is None or far > self.loss_max_abs_difference:
                self.loss_max_abs_difference, self.loss_step = far, result.step
        if row["grad_norm"] and result.grad_norm is not None:
            relative = _apart(result.grad_norm, row["grad_norm"]) / abs(row["grad_norm"])
            largest = self.grad_norm_max_relative_difference or 0.0
            self.grad_norm_max_relative_difference = max(largest, relative)

    def see_state(
        self, state: TrainState, theirs: dict[str, Tensor], start: dict[str, Tensor]
    ) -> None:
        """Hold a replayed state against the one that was saved, from the state both began at."""
        travelled = _distance(theirs, start)
        far = _distance(state.params, theirs)
        self.state = state.counters.step
        self.state_relative_difference = far / travelled if travelled else far and math.inf

    def sentence(self, tolerance: Tolerance) -> str:
        """Say how far the replay is from its trainer's log and checkpoint; tolerance only."""
        told = list(self._compared(tolerance))
        begins = f"to tolerance only, for it was trained elsewhere ({self.format})"
        made = (
            f"; its first moments were made here, of the {self.warm_moments} batches before"
            if self.warm_moments
            else ""
        )
        if not told:
            return f"{begins}, and nothing was logged or saved in the window to compare with{made}"
        verb = "reproduced" if self.within(tolerance) else "not reproduced"
        return f"{verb}, {begins}: {'; '.join(told)}{made}"

    def _compared(self, tolerance: Tolerance):
        if self.loss_max_abs_difference is not None:
            yield (
                f"{self.losses:,} logged losses differ by at most"
                f" {self.loss_max_abs_difference:.2g} nats (tolerance {tolerance.loss:g})"
            )
        if self.grad_norm_max_relative_difference is not None:
            share = self.grad_norm_max_relative_difference
            yield f"logged gradient norms by {share:.2g} of their size"
        if self.state_relative_difference is not None:
            yield (
                f"its saved state {self.state} by {self.state_relative_difference:.2g} of the"
                f" distance travelled (tolerance {tolerance.state:g})"
            )

    def notes(self) -> dict[str, Any]:
        """Return it as JSON, for a fork that is interrupted."""
        return part_to_document(self)


def beside(run: Run, first: int) -> Beside | None:
    """Begin to compare a replay from state `first` with what the run's own trainer wrote.

    None: the run was trained here; so was a fork of a run made elsewhere.
    """
    origin = origin_of(run.header)
    if origin is None or run.parent is not None:
        return None
    without = [step for step in run.saved_steps() if step <= first][-1:]
    warm = run.warm_moments if without and without[0] in origin.without_moments else 0
    return Beside(origin.format, warm)


def taken_up(notes: dict[str, Any]) -> Beside:
    """Go on from what `notes` gave."""
    return read_part(Beside, notes)


def tolerance_of(run: Run) -> Tolerance:
    """Return how near a replay of this run has to come, by the precision that it is run in."""
    if run.header.precision == "fp32":
        return Tolerance(LOSS_TOLERANCE, STATE_TOLERANCE)
    return Tolerance(LOSS_TOLERANCE_BF16, STATE_TOLERANCE_BF16)


def _apart(a: float, b: float) -> float:
    """Return |a − b|: 0 where both are NaN or the same infinity, inf where one is not finite."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    return abs(a - b) if math.isfinite(a - b) else math.inf


@torch.no_grad()
def _distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Return ‖a − b‖₂ over all tensors, summed in float64."""
    squares = (
        float((tensor.double() - b[name].to(tensor.device).double()).square().sum())
        for name, tensor in a.items()
    )
    return math.sqrt(math.fsum(squares))
