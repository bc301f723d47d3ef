"""One batch: tokens, weights, the loss's denominator, and where its sequences come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # naming a batch loads no torch
    from torch import Tensor

MADE = -1  # the id of a sequence that an intervention made


@dataclass(frozen=True, eq=False)
class Batch:
    """Hold what one step trains on: B sequences, each with T targets and one token more.

    The loss is Σ weight·cross-entropy / denominator.
    """

    tokens: Tensor  # (B, T+1) int64; position t is the input, t+1 its target
    weight: Tensor  # (B, T) float32 of each target: masks, and the metagradient's w
    denominator: float
    sequence: Tensor  # (B,) int64 ids in the corpus; −1: made by an intervention
    origin: int | None = None  # the run's own batch it came from; None: made
    # (B,) int64 step·B + slot of the run's own row that each row is; −1: none; None: not followed
    own_row: Tensor | None = None


BatchStream = Callable[[int], Batch]
