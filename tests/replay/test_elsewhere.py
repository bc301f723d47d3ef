"""A replay beside another trainer's log and checkpoint: how far it is, and when that is too far."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from replay.elsewhere import Beside, Tolerance

TOLERANCE = Tolerance(loss=1e-4, state=1e-3)


def state(step: int, *numbers: float) -> SimpleNamespace:
    return SimpleNamespace(params=params(*numbers), counters=SimpleNamespace(step=step))


def params(*numbers: float) -> dict[str, torch.Tensor]:
    return {"x": torch.tensor(numbers)}


def step(number: int, loss: float, grad_norm: float = 1.0) -> SimpleNamespace:
    return SimpleNamespace(step=number, loss=loss, grad_norm=grad_norm)


def row(loss: float | None, grad_norm: float | None = 1.0) -> dict[str, float | None]:
    return {"loss": loss, "grad_norm": grad_norm}


def test_a_state_is_as_far_as_its_share_of_the_distance_that_theirs_travelled():
    """Theirs goes from (0, 0) to (0, 4), ours to (3, 4): 3 of 4."""
    beside = Beside("olmo")
    beside.see_state(state(8, 3.0, 4.0), params(0.0, 4.0), params(0.0, 0.0))
    assert (beside.state, beside.state_relative_difference) == (8, 0.75)


def test_a_state_that_theirs_did_not_leave_is_met_or_infinitely_far():
    beside = Beside("olmo")
    beside.see_state(state(8, 1.0), params(1.0), params(1.0))
    assert beside.state_relative_difference == 0.0
    beside.see_state(state(8, 2.0), params(1.0), params(1.0))
    assert beside.state_relative_difference == math.inf


def test_the_largest_difference_of_a_loss_counts_and_its_step_is_named():
    beside = Beside("olmo")
    for number, (ours, theirs) in enumerate([(2.0, 2.0), (2.0, 2.5), (2.0, 1.75)]):
        beside.see_step(step(number, ours), row(theirs))
    beside.see_step(step(3, 9.0), row(None))  # not logged
    assert (beside.losses, beside.loss_max_abs_difference, beside.loss_step) == (3, 0.5, 1)


def test_a_gradient_norm_is_compared_by_its_size():
    beside = Beside("olmo")
    beside.see_step(step(0, 2.0, grad_norm=3.0), row(2.0, 4.0))
    assert beside.grad_norm_max_relative_difference == 0.25


@pytest.mark.parametrize(
    ("loss", "theirs", "reproduced"),
    [(5e-5, 0.0, True), (2e-4, 0.0, False), (5e-5, 0.002, False), (math.nan, 0.0, False)],
)
def test_it_reproduces_where_loss_and_state_both_lie_within_the_tolerance(
    loss: float, theirs: float, reproduced: bool
):
    beside = Beside("olmo")
    beside.see_step(step(4, loss), row(0.0))
    beside.see_state(state(5, 1.0 + theirs), params(1.0), params(0.0))
    assert beside.within(TOLERANCE) is reproduced
    assert beside.sentence(TOLERANCE).startswith("reproduced, " if reproduced else "not reproduced")
    assert "to tolerance only, for it was trained elsewhere (olmo)" in beside.sentence(TOLERANCE)


def test_nothing_to_compare_with_is_no_reproduction():
    beside = Beside("olmo")
    assert not beside.within(TOLERANCE)
    assert "nothing was logged or saved" in beside.sentence(TOLERANCE)
