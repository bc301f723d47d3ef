"""What prompts told of a target's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from forensics.tokens.verify import Control


@dataclass(frozen=True, eq=False)
class Verification:
    """What the prompts told; max_prob and bound are (n,) over the categories' ids, NaN where a
    token was not asked.
    """

    placeholder: int | None
    controls: list[Control]
    copies: bool
    verdict: str
    max_prob: np.ndarray
    bound: np.ndarray  # bool: P is at least that, because the token was rejected there
    whole: bool  # a census
