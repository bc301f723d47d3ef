import dataclasses
import json
import math

import numpy as np
import pytest

from forensics.detect.trend import Forecast, spike_trend, theil_sen, trend
from forensics.errors import ForensicsError


def creeping(n: int, start: float, rate: float, noise: float = 0.05) -> np.ndarray:
    return start * np.exp(rate * np.arange(n) + noise * np.random.default_rng(0).normal(size=n))


def test_a_line_of_log_gradient_norm_is_found_exactly_and_forecast_to_its_level() -> None:
    steps = np.arange(100, 600)
    result = trend(steps, 0.1 * np.exp(0.001 * (steps - 100)), [], level=0.4)
    assert result.grad_norm.slope == pytest.approx(0.001)
    assert result.grad_norm.doubling_steps == pytest.approx(1000 * math.log(2))
    assert result.forecast.reason is None
    assert result.forecast.step == pytest.approx(100 + 1000 * math.log(4), abs=1)


def test_the_forecast_lies_between_those_of_the_slopes_ends() -> None:
    forecast = trend(range(1000), creeping(1000, 0.1, 5e-4), [], level=0.4).forecast
    assert forecast.low < forecast.step < forecast.high
    assert forecast.low < math.log(4) / 5e-4 < forecast.high


def test_spikes_of_the_gradient_norm_do_not_move_the_slope() -> None:
    clean, spiky = creeping(1000, 0.1, 5e-4), creeping(1000, 0.1, 5e-4)
    spiky[::20] *= 100
    a, b = (theil_sen(np.arange(1000.0), np.log(x)) for x in (clean, spiky))
    assert a and b
    assert b.slope == pytest.approx(a.slope, rel=0.1)


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (creeping(500, 0.1, 0.0), "flat"),
        (np.full(500, 0.1), "flat"),
        (creeping(500, 0.3, -1e-3), "falling"),
        (creeping(500, 0.5, 1e-3), "passed"),
        (creeping(500, 0.5, 0.0), "passed"),
        (creeping(9, 0.1, 1e-2, 0.0), "too few points"),
        (np.full(500, math.nan), "too few points"),
        (np.zeros(0), "too few points"),
    ],
)
def test_no_forecast_is_made_where_there_is_none_and_the_reason_is_said(
    norm: np.ndarray, reason: str
) -> None:
    result = trend(range(len(norm)), norm, [])
    assert result.forecast == Forecast(0.4, None, None, None, reason)
    json.loads(json.dumps(dataclasses.asdict(result), allow_nan=False))


def test_the_interval_covers_the_true_slope_about_95_times_in_100() -> None:
    rng = np.random.default_rng(11)
    t = np.arange(60.0)
    covered = [
        found.low <= 0.01 <= found.high
        for _ in range(400)
        if (found := theil_sen(t, 0.01 * t + rng.normal(size=60)))
    ]
    assert 0.92 <= np.mean(covered) <= 0.98


def test_sens_interval_of_ten_points_is_between_the_11th_and_the_35th_of_45_slopes() -> None:
    # Var(S) = 10·9·25/18 = 125, C = 1.96·√125 = 21.9, so ranks (45 − 21.9)/2 = 11.5 and (45 +
    # 21.9)/2 + 1 = 34.5.
    y = np.random.default_rng(2).normal(size=10)
    slopes = np.sort([(y[j] - y[i]) / (j - i) for i in range(10) for j in range(i + 1, 10)])
    found = theil_sen(np.arange(10.0), y)
    assert found
    assert (found.slope, found.low, found.high) == (slopes[22], slopes[10], slopes[34])


def test_long_series_are_thinned_evenly_to_2000_points() -> None:
    result = trend(range(50_000), creeping(50_000, 0.1, 1e-5), []).grad_norm
    assert result.points == 2000
    assert result.slope == pytest.approx(1e-5, rel=0.1)


def test_values_without_a_logarithm_are_dropped_and_counted() -> None:
    norm = creeping(500, 0.1, 1e-3)
    norm[[3, 4, 5]] = 0.0, math.nan, math.inf
    assert trend(range(500), norm, []).grad_norm.dropped == 3


def test_the_change_of_the_norm_is_told_of_the_steps_that_there_are_and_not_beyond() -> None:
    # − 334.8 % per 1,000 steps was said of 240 steps: no norm falls by more than 100 %.
    steps = np.arange(20, 241)
    fallen = trend(steps, 0.8 * np.exp(-0.003348 * (steps - 20)), []).grad_norm
    assert (fallen.first, fallen.last) == (20, 240)
    assert fallen.change == pytest.approx(math.exp(-0.003348 * 220) - 1)
    assert -1 < fallen.change_low <= fallen.change <= fallen.change_high < 0
    assert trend(range(9), np.ones(9), []).grad_norm.change is None


def test_spikes_are_counted_per_1000_steps_and_by_thirds() -> None:
    result = spike_trend(range(3000), [100, 1500, 2500, 2600, 2999, 5000])
    assert (result.count, result.per_1000) == (5, 5 / 3)
    assert result.thirds_per_1000 == (1.0, 1.0, 3.0)


@pytest.mark.parametrize(
    ("spikes", "direction"),
    [
        ([700, 800, 850, 900, 950], "rising"),
        ([50, 100, 150, 200, 300], "falling"),
        ([100, 300, 500, 700, 900], "none"),
        ([900, 950, 990], "too few"),
        ([], "too few"),
    ],
)
def test_the_direction_of_the_rate_is_laplaces(spikes: list[int], direction: str) -> None:
    assert spike_trend(range(1000), spikes).direction == direction


def test_a_constant_rate_is_called_rising_or_falling_about_1_time_in_20() -> None:
    rng = np.random.default_rng(5)
    called = [
        spike_trend(range(1000), rng.integers(0, 1000, 8).tolist()).direction != "none"
        for _ in range(1000)
    ]
    assert 0.025 <= np.mean(called) <= 0.075


def test_a_level_that_no_norm_can_have_is_refused() -> None:
    with pytest.raises(ForensicsError, match="above 0"):
        trend(range(3), np.ones(3), [], level=0.0)
