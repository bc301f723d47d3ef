"""What one step does with its batch: every setting of an update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from forensics.step.state import Counters

# every row of them is one token or one position
EMBEDDINGS = ("embed.weight", "positions.weight", "unembed.weight")


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
    update_rule: str = "adamw"  # a file of forensics/train/optimizers
    momentum: float = 0.95  # Muon's, of matrices
    matrix_scale: str = "match_rms"  # Muon's step: match_rms | original
    matrix_rate: float = 1.0  # Muon's learning rate of matrices, times `learning_rate`
    watch_skip: bool = False  # SkipStep's window fills even where it is off

    def orthogonalizes(self, name: str, dimensions: int) -> bool:
        """Return whether Muon moves this tensor: a matrix, and no table of rows."""
        return self.update_rule == "muon" and dimensions == 2 and name not in EMBEDDINGS

    def rate(self, name: str, dimensions: int) -> float:
        """Return the learning rate of a tensor; Muon's matrices have their own."""
        factor = self.matrix_rate if self.orthogonalizes(name, dimensions) else 1.0
        return self.learning_rate * factor


Policy = Callable[[Counters], StepPolicy]
