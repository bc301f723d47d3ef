"""Judge a fork by its placebos: effect, p, which way the loss went, and the time until it is back.

The rule for causal words stands here alone; docs/formulas.md, "Forks", gives its reasons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

Finding = Literal["beyond", "unusual", "not distinguishable", "too few", "none run", "none exist"]
ENOUGH_P = 0.05  # at most this, and TIMES_AT_P, for causal words
STRICT_P = 0.01  # at most this alone: the rate of false alarms that causal words are held to
TIMES_AT_P = 3.0  # the distance over the largest placebo's that p ≤ ENOUGH_P needs beside it
FEWEST_FOR_TIMES = 3  # placebos of which the largest is a measure
SPLITS = 20_000  # of two groups, looked at one by one
TIMES = 5.0  # the distance over the largest placebo's where there are too few for p ≤ ENOUGH_P


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

    @property
    def least_p(self) -> float | None:
        """Return the smallest p that this many placebos can show."""
        return 1 / (self.placebos + 1) if self.placebos else None

    def sentence(self, null: str = "placebo") -> str:
        """Say the finding with its N; `null` names what the distance is held against."""
        return {
            "beyond": f"beyond the {null}s (N = {self.placebos})",
            "unusual": (
                f"as unusual as {self.placebos} {null}s can show, but not far enough beyond them"
                " for causal words"
            ),
            "too few": f"too few {null}s to tell (N = {self.placebos})",
            "not distinguishable": f"not distinguishable from the {null}s (N = {self.placebos})",
            "none run": f"no {null} was run: no effect is claimed",
            "none exist": (
                f"these interventions have no {null}: the same on other data does not exist"
            ),
        }[self.finding]


def judge_effect(
    distance: float, placebos: Sequence[float], exist: bool = True, p: float | None = None
) -> Effect:
    """Judge a distance by those of its placebos.

    It is beyond them at p ≤ 0.01; at p ≤ 0.05 where it is at least 3 times the largest of them; or
    with 3 or more placebos where it is at least 5 times the largest. `exist` says whether the
    interventions can have placebos at all; `p` is one that is corrected for several measures, in
    the place of the distance's own.
    """
    N = len(placebos)
    if N == 0:
        return Effect(0, None, None, None, "none run" if exist else "none exist")
    median, largest = float(np.median(placebos)), max(placebos)
    own_p = rank_p([distance, *placebos])
    p = own_p if p is None else p
    times = distance / median if median > 0 else math.inf if distance > 0 else math.nan
    finding: Finding
    if distance > 0 and (
        p <= STRICT_P
        or (p <= ENOUGH_P and distance >= TIMES_AT_P * largest)
        or (N >= FEWEST_FOR_TIMES and distance >= TIMES * largest)
    ):
        finding = "beyond"
    elif p <= ENOUGH_P:
        finding = "unusual"
    elif N < FEWEST_FOR_TIMES:
        finding = "too few"
    else:
        finding = "not distinguishable"
    return Effect(N, times, own_p, largest, finding)


def rank_p(values: Sequence[float]) -> float:
    """Return the share of the values that are at least the first, itself included: its p among
    exchangeable ones.
    """
    return sum(value >= values[0] for value in values) / len(values)


def judge_group(changes: Sequence[float], placebos: Sequence[float]) -> Effect:
    """Judge the changes of several seeds by those of several placebos, larger being more.

    p is exact: the share of all ways to part them into groups of these sizes in which the first
    group's mean is at least as large. A median of seeds is no draw of one placebo's kind.
    """
    effect = judge_effect(
        float(np.median(changes)),
        [abs(placebo) for placebo in placebos],
        p=group_p(changes, placebos) if placebos else None,
    )
    return replace(effect, p=group_p(changes, placebos)) if placebos else effect


def group_p(group: Sequence[float], others: Sequence[float]) -> float:
    """Return the one-sided p of a group's mean among all groups of its size (at most SPLITS of
    them, drawn by a fixed seed).
    """
    pooled = np.array([*group, *others])
    n = len(group)
    if math.comb(len(pooled), n) <= SPLITS:
        splits = np.array(list(combinations(range(len(pooled)), n)))
    else:
        rng = np.random.default_rng(0)
        drawn = [rng.permutation(len(pooled))[:n] for _ in range(SPLITS - 1)]
        splits = np.array([np.arange(n), *drawn])
    sums = np.sort(pooled[splits], axis=1).sum(axis=1)  # in one order, so that ties are ties
    return float((sums >= np.sort(np.array(group)).sum()).mean())


@dataclass(frozen=True)
class Change:
    """A signed change at the end, fork − control, beside the placebos' own."""

    change: float  # of the fork
    placebos: tuple[float, ...]  # placebo − its control
    lower: int  # placebos that changed less (or fell further)
    higher: int
    p: float  # two-sided: of the distance from the median of all of them, the fork's included


def judge_change(change: float, placebos: Sequence[float]) -> Change | None:
    """Judge a signed change by the placebos'; None without placebos."""
    if not placebos:
        return None
    return Change(
        change,
        tuple(placebos),
        sum(value < change for value in placebos),
        sum(value > change for value in placebos),
        rank_p(_deviations([change, *placebos])),
    )


def corrected_p(distances: Sequence[float], changes: Sequence[float]) -> float:
    """Return one p for both measures of a fork (the first of each) and its placebos.

    The smaller of the two measures' p, ranked among the same of every placebo, each held against
    all others in turn: exact where they are exchangeable, however the two measures hang together
    (Westfall and Young 1993, min-p).
    """
    columns = [np.asarray(distances)]
    if len(changes) == len(distances):
        columns.append(np.asarray(_deviations(changes)))
    smallest = np.min([_all_p(column) for column in columns], axis=0)
    return float((smallest <= smallest[0]).mean())


def _all_p(values: np.ndarray) -> np.ndarray:
    """Return each one's rank among all of them as a p: (n,)."""
    return (values[None, :] >= values[:, None]).mean(axis=1)


def _deviations(changes: Sequence[float]) -> list[float]:
    centre = float(np.median(changes))
    return [abs(change - centre) for change in changes]


def time_to_reconverge(
    steps: Sequence[int], distances: Sequence[float], nulls: list[list[float]], start: int
) -> int | None:
    """Count the steps from `start` until the distance stays among the null forks'.

    That is at or below their 95th percentile; None: not within the window.
    """
    if not nulls or not steps:
        return None
    limit = np.percentile(np.array(nulls), 95, axis=0)
    below = np.array(distances) <= limit
    if not below[-1]:
        return None
    outside = np.flatnonzero(~below)
    return steps[int(outside[-1]) + 1 if len(outside) else 0] - start
