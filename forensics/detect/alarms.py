"""Rules that say "something is wrong here", one boolean per step, and the score that compares them
with the spikes.

Every rule at step s uses values up to s and none after it. S steps; a second axis N is tensors,
heads or layers, and the alarm of a step is then that of any of them. A NaN in the second kind of
array (a NULL, an unrecorded row) is no alarm there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forensics.detect.spikes import Spike
from forensics.detect.windows import (
    Bools,
    Floats,
    Series,
    medians_before,
    moments_before,
    robust_z,
    series,
)
from forensics.step.skip_step import MINIMUM, SIGMAS, WINDOW


def monitor(
    values: Series,
    *,
    computed: Sequence[bool] | Bools | None = None,
    sigmas: float = SIGMAS,
    window: int = WINDOW,
    minimum: int = MINIMUM,
) -> Bools:
    """OLMo-core's stability monitor, (S,): more than 6σ above the mean of the last ≤ 128 values, at
    least 64.

    Finite spikes enter the window, as there; NaN and inf are alarms and do not enter, which the
    original misses.
    """
    column, was_computed = series(values, computed)
    finite = was_computed & np.isfinite(column)
    count, mean, std = moments_before(column, finite, window)
    with np.errstate(invalid="ignore"):
        above = column - mean > sigmas * std
    return (finite & (count >= minimum) & above) | (was_computed & ~finite)


def skip_step(
    loss: Series, grad_norm: Series, *, computed: Sequence[bool] | Bools | None = None
) -> Bools:
    """Find what SkipStep would have skipped, (S,): `SkipWindow.judge` at every step, to the bit."""
    return monitor(loss, computed=computed) | monitor(grad_norm, computed=computed)


def rms_t(rms: ArrayLike, *, threshold: float = 2.3) -> Bools:
    """StableAdamW's RMS_t above 2.3 in any tensor, (S,) or (S, N) → (S,) (arXiv 2304.13013: spikes
    1–8 steps later).
    """
    x_SN = _columns(rms)
    return np.any(x_SN > threshold, axis=1)


def gss_share(
    share: ArrayLike,
    *,
    z: float = 6.0,
    window: int = WINDOW,
    minimum: int = MINIMUM,
    floor: float = 1e-4,
) -> Bools:
    """Share of gradient elements that spike, above its own history in any tensor, (S,) or (S, N) →
    (S,).

    On-line form of SPAM (arXiv 2501.06842). `floor` is the least σ in units of share: a healthy
    tensor's share is exactly 0 for long, and without it one element would be an alarm.
    """
    return np.any(_robust_z(_columns(share), window, minimum, floor) > z, axis=1)


def entropy_collapse(
    entropy_norm: ArrayLike,
    *,
    level: float = 0.05,
    z: float = 6.0,
    window: int = WINDOW,
    minimum: int = MINIMUM,
    floor: float = 1e-3,
) -> Bools:
    """Attention entropy (share of uniform, 0 … 1) below `level`, or z below −6 of its history, (S,)
    or (S, N) → (S,).

    Collapse: arXiv 2303.06296. `floor` is the least σ in units of that share.
    """
    x_SN = _columns(entropy_norm)
    return np.any((x_SN < level) | (_robust_z(x_SN, window, minimum, floor) < -z), axis=1)


def logit_growth(
    logit_max: ArrayLike,
    *,
    level: float = 1e4,
    z: float = 6.0,
    window: int = WINDOW,
    minimum: int = MINIMUM,
    floor: float = 0.01,
) -> Bools:
    """Largest attention logit above `level`, or its log z > 6 of its history, (S,) or (S, N) →
    (S,).

    Every run of arXiv 2309.14322 with a logit above 1e4 diverged. `floor` is the least σ of the
    log: 1% of the logit. Logits below 1 count as 1: they attend to nothing in particular, and log
    has no say there.
    """
    x_SN = _columns(logit_max)
    grown = _robust_z(np.log(np.maximum(x_SN, 1.0)), window, minimum, floor) > z
    return np.any((x_SN > level) | grown, axis=1)


def grad_norm_trend(
    grad_norm: Series,
    *,
    factor: float = 1.5,
    window: int = WINDOW,
    computed: Sequence[bool] | Bools | None = None,
) -> Bools:
    """Find the creep, (S,): the running median at least `factor` × the lowest so far.

    The median is that of the last `window` gradient norms.

    Full windows only, the step's own value included; a spike moves a median by almost nothing, so
    this is drift. The lowest is over the run up to the step, so the fall during warm-up raises no
    alarm.
    """
    column, was_computed = series(grad_norm, computed)
    usable = was_computed & np.isfinite(column)
    shifted = np.append(
        column[usable], 0.0
    )  # medians *before* position i + 1 are medians up to position i
    count, median, _ = medians_before(shifted, np.ones(len(shifted), bool), window)
    count, median = count[1:], median[1:]
    full = count >= window
    lowest = np.minimum.accumulate(np.where(full, median, np.inf))
    alarm = np.zeros(len(column), bool)
    alarm[usable] = full & (median >= factor * lowest) & (median > lowest)
    return alarm


def cusum(
    values: Series,
    *,
    allowance: float = 0.5,
    level: float = 10.0,
    largest: float = 4.0,
    window: int = WINDOW,
    minimum: int = MINIMUM,
    computed: Sequence[bool] | Bools | None = None,
) -> Bools:
    """One-sided CUSUM (Page 1954), (S,): Σ of (z − `allowance`), never below 0, above `level`; z in
    σ of the mean of the last ≤ 128 values, at least 64.

    It finds small rises that last, which no single value shows: z is cut at ± `largest`, so that no
    one value rings alone. NaN and inf are passed over.
    """
    column, was_computed = series(values, computed)
    finite = was_computed & np.isfinite(column)
    count, mean, std = moments_before(column, finite, window)
    judged = finite & (count >= minimum)
    moving = judged & (std > 1e-9 * np.abs(mean))
    z = np.zeros(len(column))
    z[moving] = np.clip((column[moving] - mean[moving]) / std[moving], -largest, largest)
    total = np.cumsum(np.where(judged, z - allowance, 0.0))
    lowest = np.minimum(np.minimum.accumulate(total), 0.0) if len(total) else total
    return judged & (total - lowest > level)


def update_norm(
    norm: Series, *, z: float = 6.0, window: int = WINDOW, minimum: int = MINIMUM
) -> Bools:
    """‖Δθ‖ far above its own history, (S,): robust z above 6."""
    column, was_computed = series(norm)
    norms = np.where(was_computed, column, np.nan)
    return robust_z(norms, window=window, minimum=minimum, floor=1e-12) > z


def relative_change(
    update_ratio: ArrayLike,
    *,
    z: float = 6.0,
    window: int = WINDOW,
    minimum: int = MINIMUM,
    floor: float = 0.01,
) -> Bools:
    """Largest ‖Δθ‖/‖θ‖ of any tensor, far above its history, (S,) or (S, N) → (S,): robust z of its
    log above 6.

    `floor` is the least σ of the log: 1% of the ratio.
    """
    x_SN = _columns(update_ratio)
    largest = np.max(np.where(np.isfinite(x_SN) & (x_SN > 0), x_SN, -np.inf), axis=1)
    logs = np.log(np.where(largest > 0, largest, np.nan))
    return robust_z(logs, window=window, minimum=minimum, floor=floor) > z


def act_kurtosis(
    kurtosis: ArrayLike,
    *,
    z: float = 6.0,
    window: int = WINDOW,
    minimum: int = MINIMUM,
    floor: float = 0.01,
) -> Bools:
    """Kurtosis of the residual stream far above its history in any layer, (S,) or (S, N) → (S,):
    robust z of its log above 6.

    `floor` is the least σ of the log: 1% of the kurtosis.
    """
    x_SN = _columns(kurtosis)
    logs = np.log(np.where(x_SN > 0, x_SN, np.nan))
    return np.any(_robust_z(logs, window, minimum, floor) > z, axis=1)


def _columns(values: ArrayLike) -> Floats:
    columns = np.asarray(values, np.float64)
    assert columns.ndim in (1, 2), (
        f"wanted (steps,) or (steps, series), found shape {columns.shape}"
    )
    return columns[:, None] if columns.ndim == 1 else columns


def _robust_z(x_SN: Floats, window: int, minimum: int, floor: float) -> Floats:
    z_SN = np.full(x_SN.shape, np.nan)
    for series_index in range(x_SN.shape[1]):
        z_SN[:, series_index] = robust_z(
            x_SN[:, series_index], window=window, minimum=minimum, floor=floor
        )
    return z_SN


def score(
    alarms: ArrayLike,
    spikes: Sequence[Spike | int],
    horizon: int,
    *,
    steps: Sequence[int] | NDArray[np.integer] | None = None,
) -> dict[str, Any]:
    """How well alarms (S,) foretell spikes: hit = an alarm in [onset − horizon, onset). JSON-ready.

    `lead_times` has a number of steps per spike, from the first alarm of that window, None for a
    miss. A false alarm is one that no spike follows within `horizon`; `false_in_spike` says how
    many of them fell on a spike's own steps, onset to recovery: late, not wrong. `random_hits` is
    the expectation, exact, for as many alarms put on steps drawn without replacement
    (hypergeometric). Real alarms come in bursts, which hit less: `shifted_hits` is the exact
    expectation when these alarms are moved, as a whole and around the end, by a random number of
    steps.
    """
    fired = np.asarray(alarms, bool)
    at = np.arange(len(fired)) if steps is None else np.asarray(steps, np.int64)
    assert fired.shape == at.shape and horizon >= 1, (
        f"{fired.shape} alarms, {at.shape} steps, horizon {horizon}"
    )
    episodes = sorted(
        (s.onset, s.recovered_at or s.step + 1) if isinstance(s, Spike) else (s, s + 1)
        for s in spikes
    )
    onsets = np.array([first for first, _ in episodes], np.int64)
    alarm_steps = at[fired]

    def rows(
        a: NDArray[np.int64], b: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return np.searchsorted(at, a), np.searchsorted(at, b)

    leads: list[int | None] = []
    for onset in onsets.tolist():
        i = int(np.searchsorted(alarm_steps, onset - horizon))
        leads.append(
            onset - int(alarm_steps[i]) if i < len(alarm_steps) and alarm_steps[i] < onset else None
        )
    hits = [lead for lead in leads if lead is not None]
    following = np.searchsorted(onsets, alarm_steps, side="right")
    next_onset = np.append(onsets, np.iinfo(np.int64).max)[following]
    false = next_onset - alarm_steps > horizon
    in_spike = np.zeros(len(alarm_steps), bool)
    for first, last in episodes:
        in_spike |= (alarm_steps >= first) & (alarm_steps < last)

    starts, stops = rows(onsets - horizon, onsets)
    random_hits = sum(_random_hit(len(at), len(alarm_steps), int(w)) for w in stops - starts)
    shifted_hits = sum(_shifted_hit(fired, int(w)) for w in stops - starts)
    n_false = int(false.sum())
    return {
        "steps": len(at),
        "horizon": horizon,
        "alarms": len(alarm_steps),
        "spikes": len(onsets),
        "hits": len(hits),
        "misses": len(onsets) - len(hits),
        "lead_times": leads,
        "median_lead": float(np.median(hits)) if hits else None,
        "false_alarms": n_false,
        "false_in_spike": int((false & in_spike).sum()),
        "false_per_1000": 1000.0 * n_false / len(at) if len(at) else 0.0,
        "random_hits": float(random_hits),
        "shifted_hits": float(shifted_hits),
    }


def _random_hit(steps: int, alarms: int, width: int) -> float:
    """P(at least one of `alarms` distinct random steps falls on `width` given ones) = 1 − C(n−w,
    A)/C(n, A).
    """
    miss = 1.0
    for i in range(width):
        miss *= max(steps - alarms - i, 0) / (steps - i)
    return 1.0 - miss


def _shifted_hit(fired: Bools, width: int) -> float:
    """Share of circular positions at which a window of `width` steps holds an alarm."""
    if width == 0 or not fired.any():
        return 0.0
    running = np.concatenate([[0], np.cumsum(np.concatenate([fired, fired[: width - 1]]))])
    return float(np.mean(running[width:] > running[:-width]))
