"""What one step did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from forensics.step.batch import Batch
from forensics.step.policy import StepPolicy
from forensics.step.state import Counters


class LogitRows(NamedTuple):
    """Per row, (N,): what the recorder needs of the logits."""

    largest: Tensor
    mean_square: Tensor
    logz: Tensor
    entropy: Tensor


@dataclass
class StepResult:
    """What a step did; tensors are detached and belong to this step."""

    step: int
    policy: StepPolicy
    counters: Counters  # before the step
    action: str  # apply | hold | zero | none | skipped (by SkipStep)
    batch: Batch | None = None
    loss: float | None = None  # nats per counted token
    grad_norm: float | None = None  # before clipping
    clip_scale: float = 1.0
    ce: Tensor | None = None  # (B, T) nats
    rows: LogitRows | None = None  # (B·T,) each
    grad_norms: dict[str, float] | None = None  # by tensor, before clipping
    seconds: float = 0.0
