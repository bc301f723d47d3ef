"""Whether a spike vanished is judged by half of its excess, within two steps, after one past."""

from __future__ import annotations

import math
import random

import pytest

from forensics.train.run import Run
from replay.compare import spike_outcomes as module
from replay.compare.spike_outcomes import spike_outcomes

FIRST = 400


@pytest.fixture
def past(read_only: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run whose recorded losses before FIRST are 3.0 with noise of 0.01."""
    noise = random.Random(0)
    losses = {step: {"loss": 3.0 + noise.gauss(0, 0.01)} for step in range(FIRST)}
    monkeypatch.setattr(module, "recorded_steps", lambda run, first, last: losses)
    return read_only


def window(**losses: float | None) -> dict[int, float | None]:
    quiet: dict[int, float | None] = dict.fromkeys(range(FIRST, FIRST + 16), 3.0)
    return quiet | {int(step[1:]): loss for step, loss in losses.items()}


@pytest.mark.parametrize(
    ("fork", "happens"),
    [
        (window(), False),
        (window(s404=3.9), False),
        (window(s404=4.1), True),
        (window(s406=4.1), True),
        (window(s407=9.0), False),
        (window(s403=math.inf), True),
        (dict.fromkeys(range(FIRST, FIRST + 16)), None),
    ],
    ids=["quiet", "below half", "half", "two later", "three later", "inf", "nothing computed"],
)
def test_a_spike_happens_where_half_its_excess_is_seen_within_two_steps(
    past: Run, fork: dict[int, float | None], happens: bool | None
) -> None:
    outcome = next(
        o for o in spike_outcomes(past, FIRST, window(s404=5.0), fork) if o.loss is not None
    )
    assert (outcome.step, outcome.loss, outcome.happens) == (404, 5.0, happens)
    assert outcome.baseline == pytest.approx(3.0, abs=0.02) and outcome.sigma > 50


def test_a_spike_of_the_forks_own_is_told_as_such(past: Run) -> None:
    (outcome,) = spike_outcomes(past, FIRST, window(), window(s410=5.0))
    assert (outcome.step, outcome.loss, outcome.fork_loss) == (410, None, 5.0)
    assert outcome.happens


def test_a_nan_that_the_fork_does_not_have_has_vanished(past: Run) -> None:
    (outcome,) = spike_outcomes(past, FIRST, window(s404=math.nan), window())
    assert not outcome.happens
    (outcome,) = spike_outcomes(past, FIRST, window(s404=math.nan), window(s404=math.nan))
    assert outcome.happens
