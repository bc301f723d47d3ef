"""What is drawn of a fork beside its null forks."""

from __future__ import annotations

import pytest

from app import theme
from app.selection import picked_row
from app.views.forks import panels
from tests.app.forks_by_hand import arms, bands


@pytest.mark.parametrize("n, banded", [(4, False), (5, True)])
def test_fewer_than_five_null_forks_are_each_drawn_and_from_five_on_their_band(
    n: int, banded: bool
) -> None:
    values = [0.1 * (i + 1) for i in range(n)]
    found = panels.positive(
        arms(fork=[1.0], **{f"placebo_{i}": [x] for i, x in enumerate(values)}), "logit_kl"
    )
    drawn, band, ends, said = panels.parts_of(found, bands("placebo", values), "logit_kl")
    assert set(drawn["kind"].to_pylist()) == ({"fork"} if banded else {"fork", "placebo"})
    assert (
        band.num_rows == banded
        and ("10th to 90th percentile" in said) == banded
        and (", each" in said) == (not banded)
    )
    assert {e["word"] for e in ends.to_pylist()} == {"fork", f"{n} placebos"}


def test_a_distance_of_zero_cannot_stand_on_a_log_axis_and_is_left_out() -> None:
    found = panels.positive(arms(fork=[0.5, 0.0, None]), "logit_kl")
    assert found["value"].to_pylist() == [0.5]


def test_the_lower_of_two_words_goes_under_its_line() -> None:
    assert [e["below"] for e in theme.below([{"value": 2.0}, {"value": 1.0}])] == [False, True]
    assert [e["below"] for e in theme.below([{"value": 2.0}])] == [False]


def test_rows_stand_in_the_order_of_the_forward() -> None:
    names = [
        ("norm.weight", None),
        ("L1", 1),
        ("unembed.weight", None),
        ("L0", 0),
        ("embed.weight", None),
    ]
    order = panels.order_of_rows([{"row": r, "layer": layer} for r, layer in names])
    assert order == ["embed.weight", "L0", "L1", "norm.weight", "unembed.weight"]


@pytest.mark.parametrize(
    "event, row",
    [
        ({"selection": {"rows": [2]}}, 2),
        ({"selection": {"rows": []}}, None),
        (None, None),
        ({}, None),
    ],
)
def test_the_row_of_a_table_is_read_from_its_event(event, row) -> None:
    assert picked_row(event, range(3)) == row
