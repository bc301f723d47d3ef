"""Judge a distance by its placebos: effect, p, and the time until the fork is back among them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Effect:
    """How a fork's distance stands to those of its placebos."""

    placebos: int
    effect: float | None  # d / median(placebos)
    p: float | None  # (1 + #{placebo ≥ d}) / (N + 1)
    largest: float | None  # of the placebos
    words: str

    @property
    def causal(self) -> bool:
        return self.words.startswith("beyond")


def effect(d: float, placebos: list[float]) -> Effect:
    """The rule for causal words: p ≤ 0.05, or with 3 or more placebos at least 5 times the largest
    of them.
    """
    N = len(placebos)
    if N == 0:
        return Effect(0, None, None, None, "no placebo was run: no effect is claimed")
    median = float(np.median(placebos))
    p = (1 + sum(x >= d for x in placebos)) / (N + 1)
    times = d / median if median > 0 else math.inf if d > 0 else math.nan
    if p <= 0.05 or (N >= 3 and d > 0 and d >= 5 * max(placebos)):
        words = f"beyond the placebos (N = {N})"
    elif N < 3:
        words = f"too few placebos to tell (N = {N})"
    else:
        words = f"not distinguishable from the placebos (N = {N})"
    return Effect(N, times, p, max(placebos), words)


def time_to_reconverge(
    steps: list[int], d: list[float], placebos: list[list[float]], start: int
) -> int | None:
    """Steps from `start` until d stays at or below the placebos' 95th percentile; None: not within
    the window.
    """
    if not placebos or not steps:
        return None
    limit = np.percentile(np.array(placebos), 95, axis=0)
    below = np.array(d) <= limit
    if not below[-1]:
        return None
    outside = np.flatnonzero(~below)
    return steps[int(outside[-1]) + 1 if len(outside) else 0] - start
