"""What came before each step: moments and medians of the last values, with which every rule
compares a value.

A step's own value is never in its window. Values that are not finite, or were not computed, never
enter a window. N steps; the window of a step holds the last ≤ `window` usable values before it,
oldest first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Series = Sequence[float | None] | NDArray[np.floating]

MAD_TO_SIGMA = 1.4826  # the MAD of a normal distribution is σ / 1.4826
BLOCK = 16384  # steps worked on at a time, so that rolling sums stay in cache


def series(values: Series, computed: Sequence[bool] | Bools | None = None) -> tuple[Floats, Bools]:
    """The column as float64 (N,) and which of its steps were computed: all but None, and `computed`
    where given.

    A NULL that became NaN on its way into numpy looks like a NaN of the run: only `computed` can
    tell them apart.
    """
    if isinstance(values, np.ndarray) and values.dtype != object:
        x, known = values.astype(np.float64), np.ones(len(values), bool)
    else:
        known = np.array([v is not None for v in values], bool)
        x = np.array([np.nan if v is None else v for v in values], np.float64)
    assert x.ndim == 1, f"wanted one value per step, found shape {x.shape}"
    if computed is not None:
        assert len(computed) == len(x), (
            f"{len(x)} values but {len(computed)} marks of what was computed"
        )
        known = known & np.asarray(computed, bool)
    return x, known


def smallest_scale(centre: float) -> float:
    """The floor under σ, in the metric's unit: about ten float32 roundings of the centre.

    Without it a constant series has σ = 0, rounding noise would be a spike, and a jump would be
    infinitely many σ.
    """
    return max(1e-6 * abs(centre), 1e-12)


def moments_before(
    x: Floats, usable: Bools, window: int
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Count, mean and standard deviation (n − 1, as torch.std_mean) of the last ≤ `window` usable
    values, each (N,).

    Two passes, so a small deviation around a large mean does not cancel; every sum runs from the
    oldest value to the newest, so `SkipWindow`, which adds one by one, gets the same bits.
    """
    kept = x[usable]
    n = len(kept)
    padded = np.concatenate([np.zeros(window), kept])
    size = np.minimum(np.arange(n + 1), window)
    mean, std = np.zeros(n + 1), np.zeros(n + 1)
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # values near the largest float: std becomes inf, no alarm
        for a in range(0, n + 1, BLOCK):
            b = min(a + BLOCK, n + 1)
            total = np.zeros(b - a)
            for j in range(window):
                total += padded[a + j : b + j]
            mean[a:b] = total / np.maximum(size[a:b], 1)
            squares = np.zeros(b - a)
            for j in range(window):
                deviation = padded[a + j : b + j] - mean[a:b]
                if a < window - j:
                    deviation[: window - j - a] = 0  # before the first value: padding
                squares += deviation * deviation
            std[a:b] = np.sqrt(squares / np.maximum(size[a:b] - 1, 1))
    before = _before(usable)
    return size[before], mean[before], std[before]


def medians_before(
    x: Floats, usable: Bools, window: int
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Count, median and MAD of the last ≤ `window` usable values before each step, each (N,); NaN
    where none.
    """
    kept = x[usable]
    n = len(kept)
    size = np.minimum(np.arange(n + 1), window)
    median, mad = np.full(n + 1, np.nan), np.full(n + 1, np.nan)
    for p in range(1, min(window, n + 1)):
        median[p] = np.median(kept[:p])
        mad[p] = np.median(np.abs(kept[:p] - median[p]))
    if n >= window:
        windows = np.lib.stride_tricks.sliding_window_view(
            kept, window
        )  # row r is the window of position r + window
        for a in range(0, len(windows), BLOCK):
            rows = windows[a : a + BLOCK]
            middle = np.median(rows, axis=1)
            at = slice(a + window, a + window + len(rows))
            median[at], mad[at] = middle, np.median(np.abs(rows - middle[:, None]), axis=1)
    before = _before(usable)
    return size[before], median[before], mad[before]


def _before(usable: Bools) -> NDArray[np.int64]:
    counted = usable.astype(np.int64)
    return np.cumsum(counted) - counted


def robust_z(x: Floats, *, window: int, minimum: int, floor: float) -> Floats:
    """(value − median) / max(1.4826·MAD, floor) against the window before, (N,); NaN where it
    cannot be judged.

    Unlike the spike detector's, this window takes every finite value: a median stands firm until
    half of the window is odd, and so nothing can lock up.
    """
    finite = np.isfinite(x)
    count, median, mad = medians_before(x, finite, window)
    judged = finite & (count >= minimum)
    z = np.full(len(x), np.nan)
    z[judged] = (x[judged] - median[judged]) / np.maximum(MAD_TO_SIGMA * mad[judged], floor)
    return z
