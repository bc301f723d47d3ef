"""The two matrices between tokens and the residual stream, as a file or a state has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Weights:
    """A model's vocabulary matrices in float32; tied ones are the same tensor."""

    embedding: Tensor  # (V, D)
    unembedding: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    tied: bool
    grain: Tensor | None = None  # (V, D / b) the quantisation step of each block of b numbers of U

    @property
    def rows(self) -> int:
        """V."""
        return self.unembedding.shape[0]

    def default(self) -> str:
        """Return the name of the indicator that a model of this kind is judged by."""
        return "cosine" if self.tied else "input-norm"
