"""What a metric is given: one checkpoint, and the text it is read on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from forensics.model.step_model import StepModel
from forensics.step.batch import Batch
from forensics.step.state import TrainState
from forensics.train.run import Run

Params = Mapping[str, Tensor]
Value = float | dict[str, float] | None


@dataclass
class View:
    """One checkpoint, and the text it is read on."""

    step: int
    params: Params
    run: Run
    text: Batch | None  # of any number of sequences; None where the metric reads none
    state: TrainState | None = None  # with moments and counters; None where only weights are
    stream: Tensor | None = None  # the final stream, once it was computed

    @property
    def model(self) -> StepModel:
        """Return the run's decoder and what a forward needs beside it."""
        return self.run.model
