"""Spikes: where a metric leaves its band, and whether the model was hurt.

One fold, live and after the fact:

    detector = RobustDetector(restarts=restarts_of(recipe))
    spike = detector.update(step, loss)  # `detector.alarm` tells at once, the Spike comes when
                                         # its kind is known
    robust(losses) == [every Spike of the fold]

docs/formulas.md, "Spikes".
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from forensics.detect.band import LATEST, Band, RunningBand
from forensics.detect.windows import Bools, Series, moments_before, series
from forensics.errors import ForensicsError

if TYPE_CHECKING:
    from forensics.config import Recipe

BAND = 3.0  # scales around the centre within which a value is back to normal
RECOVERED = 5  # values in a row inside the band that make a recovery
FAST = 10  # steps after the peak within which a recovery is fast
MINIMUM = 64  # values before a step from which on it is judged
FEWEST = 8  # residuals that a scale is taken of
LOCKED = 64  # outliers in a row after which they are the new normal, and the window starts again


Kind = Literal["batch", "fast", "slow"]


@dataclass(frozen=True)
class Spike:
    """One episode. Baseline and σ are those of the band at the onset."""

    step: int  # the peak: the largest outlier before recovery
    onset: int  # the first outlying step
    metric: str
    value: float  # at the peak
    baseline: float | None  # centre of the band; None when a NaN came before any value
    sigma: float  # (value − baseline) / the band's scale; inf where the value is not finite
    kind: Kind
    recovered_at: (
        int | None
    )  # first of five steps back in the band (batch: the one step); None: not seen to recover


@dataclass
class _Episode:
    onset: int
    baseline: float | None
    scale: float
    low: float
    high: float
    peak: int
    value: float
    size: float  # of the peak; inf where it is not finite
    first: bool = True  # the next value is the one right after the onset
    inside: int = 0  # values in a row back in the band
    since: int | None = None  # where that row began


class RobustDetector:
    """Judges values as they come: an outlier is more than k scales above the centre of the band of
    the last `window` values, once there are `minimum` of them.

    NaN and inf are always outliers. Outliers do not enter the band; it restarts at `restarts` and
    after 64 outliers in a row. State is a fold over the values given: a resumed run gets its
    detector back by giving it the recorded ones. Errors: usage.
    """

    def __init__(
        self,
        *,
        metric: str = "loss",
        restarts: Sequence[int] = (),
        window: int = 128,
        minimum: int = MINIMUM,
        k: float = 6.0,
        recover_within: int = 100,
    ) -> None:
        if not LATEST < minimum <= window:
            raise ForensicsError(
                "usage",
                f"wanted {LATEST + 1} ≤ minimum ≤ window, found minimum {minimum} and window"
                f" {window}",
                "the defaults are 64 and 128",
            )
        if not k > 0 or recover_within < 1:
            raise ForensicsError(
                "usage",
                f"wanted k above 0 and recover_within of at least 1, found {k} and"
                f" {recover_within}",
                "the defaults are 6 and 100",
            )
        self.metric, self.minimum, self.k, self.recover_within = metric, minimum, k, recover_within
        self.alarm = False  # whether the value given last was an outlier
        self._restarts = deque(sorted(restarts))
        self._band = RunningBand(window)
        self._row = 0  # outliers in a row
        self._open: _Episode | None = None
        self._last: int | None = None

    @property
    def onset(self) -> int | None:
        """The first step of the episode that is open now; equal to the step just given when this
        alarm is a new one.
        """
        return self._open.onset if self._open else None

    @property
    def expected(self) -> Band | None:
        """The band of the next value, also from fewer values than it takes to judge; None where
        even a scale would be a guess.
        """
        return self._band.expect() if len(self._band) >= LATEST + FEWEST else None

    @property
    def band(self) -> Band | None:
        """The band that the next value is judged by; None while there are too few values."""
        return self._band.expect() if len(self._band) >= self.minimum else None

    def update(self, step: int, value: float, computed: bool = True) -> Spike | None:
        """Take the value of `step`; the Spike whose kind this value settles, if any. Steps must
        increase.
        """
        assert self._last is None or step > self._last, f"step {step} came after step {self._last}"
        self._last = step
        settled = None
        if self._restarts and step >= self._restarts[0]:
            while self._restarts and step >= self._restarts[0]:
                self._restarts.popleft()
            # Another mix of data has another band: nothing after the boundary can say that this
            # episode recovered.
            settled = self.finish()
            self._band.clear()
        self.alarm = computed and self._outlier(value)
        if not computed:
            return settled
        after_outlier, self._row = self._row > 0, self._row + 1 if self.alarm else 0
        if self._open:
            settled = self._follow(self._open, step, value)
        elif self.alarm and not after_outlier:
            # After an outlier there is no first outlier: a run that stays NaN is one spike, not one
            # every 100 steps.
            self._open = self._begin(step, value)
        if not self.alarm:
            self._band.push(value)
        elif self._row == LOCKED:
            self._band.clear()
        return settled

    def finish(self) -> Spike | None:
        """End the open episode, if any, as slow and not seen to recover: no more values come."""
        return self._close("slow", None) if self._open else None

    def _outlier(self, value: float) -> bool:
        if not math.isfinite(value):
            return True
        band = self.band
        return band is not None and value - band.centre > self.k * band.scale

    def _begin(self, step: int, value: float) -> _Episode:
        expected = self._band.expect()
        baseline = expected.centre if expected else None
        # with too few values for a band every finite value is back in it
        scale = self.band.scale if self.band else math.inf
        centre = baseline or 0.0
        return _Episode(
            step,
            baseline,
            scale,
            centre - BAND * scale,
            centre + BAND * scale,
            step,
            value,
            _size(value),
        )

    def _follow(self, episode: _Episode, step: int, value: float) -> Spike | None:
        # Only an outlier can be the peak: once the window has moved on to a new level, its noise is
        # no higher peak.
        if self.alarm and _size(value) > episode.size:
            episode.peak, episode.value, episode.size = step, value, _size(value)
        right_after, episode.first = episode.first, False
        if not self.alarm and episode.low <= value <= episode.high:
            if right_after:
                return self._close("batch", step)
            episode.since = step if episode.since is None else episode.since
            episode.inside += 1
        else:
            episode.since, episode.inside = None, 0
        earliest = step + 1 if episode.since is None else episode.since
        if earliest > episode.peak + self.recover_within:
            return self._close("slow", None)
        if episode.inside == RECOVERED:
            return self._close("fast" if earliest <= episode.peak + FAST else "slow", earliest)
        return None

    def _close(self, kind: Kind, recovered_at: int | None) -> Spike:
        e, self._open = self._open, None
        assert e is not None
        sigma = (
            math.inf
            if e.baseline is None or math.isinf(e.size)
            else (e.value - e.baseline) / e.scale
        )
        return Spike(e.peak, e.onset, self.metric, e.value, e.baseline, sigma, kind, recovered_at)


def _size(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def robust(
    values: Series,
    *,
    metric: str = "loss",
    steps: Sequence[int] | np.ndarray | None = None,
    computed: Sequence[bool] | Bools | None = None,
    restarts: Sequence[int] = (),
    window: int = 128,
    minimum: int = MINIMUM,
    k: float = 6.0,
    recover_within: int = 100,
) -> list[Spike]:
    """Every spike of a recorded column (N,), in order: the fold of `RobustDetector`, so live and
    afterwards agree.

    `steps` are the values' steps, 0 … N−1 where left out; steps where `computed` is False, or the
    value None, are passed over. Errors: usage.
    """
    detector = RobustDetector(
        metric=metric,
        restarts=restarts,
        window=window,
        minimum=minimum,
        k=k,
        recover_within=recover_within,
    )
    settled = [detector.update(*row) for row in _rows(values, steps, computed)]
    return [spike for spike in [*settled, detector.finish()] if spike is not None]


def outliers(
    values: Series,
    *,
    steps: Sequence[int] | np.ndarray | None = None,
    computed: Sequence[bool] | Bools | None = None,
    restarts: Sequence[int] = (),
    window: int = 128,
    minimum: int = MINIMUM,
    k: float = 6.0,
) -> Bools:
    """Fold the detector and return its `alarm` at every step, (N,). Errors: usage."""
    detector = RobustDetector(restarts=restarts, window=window, minimum=minimum, k=k)
    alarms = []
    for row in _rows(values, steps, computed):
        detector.update(*row)
        alarms.append(detector.alarm)
    return np.array(alarms, bool)


def _rows(
    values: Series,
    steps: Sequence[int] | np.ndarray | None,
    computed: Sequence[bool] | Bools | None,
) -> list[tuple[int, float, bool]]:
    column, was_computed = series(values, computed)
    at = range(len(column)) if steps is None else [int(s) for s in steps]
    assert len(at) == len(column), f"{len(column)} values but {len(at)} steps"
    return list(zip(at, column.tolist(), was_computed.tolist()))


def band_at(
    step: int, values: Series, *, steps: Sequence[int], restarts: Sequence[int] = ()
) -> Band | None:
    """Return the band that the metric is expected in at `step`, from the values before it; None
    where they are too few for a scale.

    It is the band that `RobustDetector` judges by, also where fewer values than its minimum stand.
    """
    detector = RobustDetector(restarts=restarts)
    for row in _rows(values, steps, None):
        if row[0] < step:
            detector.update(*row)
    detector.update(step, 0.0, computed=False)  # a window that starts again here is empty
    return detector.expected


def restarts_of(recipe: Recipe) -> list[int]:
    """List the steps of a run at which the detector's window restarts: `phase_restarts` of its
    phases, the last of which ends with the run.
    """
    phases = [(phase.until, phase.mix) for phase in recipe.data.phases]
    return phase_restarts(phases, end=recipe.train.steps)


def phase_restarts(
    phases: Sequence[tuple[int | None, Mapping[str, float]]],
    minimum: int = MINIMUM,
    end: int | None = None,
) -> list[int]:
    """List the steps at which the window restarts, from phases (until, mix of sources).

    `end` closes the last phase.

    A new mix has a new level of loss, so the old window says nothing about it. But a phase shorter
    than `minimum` cannot fill a window of its own: restarting there would leave all of it unjudged,
    and a planted phase of 4 steps could never be seen. It is judged against the window before it,
    and where the same mix goes on afterwards nothing restarts at all.
    """
    start = 0
    changes: list[tuple[int, dict[str, float]]] = []
    for until, mix in phases:
        stop = end if until is None else until
        if stop is None or stop - start >= minimum:
            total = sum(mix.values())
            shares = {name: share / total for name, share in mix.items() if share > 0}
            if not changes or not _same(changes[-1][1], shares):
                changes.append((start, shares))
        start = start if stop is None else stop
    return [first for first, _ in changes[1:]]


def _same(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    return a.keys() == b.keys() and all(math.isclose(a[name], b[name], rel_tol=1e-9) for name in a)


def spike_score(
    values: Series,
    *,
    sigmas: float = 7.0,
    window: int = 1000,
    minimum: int = 128,
    computed: Sequence[bool] | Bools | None = None,
) -> tuple[float, int]:
    """OLMo 2's spike score (arXiv 2501.00656): (percentage of judged values that are spikes, how
    many were judged).

    A value is a spike when it is at least `sigmas` standard deviations, up or down, from the mean
    of the last ≤ `window` values before it; it is judged when there are `minimum` of them. NaN and
    inf are always judged, always spikes, and never in a window; finite spikes are. (0.0, 0) when
    nothing could be judged.
    """
    column, was_computed = series(values, computed)
    finite = np.isfinite(column) & was_computed
    count, mean, std = moments_before(column, finite, window)
    judged = finite & (count >= minimum)
    floor = np.maximum(
        1e-6 * np.abs(mean[judged]), 1e-12
    )  # smallest_scale, so that a constant series scores 0
    far = np.abs(column[judged] - mean[judged]) >= sigmas * np.maximum(std[judged], floor)
    broken = int(np.sum(was_computed & ~np.isfinite(column)))
    n = int(judged.sum()) + broken
    return (100.0 * (int(far.sum()) + broken) / n if n else 0.0), n
