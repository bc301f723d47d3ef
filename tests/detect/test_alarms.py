import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forensics.detect.alarms import (
    cusum,
    entropy_collapse,
    grad_norm_trend,
    gss_share,
    logit_growth,
    monitor,
    rms_t,
    score,
    skip_step,
)
from forensics.detect.spikes import robust
from forensics.step.skip_step import SkipWindow


def ripple(n: int, size: float = 1.0) -> np.ndarray:
    return 2.0 + size * np.array([0.0, -1.0, 1.0, -0.5, 0.5] * (n // 5 + 1))[:n]


def fired(alarm: np.ndarray) -> list[int]:
    assert alarm.dtype == bool
    return np.flatnonzero(alarm).tolist()


def test_the_monitor_fires_above_six_standard_deviations_of_the_previous_values() -> None:
    x = ripple(128)
    edge = x.mean() + 6 * x.std(ddof=1)
    assert fired(monitor([*x, edge + 1e-9])) == [128]
    assert fired(monitor([*x, edge - 1e-9])) == []


def test_the_cusum_finds_a_small_rise_that_lasts_and_no_single_value() -> None:
    noise = np.random.default_rng(0).normal(3, 0.1, 1200)
    assert fired(cusum(noise)) == []
    single = noise.copy()
    single[600] = 99.0  # z is cut at 4
    assert fired(cusum(single)) == []
    rise = noise.copy()
    rise[600:] += 0.15  # 1.5 σ, which no rule of 6 σ sees
    assert fired(monitor(rise)) == []
    first = fired(cusum(rise))[0]
    assert 605 <= first <= 625  # 10 / (1.5 − 0.5) steps


def test_a_cusum_of_constant_or_missing_values_never_rings() -> None:
    assert fired(cusum([2.5] * 300)) == []
    assert fired(cusum([None, math.nan, math.inf] * 100)) == []
    assert fired(cusum([])) == []


def test_the_monitor_waits_for_64_values_but_not_for_nan() -> None:
    x = ripple(200)
    x[[5, 63]] = math.nan, 99.0
    assert fired(monitor(x)) == [5]
    x = ripple(200)
    x[64] = 99.0
    assert fired(monitor(x)) == [64]


def test_values_that_were_not_computed_are_no_alarm_and_not_in_the_window() -> None:
    x: list[float | None] = [None, *ripple(64), 99.0]
    assert fired(monitor(x)) == [65]
    assert fired(monitor([None, *ripple(63), 99.0])) == []


def test_a_spike_enters_the_monitors_window_and_hides_the_next() -> None:
    x = ripple(140)
    x[130:135] = 50.0
    # A share p of spikes puts the next at √((1−p)/p) σ: of 4 in 128, 5.6. That is OLMo-core's blind
    # spot.
    assert fired(monitor(x)) == [130, 131, 132, 133]
    assert len(robust(x)) == 1


def test_a_constant_series_is_no_alarm_and_its_rise_is() -> None:
    assert fired(monitor(np.full(500, 0.1))) == []
    assert fired(monitor([0.1] * 100 + [0.2] + [0.1] * 20)) == [100]


def test_skip_step_skips_for_loss_or_gradient_norm() -> None:
    loss, norm = ripple(300), ripple(300)
    loss[100], norm[200], norm[250] = 99.0, 99.0, math.inf
    assert fired(skip_step(loss, norm)) == [100, 200, 250]


def live(losses: list, norms: list) -> list[bool]:
    window, skipped = SkipWindow(), []
    for loss, norm in zip(losses, norms):
        if loss is None:
            skipped.append(False)
            continue
        skipped.append(window.judge(loss, norm))
        window = window.push(loss, norm)
    return skipped


@given(st.integers(0, 100_000), st.sampled_from([1.0, 1e-8, 1e12]))
@settings(max_examples=40, deadline=None)
def test_the_live_skip_window_and_the_vectorised_rule_agree_at_every_step(
    seed: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    n = 400
    losses, norms = ((3 + 0.1 * rng.standard_t(2, n)) * scale for _ in range(2))
    losses[rng.integers(0, n, 3)] = math.nan
    norms[rng.integers(0, n, 3)] = math.inf
    holes = set(rng.integers(0, n, 5).tolist())
    a = [None if i in holes else v for i, v in enumerate(losses.tolist())]
    b = [None if i in holes else v for i, v in enumerate(norms.tolist())]
    expected = live(a, b)
    assert any(expected)
    assert skip_step(a, b).tolist() == expected


def test_live_and_vectorised_agree_on_the_very_edge_of_six_sigma() -> None:
    window = SkipWindow()
    x = (0.1 + 0.01 * np.random.default_rng(0).normal(size=128)).tolist()
    for value in x:
        window = window.push(value, 1.0)
    low, high = 0.1, 1.0
    while math.nextafter(low, 1) < high:
        middle = (low + high) / 2
        low, high = (low, middle) if window.judge(middle, 1.0) else (middle, high)
    assert monitor([*x, low])[-1] == window.judge(low, 1.0) == False  # noqa: E712
    assert monitor([*x, high])[-1] == window.judge(high, 1.0) == True  # noqa: E712


def test_vectorised_and_live_agree_across_a_block_of_the_vectorised_sums() -> None:
    noise = 3 + 0.1 * np.random.default_rng(1).normal(size=16_700)
    noise[[16_383, 16_384, 16_450, 16_600]] += 0.9
    x, window, expected = noise.tolist(), SkipWindow(), []
    for i, value in enumerate(x):
        expected.append(window.judge(value, 1.0) if i > 16_000 else None)
        window = window.push(value, 1.0)
    assert any(expected[16_001:])
    assert monitor(x)[16_001:].tolist() == expected[16_001:]


def test_the_skip_window_holds_128_values_and_no_nan() -> None:
    window = SkipWindow()
    for i in range(200):
        window = window.push(float(i), math.nan if i % 2 else float(i))
    assert window.losses == tuple(float(i) for i in range(72, 200))
    assert window.grad_norms == tuple(float(i) for i in range(0, 200, 2))
    assert json.loads(json.dumps(window.losses)) == list(window.losses)


def test_the_skip_window_learns_a_lasting_shift_and_lets_training_go_on() -> None:
    x = ripple(600)
    x[200:] += 20.0
    skipped = fired(skip_step(x, np.ones(600)))
    assert skipped[0] == 200
    assert skipped[-1] < 328


def test_the_window_is_frozen_and_hashable_state() -> None:
    window = SkipWindow().push(1.0, 2.0)
    assert window == SkipWindow((1.0,), (2.0,))
    with pytest.raises(AttributeError):
        window.losses = ()  # type: ignore[misc]


def test_rms_t_fires_when_any_tensor_is_above_the_threshold() -> None:
    rms = np.ones((5, 3))
    rms[1, 2], rms[2, 0], rms[3] = 2.31, 2.3, math.nan
    assert fired(rms_t(rms)) == [1]
    assert fired(rms_t(rms, threshold=2.0)) == [1, 2]
    assert fired(rms_t([1.0, 3.0])) == [1]


def test_the_share_of_spiking_elements_is_judged_against_its_own_history() -> None:
    share = np.zeros((200, 2))
    share[:, 1] = 0.01 + 0.002 * (np.arange(200) % 3)  # a tensor that always has some
    share[30, 0] = 0.5  # too early
    share[100, 0] = 0.001
    share[120, 0] = 0.0005  # less than 6 of the smallest σ
    share[150, 1] = 0.05
    assert fired(gss_share(share)) == [100, 150]


def test_entropy_collapse_is_a_low_level_or_a_sudden_fall_never_a_rise() -> None:
    entropy = np.stack(
        [ripple(300, 0.01) - 1.5, ripple(300, 0.01) - 1.2], axis=1
    )  # about 0.5 and 0.8
    entropy[10, 0] = 0.04
    entropy[100, 1] = 0.6
    entropy[200, 1] = 0.99
    entropy[250, 0] = math.nan
    assert fired(entropy_collapse(entropy)) == [10, 100]


def test_logit_growth_is_a_sudden_growth_or_a_level() -> None:
    logits = np.stack([np.exp(ripple(300, 0.05)), np.full(300, -3.0)], axis=1)
    logits[10, 1] = 2e4
    logits[100, 0] *= 1.2
    logits[200, 0] *= 3
    logits[250, 0] /= 3
    assert fired(logit_growth(logits)) == [10, 200]
    assert fired(logit_growth(logits, level=1e9)) == [200]


def test_the_creep_of_the_gradient_norm_is_drift_and_not_a_spike() -> None:
    t = np.arange(2000)
    falling = 0.2 + 2 * np.exp(-t / 50)
    assert fired(grad_norm_trend(falling)) == []
    spiky = falling.copy()
    spiky[1000:1040] = 9.0
    assert fired(grad_norm_trend(spiky)) == []
    creeping = 0.2 * np.exp(np.maximum(t - 1000, 0) / 1000)
    first, *_ = fired(grad_norm_trend(creeping))
    # The median of 128 values is reached 63.5 steps late; 1.5 times the floor is ln 1.5 · 1000
    # steps after step 1000.
    assert first == math.ceil(1000 + 1000 * math.log(1.5) + 63.5)
    assert fired(grad_norm_trend(np.ones(500))) == []
    assert fired(grad_norm_trend(np.ones(500), factor=1.0)) == []


@given(st.integers(200, 399))
@settings(max_examples=10, deadline=None)
def test_no_rule_looks_ahead(cut: int) -> None:
    x = 3 + 0.1 * np.random.default_rng(7).standard_t(2, 400)
    for rule in (monitor, gss_share, entropy_collapse, logit_growth, grad_norm_trend):
        assert rule(x)[:cut].tolist() == rule(x[:cut]).tolist()


def test_an_alarm_hits_from_the_horizon_up_to_the_step_before() -> None:
    alarms = np.zeros(1000, bool)
    alarms[[92, 95, 191, 300, 700]] = True
    result = score(alarms, [100, 200, 300, 400], 8)
    assert result["lead_times"] == [
        8,
        None,
        None,
        None,
    ]  # 92 of 100; 191 is 9 early; 300 is at the spike
    assert (result["hits"], result["misses"], result["median_lead"]) == (1, 3, 8.0)
    assert (result["false_alarms"], result["false_in_spike"], result["false_per_1000"]) == (
        3,
        1,
        3.0,
    )
    json.dumps(result)


def test_a_spike_is_foretold_before_its_onset_not_before_its_peak() -> None:
    x = ripple(300)
    x[200:205] = 30.0
    x[203] = 60.0
    (spike,) = robust(x)
    alarms = np.zeros(300, bool)
    alarms[[201, 204]] = True
    assert (spike.step, score(alarms, [spike], 8)["hits"]) == (203, 0)
    assert score(alarms, [spike], 8)["false_in_spike"] == 2
    alarms[197] = True
    assert score(alarms, [spike], 8)["lead_times"] == [3]


def test_random_alarms_of_the_same_rate_hit_as_often_as_is_expected() -> None:
    rng = np.random.default_rng(3)
    spikes, horizon, n, count = [5, 50, 57, 180], 8, 200, 12
    alarms = np.zeros(n, bool)
    alarms[:count] = True
    hits = [score(rng.permutation(alarms), spikes, horizon)["hits"] for _ in range(1500)]
    shifted = [score(np.roll(alarms, k), spikes, horizon)["hits"] for k in range(n)]
    result = score(alarms, spikes, horizon)
    assert result["random_hits"] == pytest.approx(
        np.mean(hits), abs=4 * np.std(hits) / math.sqrt(1500)
    )
    assert result["shifted_hits"] == pytest.approx(np.mean(shifted))
    assert result["shifted_hits"] < result["random_hits"]  # a burst


@pytest.mark.parametrize(
    ("alarms", "expected"), [(np.ones(100, bool), 2.0), (np.zeros(100, bool), 0.0)]
)
def test_always_and_never_are_no_better_than_chance(alarms: np.ndarray, expected: float) -> None:
    result = score(alarms, [40, 90], 10)
    assert result["hits"] == result["random_hits"] == result["shifted_hits"] == expected


def test_a_score_without_spikes_or_steps_is_all_zeros() -> None:
    alarms = np.zeros(100, bool)
    alarms[5] = True
    assert score(alarms, [], 8)["false_alarms"] == 1
    assert score(alarms, [0], 8)["misses"] == 1  # nothing comes before step 0
    assert score(np.zeros(0, bool), [], 8)["false_per_1000"] == 0.0


def test_alarms_may_be_of_steps_that_leave_gaps() -> None:
    alarms = np.zeros(50, bool)
    alarms[9] = True
    result = score(alarms, [1100], 30, steps=1000 + 10 * np.arange(50))
    assert result["lead_times"] == [10]
    assert result["random_hits"] == pytest.approx(3 / 50)
