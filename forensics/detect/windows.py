"""What came before each step: moments and medians of the last values, with which every rule
compares a value.

A step's own value is never in its window. Values that are not finite, or were not computed, never
enter a window. N steps; the window of a step holds the last ≤ `window` usable values before it,
oldest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Series = Sequence[float | None] | NDArray[np.floating]

MAD_TO_SIGMA = 1.4826  # the MAD of a normal distribution is σ / 1.4826
BLOCK = 16384  # steps worked on at a time, so that rolling sums stay in cache


class Column(NamedTuple):
    """One metric over N steps."""

    values: Floats  # (N,)
    computed: Bools  # (N,)


class MomentsBefore(NamedTuple):
    """What the window before each of N steps holds."""

    counted: NDArray[np.int64]  # values in the window
    mean: Floats
    std: Floats  # n − 1, as torch.std_mean


class MediansBefore(NamedTuple):
    """What the window before each of N steps holds."""

    counted: NDArray[np.int64]  # values in the window
    median: Floats  # NaN where the window is empty
    mad: Floats


def series(values: Series, computed: Sequence[bool] | Bools | None = None) -> Column:
    """Return the values and which steps were computed: all but None, and `computed` where given.

    A NULL that became NaN on its way into numpy looks like a NaN of the run: only `computed` can
    tell them apart.
    """
    if isinstance(values, np.ndarray) and values.dtype != object:
        column, was_computed = values.astype(np.float64), np.ones(len(values), bool)
    else:
        was_computed = np.array([v is not None for v in values], bool)
        column = np.array([np.nan if v is None else v for v in values], np.float64)
    assert column.ndim == 1, f"wanted one value per step, found shape {column.shape}"
    if computed is not None:
        assert len(computed) == len(column), (
            f"{len(column)} values but {len(computed)} marks of what was computed"
        )
        was_computed = was_computed & np.asarray(computed, bool)
    return Column(column, was_computed)


def smallest_scale(centre: float) -> float:
    """Return the floor under σ, in the metric's unit: about ten float32 roundings of the centre.

    Without it a constant series has σ = 0, rounding noise would be a spike, and a jump would be
    infinitely many σ.
    """
    return max(1e-6 * abs(centre), 1e-12)


def moments_before(x: Floats, usable: Bools, window: int) -> MomentsBefore:
    """Compute the moments of the last ≤ `window` usable values before each step.

    Two passes, so a small deviation around a large mean does not cancel; every sum runs from the
    oldest value to the newest, so `SkipWindow`, which adds one by one, gets the same bits.
    """
    usable_values = x[usable]
    count = len(usable_values)
    padded = np.concatenate([np.zeros(window), usable_values])
    size = np.minimum(np.arange(count + 1), window)
    mean, std = np.zeros(count + 1), np.zeros(count + 1)
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # values near the largest float: std becomes inf, no alarm
        for start in range(0, count + 1, BLOCK):
            stop = min(start + BLOCK, count + 1)
            total = np.zeros(stop - start)
            for offset in range(window):
                total += padded[start + offset : stop + offset]
            mean[start:stop] = total / np.maximum(size[start:stop], 1)
            squares = np.zeros(stop - start)
            for offset in range(window):
                deviation = padded[start + offset : stop + offset] - mean[start:stop]
                if start < window - offset:
                    deviation[: window - offset - start] = 0  # before the first value: padding
                squares += deviation * deviation
            std[start:stop] = np.sqrt(squares / np.maximum(size[start:stop] - 1, 1))
    before = _before(usable)
    return MomentsBefore(size[before], mean[before], std[before])


def medians_before(x: Floats, usable: Bools, window: int) -> MediansBefore:
    """Compute median and MAD of the last ≤ `window` usable values before each step."""
    usable_values = x[usable]
    count = len(usable_values)
    size = np.minimum(np.arange(count + 1), window)
    median, mad = np.full(count + 1, np.nan), np.full(count + 1, np.nan)
    for position in range(1, min(window, count + 1)):
        median[position] = np.median(usable_values[:position])
        mad[position] = np.median(np.abs(usable_values[:position] - median[position]))
    if count >= window:
        windows = np.lib.stride_tricks.sliding_window_view(
            usable_values, window
        )  # row r is the window of position r + window
        for start in range(0, len(windows), BLOCK):
            rows = windows[start : start + BLOCK]
            middle = np.median(rows, axis=1)
            at = slice(start + window, start + window + len(rows))
            median[at], mad[at] = middle, np.median(np.abs(rows - middle[:, None]), axis=1)
    before = _before(usable)
    return MediansBefore(size[before], median[before], mad[before])


def _before(usable: Bools) -> NDArray[np.int64]:
    counted = usable.astype(np.int64)
    return np.cumsum(counted) - counted


def robust_z(x: Floats, *, window: int, minimum: int, floor: float) -> Floats:
    """Compute (value − median) / max(1.4826·MAD, floor) of the window before, (N,).

    NaN where it cannot be judged.

    Unlike the spike detector's, this window takes every finite value: a median stands firm until
    half of the window is odd, and so nothing can lock up.
    """
    finite = np.isfinite(x)
    count, median, mad = medians_before(x, finite, window)
    judged = finite & (count >= minimum)
    z = np.full(len(x), np.nan)
    z[judged] = (x[judged] - median[judged]) / np.maximum(MAD_TO_SIGMA * mad[judged], floor)
    return z
