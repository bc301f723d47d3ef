"""A replay of a run that diverged: a NaN equals a NaN, and a control is not absent for it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from forensics import config
from forensics.store.writer import replace_table
from forensics.train import checkpoint
from forensics.train.loop import train
from forensics.train.run import Run, open_run
from replay import verify
from replay.forks.run import fork
from replay.forks.spec import Spec
from replay.interventions.no_update import Skip
from replay.run_diff import between
from replay.verify import Difference, Report, Witness, equal_values
from tests.conftest import TINY


@pytest.fixture
def diverged(tmp_path: Path) -> Run:
    """12 steps, NaN from the second on; states 0, 4, 8 and 12 are saved."""
    recipe = {section: dict(keys) for section, keys in TINY.items()}
    recipe["train"] |= {"learning_rate": 1e30, "warmup": 0, "steps": 12, "clip": 0.0}
    recipe["checkpoint"] |= {"every": 4}
    train(config.from_dict(recipe), name="nan", recipe_name="test", runs=tmp_path / "runs")
    run = open_run(tmp_path / "runs", "nan")
    losses = run.table("steps")["loss"].to_pylist()
    assert math.isfinite(losses[0]) and all(math.isnan(loss) for loss in losses[4:])
    return run


def test_a_recorded_nan_is_a_replayed_nan(diverged: Run) -> None:
    report = verify.verify(diverged.runs, "nan", 0, 12)
    assert report.bitwise and report.level == "exact" and report.compared == 12
    assert report.max_abs_difference == 0.0
    assert report.sentence() == "equal bit for bit over 12 recorded steps"
    assert Report.from_document(report.to_document(), "verify") == report


def test_the_control_of_a_run_that_diverged_is_exact(diverged: Run) -> None:
    result = fork(Spec("nan", 0, 6, (Skip(1, 2),), name="child"), diverged.runs)
    assert result.control.level == "exact" and result.control.bitwise
    assert between(diverged.runs, "nan", "nan").first_difference is None


def test_nans_of_another_payload_are_told_apart_from_other_numbers(diverged: Run) -> None:
    state = diverged.load(8)
    weights = state.params["embed.weight"]
    weights.view(torch.int32)[weights.isnan()] ^= 1  # NaN still
    folder = diverged.folder / "checkpoints"
    checkpoint.save(folder, state, diverged.shape, None, diverged.header.eot)
    report = verify.verify(diverged.runs, "nan", 6, 8)
    assert not report.bitwise and report.level == "reproduces" and report.nan_payload_only
    assert report.first_difference == Difference(7, "checkpoint", "params/embed.weight")
    assert "by the payload of its NaNs alone" in report.sentence()
    state.exp_avg["embed.weight"][0, 0] = 1.0
    checkpoint.save(folder, state, diverged.shape, None, diverged.header.eot)
    assert not verify.verify(diverged.runs, "nan", 6, 8).nan_payload_only


def test_a_control_that_diverges_again_on_another_machine_reproduces(diverged: Run) -> None:
    rows = diverged.table("steps").to_pydict()
    rows["loss"][0] += 1e-6
    rows["state_digest"] = ["0" * 32] * 12
    replace_table(diverged.folder, "steps", rows)
    report = verify.verify(diverged.runs, "nan", 0, 4)
    assert not report.bitwise and report.level == "reproduces"
    assert report.max_abs_difference == pytest.approx(1e-6, rel=1e-3)
    rows["loss"][3] = 5.0  # it was finite there
    replace_table(diverged.folder, "steps", rows)
    report = verify.verify(diverged.runs, "nan", 0, 4)
    assert report.max_abs_difference == math.inf
    assert "a loss is finite in one and not in the other" in report.sentence()


def test_what_a_witness_saw_goes_through_json_and_back(diverged: Run) -> None:
    witness = Witness(diverged, 0, 12)
    witness.losses, witness.compared = {3: math.nan, 4: None}, 2
    witness.difference = Difference(3, "loss")
    again = Witness(diverged, 0, 12)
    again.take_up(witness.notes())
    assert again.difference == witness.difference and again.compared == 2
    assert math.isnan(again.losses[3] or 0.0) and again.losses[4] is None


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (math.nan, math.nan, True),
        (math.nan, 1.0, False),
        (math.nan, None, False),
        (None, None, True),
        (math.inf, math.inf, True),
        (math.inf, -math.inf, False),
        (0.5, 0.5, True),
    ],
)
def test_equal_numbers(a: float | None, b: float | None, equal: bool) -> None:
    assert equal_values(a, b) is equal
