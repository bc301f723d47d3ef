"""What is blamed: the quantity that spiked, the loss or the gradient norm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from replay.blame.blamed_step import spiked_metric, the_spike
from replay.blame.result import BlamedStep
from replay.lineage import open_trajectory
from replay.spike_list import Metric


@dataclass(frozen=True)
class BlamedQuantity:
    """A step, and which of its recorded numbers is to be explained."""

    metric: Metric
    step: BlamedStep

    @property
    def finite(self) -> bool:
        """Return whether it was recorded as a finite number."""
        return math.isfinite(self.step.value)


def blamed_quantity(
    runs: Path, name: str, spike: int | None, of: Metric | None, force: bool
) -> BlamedQuantity:
    """Choose what the detector flagged at `spike` (or anywhere); `of` names it.

    Errors: usage, missing.
    """
    run = open_trajectory(runs, name)
    metric = of or spiked_metric(run, spike)
    return BlamedQuantity(metric, the_spike(run, spike, force, metric))
