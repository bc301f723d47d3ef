"""What one step does with its batch: every setting of an update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from forensics.step.state import Counters


@dataclass(frozen=True)
class StepPolicy:
    """How one batch is turned into an update."""

    learning_rate: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    clip: float  # largest ‖g‖₂; 0: none
    z_loss: float
    frozen: frozenset[str]  # tensors that are left alone, moments included
    precision: str  # fp32 | bf16
    # apply; hold: moments advance, parameters stay; zero: forward and backward only; none: the
    # batch is not asked for
    update: Literal["apply", "hold", "zero", "none"]
    advance_schedule: bool
    skip_step: bool
    clip_eps: float = 0.0  # ε of the factor min(1, clip / (‖g‖₂ + ε))
    watch_skip: bool = False  # SkipStep's window fills even where it is off


Policy = Callable[[Counters], StepPolicy]
