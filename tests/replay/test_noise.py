"""How fast the smallest noise grows."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from forensics.errors import ForensicsError
from replay.experiments import divergence_rate as noises
from replay.experiments.divergence_rate import exponent
from replay.experiments.results import NoiseResult


def test_the_slope_is_that_of_the_logarithm_between_the_two_bounds() -> None:
    start, rate = 1e-6, 0.7
    d = [start * math.exp(rate * (k + 1)) for k in range(20)]
    placebo = [1e-2] * 20
    slope, steps = exponent(d, start, placebo)
    assert slope == pytest.approx(rate) and steps == sum(10 * start < x < 1e-3 for x in d)


def test_growth_that_never_leaves_the_rounding_or_starts_beyond_the_placebo_has_no_exponent() -> (
    None
):
    assert exponent([1e-6] * 9, 1e-6, [1.0] * 9) == (None, 0)
    assert exponent([1.0] * 9, 1e-6, [1.0] * 9) == (None, 0)
    assert exponent([2e-5, 3e-5], 1e-6, [1.0] * 2) == (None, 2)
    assert exponent([math.nan] * 9, 1e-6, [1.0] * 9) == (None, 0)


def test_points_tell_growth_seed_by_seed_beside_a_control_that_is_the_run(runs: Path) -> None:
    found = noises.noise(runs, "base", [60, 25], window=6, seeds=2).to_document()
    assert [p["step"] for p in found["points"]] == [25, 60]
    for p in found["points"]:
        assert p["control"]["bitwise"] and p["control"]["compared"] == 6
        assert len(p["exponents"]) == 2 and len(p["l2"]) == len(p["placebo"]) == 6
        assert 0 < p["start"] < p["placebo"][0]
        assert p["l2"][-1] > p["start"]  # this run is chaotic enough to see it


def test_finished_points_are_not_computed_again(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = noises.noise(runs, "base", [25], window=3, seeds=1)
    monkeypatch.setattr(noises, "_point", None)
    assert noises.noise(runs, "base", [25], window=3, seeds=1) == first
    assert NoiseResult.from_document(first.to_document(), "noise") == first


def test_a_window_may_go_past_the_runs_end_where_nothing_is_left_to_compare(runs: Path) -> None:
    (p,) = noises.noise(runs, "base", [99], window=4, seeds=1).points
    assert p.control.bitwise and p.control.compared == 1


@pytest.mark.parametrize(("at", "window"), [([101], 8), ([], 8), ([5], 2)])
def test_states_that_do_not_exist_and_windows_without_a_slope_are_refused(
    trained: Path, at: list[int], window: int
) -> None:
    with pytest.raises(ForensicsError):
        noises.noise(trained, "base", at, window)
