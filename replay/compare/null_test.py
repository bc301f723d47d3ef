"""Judge a distance by its placebos: effect, p, and the time until the fork is back among them.

The rule for causal words stands here alone; docs/formulas.md, "Forks", gives its reasons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Finding = Literal["beyond", "not distinguishable", "too few", "none run", "none exist"]
ENOUGH_P = 0.05
FEWEST_FOR_TIMES = 3  # placebos of which the largest is a measure
TIMES = 5.0


@dataclass(frozen=True)
class Effect:
    """How a fork's distance stands to those of its placebos."""

    placebos: int  # N
    effect: float | None  # d / median(placebos); None without placebos
    p: float | None  # (1 + #{placebo ≥ d}) / (N + 1)
    largest: float | None  # of the placebos
    finding: Finding

    @property
    def causal(self) -> bool:
        """Whether causal words may be used."""
        return self.finding == "beyond"

    def sentence(self, null: str = "placebo") -> str:
        """Say the finding with its N; `null` names what the distance is held against."""
        return {
            "beyond": f"beyond the {null}s (N = {self.placebos})",
            "too few": f"too few {null}s to tell (N = {self.placebos})",
            "not distinguishable": f"not distinguishable from the {null}s (N = {self.placebos})",
            "none run": f"no {null} was run: no effect is claimed",
            "none exist": (
                f"these interventions have no {null}: the same on other data does not exist"
            ),
        }[self.finding]


def judge_effect(distance: float, placebos: Sequence[float], exist: bool = True) -> Effect:
    """Judge a distance by those of its placebos.

    It is beyond them at p ≤ 0.05, or with 3 or more placebos where it is at least 5 times the
    largest of them. `exist` says whether the intervention can have placebos at all.
    """
    N = len(placebos)
    if N == 0:
        return Effect(0, None, None, None, "none run" if exist else "none exist")
    median = float(np.median(placebos))
    p = (1 + sum(placebo >= distance for placebo in placebos)) / (N + 1)
    times = distance / median if median > 0 else math.inf if distance > 0 else math.nan
    far = N >= FEWEST_FOR_TIMES and distance > 0 and distance >= TIMES * max(placebos)
    finding: Finding
    if p <= ENOUGH_P or far:
        finding = "beyond"
    elif N < FEWEST_FOR_TIMES:
        finding = "too few"
    else:
        finding = "not distinguishable"
    return Effect(N, times, p, max(placebos), finding)


def time_to_reconverge(
    steps: Sequence[int], distances: Sequence[float], placebos: list[list[float]], start: int
) -> int | None:
    """Count the steps from `start` until the distance stays among the placebos'.

    That is at or below their 95th percentile; None: not within the window.
    """
    if not placebos or not steps:
        return None
    limit = np.percentile(np.array(placebos), 95, axis=0)
    below = np.array(distances) <= limit
    if not below[-1]:
        return None
    outside = np.flatnonzero(~below)
    return steps[int(outside[-1]) + 1 if len(outside) else 0] - start
