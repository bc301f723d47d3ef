"""The learning rate against its closed forms, at the ends and in between."""

import math

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
