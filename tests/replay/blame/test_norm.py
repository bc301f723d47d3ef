"""Blame of the gradient norm: shares that sum to it, and a planted document that is found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import blame_plants
from benchmarks.blame_plants import AT, Plant
from replay.blame.blamed_step import spiked_metric
from replay.blame.norm.batch_norm import BatchNorm
from replay.blame.norm.investigate import blame_norm
from replay.blame.norm.removals import Removals
from replay.blame.norm.result import NormBlameResult
from replay.cli import main
from replay.lineage import open_trajectory


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("norm")


@pytest.fixture(scope="module")
def answer(planted: Path) -> tuple[Plant, NormBlameResult]:
    plant = blame_plants.norm_token(1, planted)
    return plant, blame_norm(planted, plant.run, plant.step, force=True)


@pytest.fixture(scope="module")
def removals(answer, planted: Path) -> Removals:
    run = open_trajectory(planted, answer[0].run)
    state = run.state_at(AT)
    gradient = BatchNorm(run, state.counters)
    return Removals(run, gradient, state.params, run.stream(AT), AT, lambda note: None)


def test_the_planted_document_is_blamed_and_carries_the_norm(answer):
    plant, result = answer
    assert result.verdict in plant.verdicts and result.control.bitwise
    assert result.documents[0].source == result.sources[0].source == "planted"
    assert result.proof.share > 0.75 and result.p <= 0.05
    planted = [c for c in result.candidates if c.source == "planted"]
    assert [c.slot for c in result.candidates[: len(planted)]] == [c.slot for c in planted]
    assert {s.slot for s in result.proof.removal} >= {c.slot for c in planted}
    assert max(result.proof.ordinary) < result.proof.taken > max(result.proof.random)


def test_what_the_detector_flagged_is_what_is_blamed(answer, planted):
    plant, _ = answer
    assert spiked_metric(open_trajectory(planted, plant.run), AT) == "grad_norm"


def test_the_norm_is_the_recorded_one_and_its_shares_sum_to_it(answer, removals, planted):
    _, result = answer
    assert result.excess.norm == result.spike.value
    assert removals.by_token.sum() == pytest.approx(removals.whole, rel=1e-4)
    assert result.excess.data + result.excess.state == result.excess.total


def test_a_share_is_the_derivative_of_the_norm_by_the_sequences_weight(removals):
    """Central differences of the norm itself, the weight of one sequence moved by ±1 %."""
    for row in (removals.ranked[0], removals.ranked[-1]):
        norms = []
        for change in (0.01, -0.01):
            weight = removals.batch.weight.clone()
            weight[row.slot] *= 1 + change
            batch = replace(removals.batch, weight=weight)
            norms.append(removals.gradient.norm(removals.params, batch))
        measured = (norms[0] - norms[1]) / 0.02
        assert removals.influence[row] == pytest.approx(measured, rel=2e-2, abs=1e-3)


def test_the_norm_as_a_target_has_the_gradient_that_differences_show(removals):
    target = removals.gradient.target(removals.batch)
    params = {n: p.detach().clone().requires_grad_() for n, p in removals.params.items()}
    grads = torch.autograd.grad(target(params), list(params.values()))
    size = float(sum(g.double().square().sum() for g in grads).sqrt())
    step = 0.02 * removals.whole / size  # the norm moves by 2 %, well above float32's rounding
    moved = [
        {n: p.detach() + sign * step * g / size for (n, p), g in zip(params.items(), grads)}
        for sign in (1, -1)
    ]
    with torch.no_grad():
        measured = float(target(moved[0]) - target(moved[1])) / (2 * step)
    assert measured == pytest.approx(size, rel=5e-2)


def test_an_ordinary_step_has_no_spike_of_it_to_explain(answer, planted):
    plant, _ = answer
    result = blame_norm(planted, plant.run, AT - 12, force=True)
    assert result.verdict == "cannot tell" and result.proof is None
    assert "no spike of it to explain" in result.sentence


def test_where_every_batch_spikes_the_state_is_blamed_and_what_came_before_is_tried(
    made, planted_runs
):
    """A learning rate 30 times as high for 3 steps: the gradient of every batch grows."""
    name, _ = made("learning-rate jump", 1)
    result = blame_norm(planted_runs, name, AT + 2, force=True)
    assert result.verdict == "state or policy" and result.reason == "other data spike too"
    assert result.excess.state > 0.5 * result.excess.total
    assert result.before is not None and result.before.measured is not None
    assert result.before.removal and result.before.predicted < 0


def test_the_command_tells_of_the_norm_by_itself_and_keeps_the_result(answer, planted, capsys):
    plant, result = answer
    flags = ["blame", plant.run, "--runs", str(planted), "--spike", str(AT), "--json"]
    with pytest.raises(SystemExit) as ended:
        main.main.main(flags)
    document = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0 and document["verdict"] == result.verdict
    assert NormBlameResult.read(planted / plant.run / f"norm-{AT}.json").excess == result.excess
    with pytest.raises(SystemExit):
        main.main.main([*flags[:-1], "--method", "bisect"])
    assert "--method asks about a finite spike of the loss" in capsys.readouterr().err
