"""The first step at which something went wrong, over everything that was recorded.

    bad = first_bad_step(steps, names, values)      # values (S, N): one column per series

Each series (a column of a table, at one place) is judged by its own latest values, in both
directions; a step is bad where many of them are far out together, or a few are out of all
proportion and stay so. docs/formulas.md, "Spikes".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forensics.detect.band import LATEST
from forensics.detect.windows import MAD_TO_SIGMA, Bools, Floats, medians_before

WINDOW = 128  # values before a step that its series is judged by
MINIMUM = 64  # of them
FAR = 6.0  # scales off its level from which a series is far out
SHARE = 0.04  # of the judged series that must be far out together; healthy runs came to 0.028
FEWEST = 3  # series that make a bad step at least
EXTREME = 30.0  # scales off, here and at the next step, from which fewer series are enough:
EXTREMES = 8  # of them, and EXTREME_SHARE of the judged ones; healthy runs came to 6 of 330
EXTREME_SHARE = 0.01
LEAST = 1e-12  # what a positive series counts as where it is 0 or below
FLOOR = 1e-6  # share of the level: a scale below it is rounding, and the series is constant


@dataclass(frozen=True)
class Moved:
    """A series that is far out at the bad step."""

    name: str
    value: float
    level: float  # median of its latest values
    scales: float  # off the level, signed


@dataclass(frozen=True)
class BadStep:
    """The first bad step, and what moved there, the farthest first."""

    step: int
    out: int  # series far out
    judged: int  # series
    moved: tuple[Moved, ...]


def scales_off(values: Floats) -> Floats:
    """Return how many scales each value is off its level, (S, N); NaN where it cannot be judged.

    The level is the median of the latest 9, the scale 1.4826·MAD of what the last ≤ 128 values were
    off theirs; both of the logarithm where a series is positive. A series that has been constant is
    not judged. A value that is not finite after finite ones is ∞ off.
    """
    return np.stack([_scales_off(column) for column in values.T], 1)


def _scales_off(x: Floats) -> Floats:
    off = np.full(len(x), np.nan)
    place = np.flatnonzero(np.isfinite(x))
    values = x[place]
    if len(values) > MINIMUM + LATEST:
        if (values[: MINIMUM + LATEST] > 0).all():
            values = np.log(np.maximum(values, LEAST))
        levels = medians_before(values, np.ones(len(values), bool), LATEST).median
        residual = values - levels
        past = medians_before(residual, np.arange(len(values)) >= LATEST, WINDOW)
        scale = MAD_TO_SIGMA * past.mad
        judged = (past.counted >= MINIMUM) & (scale > FLOOR * np.abs(levels)) & (scale > 0)
        off[place[judged]] = (residual[judged] - past.median[judged]) / scale[judged]
    before = np.concatenate([[False], np.isfinite(x)[:-1]])
    off[~np.isfinite(x) & before & (np.arange(len(x)) > MINIMUM)] = np.inf
    return off


def first_bad_step(
    steps: Sequence[int], names: Sequence[str], values: Floats, top: int = 12
) -> BadStep | None:
    """Find the first bad step of series (S, N), NaN where nothing was recorded; None where there is
    none.
    """
    if not len(values) or not len(names):
        return None
    off = scales_off(values)
    size = np.abs(off)
    bad = _bad(size)
    if not bad.any():
        return None
    at = int(np.argmax(bad))
    far = np.flatnonzero(size[at] >= FAR)
    order = far[np.argsort(-size[at][far], kind="stable")]
    judged = int(np.isfinite(off[at]).sum() + np.isinf(off[at]).sum())
    moved = tuple(
        Moved(names[n], float(values[at, n]), _level(values[:at, n]), float(off[at, n]))
        for n in order[:top]
    )
    return BadStep(int(steps[at]), len(far), judged, moved)


def _bad(size: Floats) -> Bools:
    """Whether each step is bad, from the scales (S, N) that its series are off."""
    judged = np.maximum((~np.isnan(size)).sum(1), 1)
    with np.errstate(invalid="ignore"):
        out = (size >= FAR).sum(1)
        extreme = size >= EXTREME
    together = (out >= FEWEST) & (out >= SHARE * judged)
    after = np.vstack([extreme[1:], extreme[-1:]])
    lasting = (extreme & after).sum(1)
    return together | (lasting >= np.maximum(EXTREMES, EXTREME_SHARE * judged))


def _level(past: Floats) -> float:
    latest = past[np.isfinite(past)][-LATEST:]
    return float(np.median(latest)) if len(latest) else float("nan")
