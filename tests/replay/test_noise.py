"""How fast the smallest noise grows."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from forensics.errors import ForensicsError
from replay.experiments import divergence_rate as noises
from replay.experiments.divergence_rate import exponent
from replay.experiments.results import NoiseResult
from replay.interventions.state import UnitInLastPlace, cast_differences
from replay.lineage import open_trajectory


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


@pytest.mark.parametrize("seed", range(4))
def test_in_bf16_the_masters_move_by_one_fp32_unit_and_one_weight_at_least_reaches_the_cast(
    trained: Path, seed: int
) -> None:
    run = open_trajectory(trained, "base")
    run.header = dataclasses.replace(run.header, precision="bf16")
    state = run.load(50)
    before = {name: theta.clone() for name, theta in state.params.items()}
    UnitInLastPlace(seed).state(state, run)
    units = {
        name: (state.params[name].view(torch.int32) - theta.view(torch.int32)).abs()
        for name, theta in before.items()
    }
    # as integers, neighbouring floats of one sign differ by 1; a zero's neighbour is the smallest
    further = {name: int((apart > 1).sum()) for name, apart in units.items()}
    assert sum(further.values()) <= 1 and all((apart >= 1).all() for apart in units.values())
    assert cast_differences(before, state.params) >= 1


def test_where_the_moved_masters_reach_the_cast_by_themselves_no_weight_moves_further() -> None:
    border = torch.tensor([[1 + 2.0**-8]])  # halfway between two bf16 numbers: rounds to even, down
    run, state = SimpleNamespace(header=SimpleNamespace(precision="bf16")), None
    for seed in range(8):
        state = SimpleNamespace(params={"layers.0.mlp.up.weight": border.clone()})
        UnitInLastPlace(seed).state(state, run)
        moved = state.params["layers.0.mlp.up.weight"]
        up = torch.nextafter(border, torch.tensor(math.inf))
        # up, it rounds up: the cast is reached; down, it stays, so it is moved across the border
        assert torch.equal(moved, up)
        assert cast_differences({"layers.0.mlp.up.weight": border}, state.params) == 1
