"""The learning rate against its closed forms, at the ends and in between."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forensics.config import Train
from forensics.step.state import Counters
from forensics.train.schedule import learning_rate, own_policy


def lr(k, schedule, steps=100, warmup=10, min_lr=0.1, **more):
    return learning_rate(
        k,
        Train(
            learning_rate=2.0, schedule=schedule, steps=steps, warmup=warmup, min_lr=min_lr, **more
        ),
    )


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "wsd"])
def test_warm_up_is_a_ramp_that_reaches_the_peak_at_its_last_step(schedule):
    assert [lr(k, schedule) for k in (0, 4, 9, 10)] == pytest.approx(
        [0.2, 1.0, 2.0, 2.0], rel=1e-12
    )
    assert lr(0, schedule, warmup=0) == 2.0


def test_ends_and_middles_are_the_closed_forms():
    assert lr(99, "constant") == 2.0
    for schedule in ("cosine", "linear"):
        assert lr(55, schedule) == pytest.approx(2.0 * 0.55)  # half way: the mean of 1 and 0.1
        assert lr(100, schedule) == pytest.approx(0.2) == lr(10_000, schedule)
    assert lr(99, "cosine") == pytest.approx(
        2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi * 89 / 90)) / 2)
    )
    assert lr(99, "linear") == pytest.approx(2.0 * (1 - 0.9 * 89 / 90))


def test_wsd_stays_at_the_peak_and_falls_over_the_last_fifth_or_as_told():
    assert lr(80, "wsd") == 2.0 and lr(79, "wsd") == 2.0
    assert lr(90, "wsd") == pytest.approx(2.0 * 0.55) and lr(100, "wsd") == pytest.approx(0.2)
    assert lr(50, "wsd", decay_steps=50) == 2.0 and lr(75, "wsd", decay_steps=50) == pytest.approx(
        2.0 * 0.55
    )


def test_the_schedule_may_be_drawn_for_more_steps_than_are_run():
    assert lr(99, "cosine", schedule_steps=1000) == lr(99, "cosine", steps=1000)
    assert lr(99, "wsd", schedule_steps=1000) == 2.0


@given(
    k=st.integers(0, 300),
    schedule=st.sampled_from(["constant", "cosine", "linear", "wsd"]),
    steps=st.integers(1, 200),
    warmup=st.integers(0, 250),
    min_lr=st.just(0.0) | st.floats(1e-6, 1),
    decay_steps=st.none() | st.integers(1, 300),
)
def test_every_rate_lies_between_nothing_and_the_peak_and_never_rises_after_warm_up(
    k, schedule, steps, warmup, min_lr, decay_steps
):
    now, then = (
        lr(i, schedule, steps, warmup, min_lr, decay_steps=decay_steps) for i in (k, k + 1)
    )
    assert 0 <= now <= 2.0 * (1 + 1e-12)
    if k >= warmup:
        # 1 − (1−f)·x rounds beside 1, so a small floor f is met to an ulp of 1, not to one of its
        # own
        assert then <= now * (1 + 1e-12) and now >= 2.0 * (min_lr - 2**-52)


def test_the_policy_follows_the_schedules_own_counter():
    train = Train(learning_rate=1.0, warmup=10, steps=100)
    policy = own_policy(train, "fp32")
    assert policy(Counters(step=50, schedule=4, updates=3)).learning_rate == learning_rate(4, train)
    found = policy(Counters())
    assert (found.update, found.advance_schedule, found.frozen, found.precision) == (
        "apply",
        True,
        frozenset(),
        "fp32",
    )


# What other trainers logged, step for step: OLMo and OLMo-core's own loops, at the sizes of
# tests/fixtures/foreign (peak, warm-up and steps of their configurations, cosine to a tenth)
OLMO = (
    0.0006666666666666666,
    0.0013333333333333333,
    0.002,
    0.0018281152949374527,
    0.0013781152949374528,
    0.0008218847050625473,
    0.00037188470506254736,
    0.0002,
)
OLMO_CORE = (
    0.00075,
    0.0015,
    0.0022500000000000003,
    0.003,
    0.002604594154601839,
    0.00165,
    0.000695405845398161,
    0.00030000000000000003,
)


@pytest.mark.parametrize(
    ("logged", "peak", "warmup"), [(OLMO, 0.002, 3), (OLMO_CORE, 0.003, 4)], ids=["OLMo", "core"]
)
def test_the_rates_that_olmos_trainers_logged_come_out(logged, peak, warmup):
    train = Train(steps=8, learning_rate=peak, warmup=warmup, min_lr=0.1, decay_base=1)
    assert [learning_rate(k, train) for k in range(8)] == pytest.approx(logged, rel=1e-12)


def cosine_of_nanogpt(k):
    if k < 10:
        return 2.0 * (k + 1) / 11
    return 0.2 + 0.5 * (1 + math.cos(math.pi * (k - 10) / 90)) * 1.8 if k <= 100 else 0.2


def cosine_of_megatron(k, start=0.05):
    if k <= 10:
        return start + (2.0 - start) * k / 10
    return 0.2 + 0.5 * (math.cos(math.pi * (k - 10) / 90) + 1) * 1.8 if k <= 100 else 0.2


def linear_of_nanotron(k, start=40):
    if k <= 10:
        return 2.0 * k / 10
    return 2.0 if k < start else max(0.2, 0.2 + 1.8 * (100 - k) / (100 - start))


def cosine_of_litgpt(k, micro=4):
    it = (k + 1) * micro - 1  # the micro-batch after which the update is made
    if it < 10 * micro:
        return 2.0 * it / (10 * micro)
    x = min(1.0, (it - 10 * micro) / (90 * micro))
    return 0.2 + 0.5 * (1 + math.cos(math.pi * x)) * 1.8


def inverse_sqrt_of_olmo_core(k):
    return 2.0 * (k + 1) / 10 if k + 1 < 10 else 0.2 + 1.8 * math.sqrt(10 / (k + 1))


def half_cosine_of_olmo_core(k):
    full = 2.0 / 0.55  # the peak of the whole cosine, of which a tenth is 2·0.1/0.55
    low, u = full * 0.1, k + 1
    if u < 10:
        return (low + (full - low) / 2) * u / 10
    x = min(1.0, (u - 10) / 90)
    return low + (full - low) * (1 + math.cos(math.pi * (1 + x) / 2)) / 2


THEIRS = [
    (cosine_of_nanogpt, {"schedule": "cosine", "warmup_from": 1 / 11, "warmup_base": 0}),
    (cosine_of_megatron, {"schedule": "cosine", "warmup_from": 0.025, "warmup_base": 0}),
    (linear_of_nanotron, {"schedule": "linear", "warmup_base": 0, "decay_start": 40}),
    (cosine_of_litgpt, {"schedule": "cosine", "warmup_base": 0.75, "decay_base": 0.75}),
    (inverse_sqrt_of_olmo_core, {"schedule": "inverse_sqrt", "decay_base": 1}),
    (half_cosine_of_olmo_core, {"schedule": "half_cosine", "decay_base": 1, "min_lr": 0.1 / 0.55}),
]


@pytest.mark.parametrize(("theirs", "keys"), THEIRS, ids=[t.__name__ for t, _ in THEIRS])
def test_the_formulas_of_other_trainers_are_settings_of_ours(theirs, keys):
    for k in range(100):
        assert lr(k, **keys) == pytest.approx(theirs(k), rel=1e-12, abs=1e-15), k


@pytest.mark.parametrize("shape", ["linear", "cosine", "sqrt", "exponential"])
def test_wsds_end_falls_from_the_peak_to_the_floor_in_each_shape(shape):
    middle = {"linear": 0.5, "cosine": 0.5, "sqrt": 1 - 0.5**0.5, "exponential": 2**0.5 - 1}[shape]
    at = {k: lr(k, "wsd", decay_shape=shape) for k in (79, 80, 90, 100)}
    assert at[79] == 2.0 and at[80] == pytest.approx(2.0) and at[100] == pytest.approx(0.2)
    assert at[90] == pytest.approx(2.0 * (0.1 + 0.9 * middle))


def test_a_cosine_cut_short_goes_on_in_a_line():
    keys = {"decay_steps": 20, "tail_min_lr": 0.05}
    assert lr(80, "cosine_linear", **keys) == lr(80, "cosine")
    assert lr(100, "cosine_linear", **keys) == pytest.approx(0.1)
    assert lr(90, "cosine_linear", **keys) == pytest.approx((lr(80, "cosine") + 0.1) / 2)


def test_the_first_steps_may_be_clipped_at_another_threshold():
    train = Train(clip=0.5, clip_eps=1e-6, clip_warmup=3, clip_warmup_factor=10)
    found = [own_policy(train, "fp32")(Counters(schedule=k)) for k in range(5)]
    assert [policy.clip for policy in found] == [5, 5, 5, 0.5, 0.5]
    assert {policy.clip_eps for policy in found} == {1e-6}
    later = replace(train, clip_warmup_after=1)  # OLMo's first step has the plain threshold
    found = [own_policy(later, "fp32")(Counters(schedule=k)) for k in range(5)]
    assert [policy.clip for policy in found] == [0.5, 5, 5, 0.5, 0.5]
