"""Is it getting worse? Spikes per 1000 steps with their trend, the creep of the gradient norm, and
when it arrives.

The OLMo leads describe fast spikes that come more often the longer one trains, and a gradient norm
that creeps to about 0.4 before the blow-up. docs/formulas.md, "Spikes", trend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forensics.detect.windows import Floats
from forensics.errors import ForensicsError

POINTS = 2000  # Theil–Sen takes every pair of points: 2,000 make 2 million slopes
FEWEST_POINTS = 10  # for a slope
FEWEST_SPIKES = (
    4  # for a trend: below it the normal approximation of Laplace's test is no approximation
)
Z95 = 1.959963984540054  # two-sided 95% of the normal distribution


@dataclass(frozen=True)
class SpikeRate:
    """How often a run spikes, and whether that changes."""

    count: int
    steps: int
    per_1000: float
    thirds_per_1000: tuple[float, ...]  # of the first, second and last third of the steps
    direction: Literal["rising", "falling", "none", "too few"]
    z: float | None  # Laplace's score; None with too few spikes
    p: float | None  # two-sided


@dataclass(frozen=True)
class Line:
    """A robust line through points, with the 95% interval of its slope."""

    slope: float
    low: float
    high: float
    intercept: float  # median of y − slope·t
    centre: float  # median of t
    points: int


@dataclass(frozen=True)
class NormTrend:
    """The line through ln grad_norm over the steps; None where there are too few points."""

    slope: float | None  # per step
    low: float | None
    high: float | None
    intercept: float | None
    centre: float | None
    points: int
    dropped: int  # norms that are not finite or not positive
    doubling_steps: float | None  # None where it does not grow
    first: int | None  # steps of the points
    last: int | None
    change: float | None  # share by which the line changes from first to last: 0.1 is + 10 %
    change_low: float | None
    change_high: float | None


@dataclass(frozen=True)
class Forecast:
    """The step at which the line reaches a level."""

    level: float
    step: int | None
    low: int | None  # of the steeper slope
    high: int | None
    reason: Literal["too few points", "passed", "flat", "falling"] | None  # why there is no step


@dataclass(frozen=True)
class Trend:
    """Whether it gets worse: spikes, the gradient norm, and when the norm arrives at a level."""

    spikes: SpikeRate
    grad_norm: NormTrend
    forecast: Forecast


def trend(
    steps: Sequence[int] | NDArray[np.integer],
    grad_norm: ArrayLike,
    spike_steps: Sequence[int],
    level: float = 0.4,
) -> Trend:
    """Trend of spikes and of log gradient norm over `steps` (N,), and the forecast of `level`.

    A whole run includes warm-up, during which the norm falls: give the steps after it to ask about
    the creep. What is told of the norm holds of those steps and is not drawn out beyond them, but
    for the forecast. Errors: usage.
    """
    at = np.asarray(steps, np.int64)
    norm = np.asarray(grad_norm, np.float64)
    if not (level > 0 and math.isfinite(level)):
        raise ForensicsError(
            "usage", f"wanted a gradient norm above 0 as the level, found {level}", "e.g. 0.4"
        )
    assert at.shape == norm.shape and at.ndim == 1, (
        f"{at.shape} steps but {norm.shape} gradient norms"
    )
    usable = np.isfinite(norm) & (norm > 0)
    step_of_point, log_norm = at[usable].astype(np.float64), np.log(norm[usable])
    line = theil_sen(step_of_point, log_norm)
    last = float(step_of_point[-1]) if len(step_of_point) else None
    return Trend(
        spike_trend(at, spike_steps),
        _norm_trend(line, step_of_point, len(at) - len(step_of_point)),
        forecast(line, last, level),
    )


def _norm_trend(line: Line | None, steps: Floats, dropped: int) -> NormTrend:
    if line is None:
        nothing = (None,) * 5
        return NormTrend(*nothing, len(steps), dropped, None, None, None, None, None, None)
    first, last = int(steps[0]), int(steps[-1])
    change, low, high = (
        math.expm1(slope * (last - first)) for slope in (line.slope, line.low, line.high)
    )
    return NormTrend(
        line.slope,
        line.low,
        line.high,
        line.intercept,
        line.centre,
        line.points,
        dropped,
        math.log(2) / line.slope if line.slope > 0 else None,
        first,
        last,
        change,
        low,
        high,
    )


def spike_trend(steps: Sequence[int] | NDArray[np.int64], spike_steps: Sequence[int]) -> SpikeRate:
    """Spikes per 1000 of `steps` (those outside them do not count), by thirds, and Laplace's test
    of a constant rate.

    Under a constant rate the n spikes' positions are uniform over the N steps, so their mean is
    normal with mean (N−1)/2 and variance (N²−1)/12n; `z` is that score, `p` two-sided, `direction`
    rising or falling when p < 0.05, else none, "too few" under 4 spikes. Spikes that set each other
    off make p too small.
    """
    at = np.asarray(steps, np.int64)
    spikes = np.asarray(sorted(spike_steps), np.int64)
    where = (
        np.searchsorted(at, spikes[(spikes >= at[0]) & (spikes <= at[-1])])
        if len(at)
        else spikes[:0]
    )
    count, total = len(where), len(at)
    edges = [0, total // 3, 2 * total // 3, total]
    thirds = tuple(
        1000.0 * int(np.sum((where >= low) & (where < high))) / (high - low) if high > low else 0.0
        for low, high in pairwise(edges)
    )
    score = p_value = None
    direction: Literal["rising", "falling", "none", "too few"] = "too few"
    if count >= FEWEST_SPIKES and total > 1:
        score = float((where.mean() - (total - 1) / 2) / math.sqrt((total**2 - 1) / (12 * count)))
        p_value = math.erfc(abs(score) / math.sqrt(2))
        direction = "none" if p_value >= 0.05 else "rising" if score > 0 else "falling"
    per_1000 = 1000.0 * count / total if total else 0.0
    return SpikeRate(count, total, per_1000, thirds, direction, score, p_value)


def theil_sen(t: Floats, y: Floats) -> Line | None:
    """Median slope of all pairs of points with its 95% interval (Sen 1968); None with fewer than 10
    points.

    More than 2,000 points are thinned evenly to 2,000. The interval takes the order statistics (M ±
    C)/2 of the M slopes, C = 1.96·√Var(S), Var(S) that of Kendall's S corrected for ties. It
    assumes independent residuals: where neighbours are alike it is too narrow, which thinning
    relieves. `intercept` is the median of y − slope·t, `centre` the median of t.
    """
    if len(t) < FEWEST_POINTS:
        return None
    if len(t) > POINTS:
        chosen = np.linspace(0, len(t) - 1, POINTS).round().astype(np.int64)
        t, y = t[chosen], y[chosen]
    points = len(t)
    slopes = np.sort(
        np.concatenate([(y[lag:] - y[:-lag]) / (t[lag:] - t[:-lag]) for lag in range(1, points)])
    )
    pairs = len(slopes)
    ties = np.unique(y, return_counts=True)[1].astype(np.float64)
    variance = (
        points * (points - 1) * (2 * points + 5) - float(np.sum(ties * (ties - 1) * (2 * ties + 5)))
    ) / 18
    reach = Z95 * math.sqrt(max(variance, 0.0))
    low = max(
        math.floor((pairs - reach) / 2) - 1, 0
    )  # outwards on both sides, so the interval is never narrower than 95%
    high = min(math.ceil((pairs + reach) / 2), pairs - 1)
    slope = float(
        slopes[pairs // 2] if pairs % 2 else (slopes[pairs // 2 - 1] + slopes[pairs // 2]) / 2
    )
    intercept, centre = float(np.median(y - slope * t)), float(np.median(t))
    return Line(slope, float(slopes[low]), float(slopes[high]), intercept, centre, points)


def forecast(line: Line | None, last: float | None, level: float) -> Forecast:
    """Forecast the step at which exp(the fitted line) reaches `level`, with its interval.

    `step` is None where there is nothing to forecast, and `reason` says why: too few points; passed
    (the line is already at the level); flat (the slope's interval holds 0); falling. `low` is the
    earlier step, of the steeper slope; all three lines pass through the centre of the points, none
    arrives before the step after the last.
    """
    if line is None or last is None:
        return Forecast(level, None, None, None, "too few points")
    if line.intercept + line.slope * last >= math.log(level):
        return Forecast(level, None, None, None, "passed")
    if line.low <= 0 <= line.high:
        return Forecast(level, None, None, None, "flat")
    if line.high < 0:
        return Forecast(level, None, None, None, "falling")
    rise = math.log(level) - (line.intercept + line.slope * line.centre)
    step, low, high = (
        max(math.ceil(line.centre + rise / slope), int(last) + 1)
        for slope in (line.slope, line.high, line.low)
    )
    return Forecast(level, step, low, high, None)
