"""The band in which a metric's next value is expected: the level that it has come to, and the scale
of what the values before it were off theirs.

    band = RunningBand(window=128)
    for value in losses:
        expected = band.expect()    # Band(centre, scale) of the values so far
        band.push(value)

A falling loss must not widen the band: its values lie far apart, but each lies near the level of
its own time. docs/formulas.md, "Spikes".
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from typing import NamedTuple

from forensics.detect.windows import MAD_TO_SIGMA, smallest_scale

LATEST = 9  # values whose median is the level that a falling metric has come to
LIFT = 0.25  # scales by which the band's centre may lie above the level


class Band(NamedTuple):
    """What is expected of the next value, in the metric's unit."""

    centre: float
    scale: float  # estimates σ of the values about their levels


class Window:
    """The last values in order of time and in order of size."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.recent: deque[float] = deque()
        self.ordered: list[float] = []

    def __len__(self) -> int:
        return len(self.ordered)

    def push(self, value: float) -> None:
        """Take a value; the oldest of more than `size` goes."""
        self.recent.append(value)
        insort(self.ordered, value)
        if len(self.recent) > self.size:
            del self.ordered[bisect_left(self.ordered, self.recent.popleft())]

    def clear(self) -> None:
        """Forget every value."""
        self.recent.clear()
        self.ordered.clear()

    def median(self) -> float:
        """Return the median of the values; there must be one."""
        n = len(self.ordered)
        upper = self.ordered[n // 2]
        return upper if n % 2 else (self.ordered[n // 2 - 1] + upper) / 2

    def mad(self, centre: float) -> float:
        """Median distance from `centre`, in O(log n): the values nearest to it are neighbours in
        order of size.
        """
        s, n = self.ordered, len(self.ordered)
        near = n // 2 + 1
        first, last = 0, n - near
        while first < last:
            middle = (first + last) // 2
            if centre - s[middle] > s[middle + near] - centre:
                first = middle + 1
            else:
                last = middle
        below, above = centre - s[first], s[first + near - 1] - centre
        farthest = max(below, above)
        if n % 2:
            return farthest
        second = (
            max(centre - s[first + 1], above)
            if below >= above
            else max(below, s[first + near - 2] - centre)
        )
        return (second + farthest) / 2


class RunningBand:
    """The band of the next value, from the values pushed so far: the same numbers for the same
    values, whenever they came.
    """

    def __init__(self, window: int) -> None:
        self._values = Window(window)
        self._latest = Window(min(LATEST, window))
        self._residuals = Window(window)  # each value − the level before it

    def __len__(self) -> int:
        return len(self._values)

    def push(self, value: float) -> None:
        """Take a value; the first LATEST have no level before them, and so no residual."""
        if len(self._values) >= LATEST:
            self._residuals.push(value - self._level())
        self._values.push(value)
        self._latest.push(value)

    def clear(self) -> None:
        """Forget every value."""
        for window in (self._values, self._latest, self._residuals):
            window.clear()

    def expect(self) -> Band | None:
        """Return the band of the next value; None before the first.

        The centre is the level plus the median residual: what a falling loss runs ahead of its
        level. Upwards that is at most LIFT scales: enough for what the smaller of two medians lies
        too low, too little for a slow rise to hide in.
        """
        if not len(self._values):
            return None
        level = self._level()
        floor = smallest_scale(level)
        if not len(self._residuals):
            return Band(level, floor)
        ahead = self._residuals.median()
        scale = max(MAD_TO_SIGMA * self._residuals.mad(ahead), floor)
        return Band(level + min(ahead, LIFT * scale), scale)

    def _level(self) -> float:
        return min(self._values.median(), self._latest.median())
