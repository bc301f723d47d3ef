"""How well an indicator ranks tokens by what they were exposed to: Spearman, ROC-AUC, average
precision, with intervals.

Ties count as ties everywhere: a rank is the mean over equal values, and equal values are passed all
at once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

THRESHOLDS = (0, 1, 10, 100)  # exposures up to which a token counts as under-trained
RESAMPLES = 200
LEVEL = 0.95  # of an interval


@dataclass(frozen=True)
class Score:
    """Low values of an indicator as a sign of at most `exposure` exposures; intervals over
    resampled tokens.
    """

    exposure: int
    tokens: int  # with at most so many exposures
    auc: float
    auc_interval: tuple[float, float]
    average_precision: float
    average_precision_interval: tuple[float, float]

    def document(self) -> dict[str, Any]:
        """Return the score as plain JSON."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def ranks(x: np.ndarray) -> np.ndarray:
    """From 1, the mean over equal values: (n,) float64."""
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    """Correlation of the ranks; None where one of the two does not vary.

    As scipy.stats.spearmanr to 2e-16 on 2,000 series; scipy would be a dependency for this alone.
    """
    a, b = ranks(x), ranks(y)
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size > 0 else None


def scores(
    indicator: np.ndarray, exposure: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> list[Score]:
    """At each of THRESHOLDS that parts the tokens in two; indicator (n,), low is suspect, exposure
    (n,).
    """
    order = np.argsort(indicator, kind="stable")
    value, met = indicator[order], exposure[order]
    group = (
        np.cumsum(np.concatenate(([0], value[1:] != value[:-1])))
        if len(value)
        else np.zeros(0, np.int64)
    )
    at = [t for t in THRESHOLDS if 0 < (met <= t).sum() < len(met)]
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples if at else 0):
        weight = np.bincount(rng.integers(0, len(met), len(met)), minlength=len(met)).astype(
            np.float64
        )
        drawn.append([_auc_ap(group, weight * (met <= t), weight * (met > t)) for t in at])
    scored = []
    for i, t in enumerate(at):
        auc, precision = _auc_ap(group, (met <= t).astype(float), (met > t).astype(float))
        low_high = (
            _intervals(np.array([resampled[i] for resampled in drawn]))
            if drawn
            else [(auc, auc), (precision, precision)]
        )
        scored.append(Score(t, int((met <= t).sum()), auc, low_high[0], precision, low_high[1]))
    return scored


def _auc_ap(group: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> tuple[float, float]:
    """Of weights in the order of suspicion, groups of equal values: the share of pairs in order,
    and Σ Δrecall·precision.

    NaN where a resample drew only one kind.
    """
    alone = not len(group) or group[-1] == len(group) - 1  # no two values are equal
    P_G, N_G = (
        (positive, negative)
        if alone
        else (np.bincount(group, positive), np.bincount(group, negative))
    )
    P, N = P_G.sum(), N_G.sum()
    if not P or not N:
        return np.nan, np.nan
    after = N - np.cumsum(N_G)
    passed = np.cumsum(P_G)
    with np.errstate(invalid="ignore"):  # groups of weight 0 before any other
        precision = np.where(P_G > 0, passed / (passed + np.cumsum(N_G)), 0.0)
    return float(P_G @ (after + N_G / 2) / (P * N)), float(P_G @ precision / P)


def _intervals(drawn: np.ndarray) -> list[tuple[float, float]]:
    edges = np.nanpercentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=0)
    return [(float(low), float(high)) for low, high in edges.T]
