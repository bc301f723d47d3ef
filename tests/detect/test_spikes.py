import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forensics.detect.band import RunningBand, Window
from forensics.detect.spikes import (
    RobustDetector,
    Spike,
    outliers,
    phase_restarts,
    robust,
    spike_score,
)
from forensics.errors import ForensicsError


def ripple(n: int) -> np.ndarray:
    """A series whose window is known: its median is 2 and its MAD 0.5, also with a value more or
    less.
    """
    return np.array([2.0, 1.0, 3.0, 1.5, 2.5] * (n // 5 + 1))[:n]


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 0.05, n)


def planted(n: int, at: dict[int, float]) -> np.ndarray:
    x = ripple(n)
    for step, value in at.items():
        x[step] = value
    return x


def same(a: list[Spike], b: list[Spike]) -> bool:
    return repr(a) == repr(b)  # equal also where the value is NaN


def test_one_odd_batch_is_a_batch_spike_with_the_numbers_of_its_window() -> None:
    (spike,) = robust(planted(200, {100: 9.0}), metric="grad_norm")
    assert spike == Spike(
        100, 100, "grad_norm", 9.0, 2.0, (9.0 - 2.0) / (1.4826 * 0.5), "batch", 101
    )


def test_a_two_step_spike_is_fast_and_peaks_at_its_larger_value() -> None:
    (spike,) = robust(planted(200, {100: 8.0, 101: 20.0}))
    assert (spike.onset, spike.step, spike.value, spike.kind, spike.recovered_at) == (
        100,
        101,
        20.0,
        "fast",
        102,
    )


@pytest.mark.parametrize(("length", "kind"), [(10, "fast"), (11, "slow")])
def test_fast_and_slow_part_at_ten_steps_after_the_peak(length: int, kind: str) -> None:
    (spike,) = robust(planted(300, {100: 30.0} | {100 + i: 9.0 for i in range(1, length)}))
    assert (spike.step, spike.kind, spike.recovered_at) == (100, kind, 100 + length)


def test_four_values_in_the_band_are_no_recovery() -> None:
    (spike,) = robust(planted(300, {100: 30.0, 101: 9.0, 106: 9.0}))
    assert (spike.kind, spike.recovered_at) == ("fast", 107)


def test_a_value_between_three_and_six_sigma_is_neither_an_outlier_nor_back_in_the_band() -> None:
    between = 2.0 + 4.5 * 1.4826 * 0.5
    assert robust(planted(200, {100: between})) == []
    (spike,) = robust(planted(200, {100: 30.0, 101: between}))
    assert (spike.kind, spike.recovered_at) == ("fast", 102)


def test_a_slow_spike_that_never_recovers_is_closed_100_steps_after_its_peak() -> None:
    x = ripple(400)
    x[100:] += 50.0 - np.minimum(np.arange(300), 40) * 0.5
    detector = RobustDetector()
    closed = [(step, spike) for step, v in enumerate(x) if (spike := detector.update(step, v))]
    ((when, spike),) = closed
    assert (spike.onset, spike.kind, spike.recovered_at) == (100, "slow", None)
    assert when == spike.step + 100


@pytest.mark.parametrize(("back", "recovered_at"), [(200, 200), (201, None)])
def test_a_recovery_counts_when_it_begins_at_most_100_steps_after_the_peak(
    back: int, recovered_at: int | None
) -> None:
    x = ripple(300)
    x[100:back] += 50.0
    x[100] = 90.0
    (spike,) = robust(x)
    assert (spike.step, spike.kind, spike.recovered_at) == (100, "slow", recovered_at)


def test_recover_within_is_obeyed() -> None:
    x = ripple(300)
    x[100:115] = 50.0
    assert [s.recovered_at for s in robust(x)] == [115]
    assert [s.recovered_at for s in robust(x, recover_within=14)] == [None]


def test_nothing_finite_is_judged_before_the_minimum() -> None:
    assert robust(planted(200, {63: 99.0})) == []
    assert [s.step for s in robust(planted(200, {64: 99.0}))] == [64]


def test_a_nan_at_the_very_first_step_counts_and_has_no_baseline() -> None:
    (spike,) = robust(planted(200, {0: math.nan}))
    assert math.isnan(spike.value)
    assert (spike.step, spike.baseline, spike.sigma, spike.kind, spike.recovered_at) == (
        0,
        None,
        math.inf,
        "batch",
        1,
    )


def test_an_early_nan_has_the_median_of_what_there_is_as_its_baseline() -> None:
    (spike,) = robust(planted(200, {8: math.inf}))
    assert (spike.step, spike.value, spike.baseline, spike.sigma) == (8, math.inf, 2.0, math.inf)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_the_peak_of_its_episode(value: float) -> None:
    (spike,) = robust(planted(200, {100: 50.0, 101: value, 102: 60.0}))
    assert (spike.onset, spike.step, spike.sigma, spike.kind) == (100, 101, math.inf, "fast")


def test_a_run_that_stays_nan_is_one_spike() -> None:
    x = planted(600, {})
    x[100:] = math.nan
    (spike,) = robust(x)
    assert (spike.onset, spike.step, spike.kind, spike.recovered_at) == (100, 100, "slow", None)


def test_steps_that_were_not_computed_are_passed_over() -> None:
    x = planted(200, {100: math.nan, 120: math.nan})
    computed = np.ones(200, bool)
    computed[100] = False
    assert [s.step for s in robust(x, computed=computed)] == [120]
    with_nulls = [None if i in (100, 120) else v for i, v in enumerate(x.tolist())]
    assert robust(with_nulls) == []


def test_an_uncomputed_step_between_onset_and_return_leaves_the_kind_as_it_is() -> None:
    x = [None if i == 101 else v for i, v in enumerate(planted(200, {100: 50.0}).tolist())]
    assert [(s.kind, s.recovered_at) for s in robust(x)] == [("batch", 102)]


def test_the_detector_is_one_sided() -> None:
    assert robust(planted(300, {100: -50.0, 200: 50.0})) == robust(planted(300, {200: 50.0}))


def test_outliers_do_not_enter_the_window() -> None:
    x = ripple(200)
    x[100:140] = 50.0
    (spike,) = robust(x)
    assert spike.baseline == 2.0
    assert outliers(x)[100:140].all()
    assert outliers(planted(200, dict.fromkeys(range(100, 140), 50.0) | {150: 12.0}))[
        150
    ]  # still judged against 2


def test_after_64_outliers_in_a_row_the_window_restarts_and_the_new_level_is_normal() -> None:
    x = ripple(500)
    x[100:] += 50.0
    x[350] = 90.0
    alarms = outliers(x)
    assert np.flatnonzero(alarms).tolist() == [*range(100, 164), 350]
    shift, spike = robust(x)
    assert (shift.onset, shift.kind, shift.recovered_at) == (100, "slow", None)
    assert (spike.onset, spike.baseline, spike.kind) == (350, 52.0, "batch")


def test_the_noise_of_a_new_level_is_no_higher_peak() -> None:
    x = ripple(500)
    x[100:] += 50.0
    x[180] = 56.0  # the window has restarted: this is one of the values that make the new level
    (shift,) = robust(x)
    assert (shift.step, shift.value) == (102, 53.0)


def test_63_outliers_in_a_row_do_not_restart_the_window() -> None:
    x = ripple(400)
    x[100:163] += 50.0
    x[164:300] += 50.0  # judged by the old window again: 64 more of them
    assert np.flatnonzero(outliers(x)).tolist() == [*range(100, 163), *range(164, 228)]


def test_the_window_restarts_at_a_phase_boundary() -> None:
    x = ripple(400)
    x[200:] += 50.0
    x[300] = 99.0
    assert [s.onset for s in robust(x)] == [200]
    assert [(s.onset, s.baseline) for s in robust(x, restarts=[200])] == [(300, 52.0)]


def test_an_episode_cut_by_a_boundary_or_by_the_end_was_not_seen_to_recover() -> None:
    x = planted(104, {100: 50.0, 101: 50.0})
    (cut,) = robust(x)
    assert (cut.kind, cut.recovered_at) == ("slow", None)
    assert robust(np.concatenate([x, ripple(100)]), restarts=[104]) == [cut]


def test_a_constant_series_has_no_spike_and_its_one_jump_has_a_finite_sigma() -> None:
    x = np.full(300, 2.5)
    assert robust(x) == []
    x[200] = 2.6
    (spike,) = robust(x)
    assert (spike.step, spike.kind) == (200, "batch")
    assert 6 < spike.sigma < math.inf
    assert (
        robust(np.where(np.arange(300) == 200, 2.5 + 3e-7, 2.5)) == []
    )  # a float32 rounding is no spike
    assert [s.step for s in robust(np.where(np.arange(300) == 200, 1.0, 0.0))] == [200]


def test_steps_may_start_anywhere_and_leave_gaps() -> None:
    x = planted(200, {100: 50.0})
    (spike,) = robust(x, steps=np.arange(200) * 10 + 7)
    assert (spike.step, spike.recovered_at, spike.kind) == (1007, 1017, "batch")


def test_the_alarm_comes_at_once_and_the_spike_when_its_kind_is_known() -> None:
    detector = RobustDetector()
    log = []
    for step, value in enumerate(planted(120, {100: 50.0, 101: 60.0})):
        spike = detector.update(step, value)
        if detector.alarm or spike:
            log.append((step, detector.alarm, detector.onset, spike and spike.kind))
    assert log == [(100, True, 100, None), (101, True, 100, None), (106, False, None, "fast")]


def test_live_and_afterwards_agree_also_when_a_run_is_resumed() -> None:
    x = noise(3000, 5)
    rng = np.random.default_rng(1)
    for at in rng.integers(0, 3000, 30):
        x[at : at + rng.integers(1, 20)] += rng.uniform(0.3, 5)
    x[[10, 700, 701]] = math.nan
    restarts = [900, 2100]
    detector, live, fired = RobustDetector(restarts=restarts), [], []
    for step, value in enumerate(x.tolist()):
        if step == 1500:  # resume: a new detector is given what was recorded
            detector = RobustDetector(restarts=restarts)
            for s, v in enumerate(x[:1500].tolist()):
                detector.update(s, v)
        live.append(detector.update(step, value))
        fired.append(detector.alarm)
    live.append(detector.finish())
    found = robust(x, restarts=restarts)
    assert len(found) > 10
    assert {s.kind for s in found} == {"batch", "fast", "slow"}
    assert same([s for s in live if s], found)
    assert fired == outliers(x, restarts=restarts).tolist()


@given(
    st.lists(
        st.one_of(st.integers(0, 40), st.sampled_from([400, math.nan, math.inf, None])),
        min_size=70,
        max_size=250,
    ),
    st.integers(-1000, 1000),
)
@settings(max_examples=60, deadline=None)
def test_adding_a_constant_changes_no_spike(eighths: list[float | None], constant: int) -> None:
    # Eighths and whole constants are exact in binary, so only the rule itself could tell the two
    # series apart.
    x = [v if v is None else v / 8 for v in eighths]
    a = robust(x, window=32, minimum=16)
    b = robust([v if v is None else v + constant for v in x], window=32, minimum=16)
    assert [(s.step, s.onset, s.kind, s.recovered_at) for s in a] == [
        (s.step, s.onset, s.kind, s.recovered_at) for s in b
    ]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=80))
@settings(max_examples=200, deadline=None)
def test_the_window_keeps_numpys_median_and_mad_of_its_last_values(values: list[float]) -> None:
    window = Window(16)
    for i, value in enumerate(values):
        window.push(value)
        last = np.array(values[max(0, i - 15) : i + 1])
        assert window.median() == np.median(last)
        assert window.mad(window.median()) == np.median(np.abs(last - np.median(last)))


@given(st.lists(st.integers(0, 30), min_size=80, max_size=200), st.sampled_from([0.0, 40.0]))
@settings(max_examples=40, deadline=None)
def test_outliers_are_those_of_the_definition_written_out(values: list[int], fall: float) -> None:
    x = np.array(values, float) ** 2 - fall * np.arange(len(values))
    window: list[float] = []
    residuals: list[float] = []
    expected = []
    in_a_row = 0
    for value in x.tolist():
        odd = False
        level = min(np.median(window[-24:]), np.median(window[-9:])) if window else 0.0
        if len(window) >= 12:
            ahead = np.median(residuals[-24:])
            mad = np.median(np.abs(residuals[-24:] - ahead))
            scale = max(1.4826 * mad, 1e-6 * abs(level), 1e-12)
            odd = value - (level + min(ahead, 0.25 * scale)) > 3.5 * scale
        in_a_row = in_a_row + 1 if odd else 0
        if not odd:
            if len(window) >= 9:
                residuals.append(value - level)
            window.append(value)
        if in_a_row == 64:
            window, residuals = [], []
        expected.append(bool(odd))
    assert outliers(x, window=24, minimum=12, k=3.5).tolist() == expected


@pytest.mark.parametrize("height", [1.0, 2.0])
def test_a_spike_on_a_steep_fall_is_seen_at_its_height_above_the_fall(height: float) -> None:
    # 10.9 → 5.9 in 100 steps: the median of the window is 2 nats above where the loss has come to.
    fall = 5.0 + 6.0 * np.exp(-np.arange(140) / 55)
    x = fall + np.random.default_rng(0).normal(0, 0.05, 140)
    assert robust(x) == []
    x[100] += height
    (spike,) = robust(x)
    assert (spike.step, spike.onset, spike.kind, spike.recovered_at) == (100, 100, "batch", 101)
    assert spike.value - spike.baseline == pytest.approx(height, abs=0.15)


def test_a_steady_fall_has_no_part_in_the_scale() -> None:
    noisy = np.random.default_rng(0).normal(0, 0.05, 200)
    bands = []
    for slope in (0.0, 0.05):
        band = RunningBand(128)
        for value in noisy - slope * np.arange(200):
            band.push(value)
        bands.append(band.expect())
    flat, falling = bands
    assert falling.scale == pytest.approx(flat.scale, rel=0.2)
    assert falling.centre == pytest.approx(-0.05 * 200, abs=0.05)


def test_a_loss_that_stops_falling_raises_no_spike() -> None:
    t = np.arange(600)
    for length in (1, 10, 40, 200):  # steps that each fall takes
        falls = sum(np.clip((t - start) / length, 0, 1) for start in (150, 400))
        noisy = np.random.default_rng(length).normal(0, 0.03, len(t))
        assert robust(9 - 0.6 * falls + noisy) == []


def test_a_slow_rise_does_not_become_its_own_baseline() -> None:
    x = noise(400, 3)
    x[200:] += 0.02 * np.arange(200)  # 0.4 σ a step
    assert robust(x)[0].onset < 230


def test_white_noise_and_a_falling_loss_raise_no_spike() -> None:
    t = np.arange(20_000)
    assert robust(noise(20_000)) == []
    assert (
        robust(1.5 + 9 * (t + 10.0) ** -0.3 + np.random.default_rng(2).normal(0, 0.03, len(t)))
        == []
    )
    assert robust(2 + 8 * np.exp(-t / 200) + np.random.default_rng(3).normal(0, 0.03, len(t))) == []


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ForensicsError, match="window 32"):
        robust([1.0], window=32)
    with pytest.raises(ForensicsError, match="k above 0"):
        robust([1.0], k=-1)


def test_a_spike_is_plain_data() -> None:
    (spike,) = robust(planted(200, {100: 9.0}))
    assert [type(v) for v in dataclasses.asdict(spike).values()] == [
        int,
        int,
        str,
        float,
        float,
        float,
        str,
        int,
    ]


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        ([(None, {"a": 1})], []),
        ([(200, {"a": 1}), (None, {"b": 1})], [200]),
        (
            [(200, {"a": 1}), (204, {"odd": 1}), (None, {"a": 1})],
            [],
        ),  # a planted phase is judged, and nothing restarts
        ([(200, {"a": 1}), (204, {"odd": 1}), (None, {"b": 1})], [204]),
        (
            [(200, {"a": 1}), (264, {"odd": 1}), (None, {"a": 1})],
            [200, 264],
        ),  # 64 steps fill a window
        ([(200, {"a": 1}), (263, {"odd": 1}), (None, {"a": 1})], []),
        ([(20, {"warm": 1}), (None, {"a": 1})], []),
        ([(200, {"a": 1, "b": 1}), (None, {"a": 0.5, "b": 0.5})], []),  # the same shares
        ([(200, {"a": 1, "b": 1}), (None, {"a": 1, "b": 2})], [200]),
        ([(200, {"a": 1, "b": 0}), (None, {"a": 1})], []),
        (
            [
                (200, {"a": 1}),
                (400, {"b": 1}),
                (404, {"odd": 1}),
                (600, {"b": 1}),
                (None, {"a": 1}),
            ],
            [200, 600],
        ),
    ],
)
def test_the_window_restarts_only_where_a_long_phase_brings_another_mix(
    phases: list, expected: list[int]
) -> None:
    assert phase_restarts(phases) == expected


def test_a_last_phase_that_the_run_ends_soon_is_short_too() -> None:
    phases = [(200, {"a": 1}), (None, {"odd": 1})]
    assert phase_restarts(phases, end=204) == []
    assert phase_restarts(phases, end=300) == [200]


def test_a_planted_phase_of_four_steps_is_seen() -> None:
    x = ripple(300)
    x[200:204] += 40.0
    restarts = phase_restarts([(200, {"a": 1}), (204, {"odd": 1}), (None, {"a": 1})])
    assert [(s.onset, s.kind, s.recovered_at) for s in robust(x, restarts=restarts)] == [
        (200, "fast", 204)
    ]


def naive_score(x: np.ndarray, sigmas: float, window: int, minimum: int) -> tuple[float, int]:
    far = judged = 0
    for i, value in enumerate(x):
        before = x[:i][np.isfinite(x[:i])][-window:]
        if not np.isfinite(value):
            far, judged = far + 1, judged + 1
        elif len(before) >= minimum:
            judged += 1
            far += bool(
                abs(value - before.mean())
                >= sigmas * max(before.std(ddof=1), 1e-6 * abs(before.mean()), 1e-12)
            )
    return (100 * far / judged if judged else 0.0), judged


@given(st.integers(0, 10_000), st.sampled_from([0.0, 1e9]))
@settings(max_examples=25, deadline=None)
def test_the_spike_score_is_that_of_its_definition_also_far_from_zero(
    seed: int, offset: float
) -> None:
    rng = np.random.default_rng(seed)
    x = offset + rng.standard_t(2, 300)
    x[rng.integers(0, 300, 3)] = rng.choice([math.nan, math.inf])
    assert spike_score(x, sigmas=4, window=50, minimum=20) == naive_score(x, 4, 50, 20)


def test_the_spike_score_counts_both_sides_and_reports_how_many_it_judged() -> None:
    x = planted(1128, {500: 40.0, 800: -40.0, 900: math.nan})
    assert spike_score(x) == (100 * 3 / 1000, 1000)
    assert spike_score(ripple(128)) == (0.0, 0)
    assert spike_score(np.full(2000, 2.3)) == (0.0, 1872)
    assert spike_score([2.3] * 1000 + [None] + [2.4] + [2.3] * 126) == (100 / 999, 999)


def test_the_own_value_is_not_in_its_window() -> None:
    # One value of n + 1 can be at most n/√(n+1) deviations away: with itself in the window, 9σ of
    # 64 would be out of reach.
    x = planted(65, {64: 1e6})
    assert spike_score(x, sigmas=9, minimum=64) == (100.0, 1)
