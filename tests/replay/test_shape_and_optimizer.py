"""Another optimizer, and norms of queries and keys, from a step of a run on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from forensics.errors import ForensicsError
from forensics.train.run import Run
from replay.forks.run import fork
from replay.forks.spec import Spec
from replay.interventions.add_qk_norm import AddQKNorm
from replay.interventions.another_optimizer import AnotherOptimizer
from replay.interventions.policy import LearningRate
from replay.interventions.removal import RemoveSequences
from replay.interventions.state import ResetMoments
from replay.lineage import open_trajectory

GAINS = {f"layers.{layer}.attn.{part}_norm.weight" for layer in (0, 1) for part in "qk"}


def test_queries_and_keys_get_norms_with_gains_of_one_and_zero_moments(base: Run) -> None:
    start = base.state_at(75)
    before = start.clone()
    AddQKNorm("whole").state(start, base)
    assert start.params.keys() - before.params.keys() == GAINS
    for name in GAINS:
        assert start.params[name].shape == (32,) and (start.params[name] == 1).all()
        assert (start.exp_avg[name] == 0).all() and (start.exp_avg_sq[name] == 0).all()
    for name, tensor in before.params.items():
        assert torch.equal(start.params[name], tensor)
        assert torch.equal(start.exp_avg_sq[name], before.exp_avg_sq[name])
    with pytest.raises(ForensicsError, match="wanted head or whole"):
        AddQKNorm("both").check(base, 75, 80)


def test_a_fork_with_norms_is_a_run_of_another_shape(base: Run, runs: Path) -> None:
    removal = RemoveSequences(76, 77, ((76, 1, 0, 32),), "mask")
    spec = Spec("base", 75, 80, (AddQKNorm(), removal), placebos=1, chaos=1, name="normed")
    result = fork(spec, runs)
    assert result.control.bitwise and result.final.l2 > 0
    assert "distances are over the tensors that both have" in result.does
    run = open_trajectory(runs, "normed")
    assert run.shape == dataclasses.replace(base.shape, qk_norm="head")
    assert run.header.parameters == base.header.parameters + 2 * 2 * 16
    assert run.load(80).params.keys() >= GAINS
    again = run.replay(run.load(75), 80)
    assert again.digest() == run.load(80).digest()
    gains = again.params["layers.0.attn.q_norm.weight"]
    assert not torch.equal(gains, torch.ones_like(gains))
    rows = run.table("divergence", ["arm", "tensor", "l2"]).to_pylist()
    assert not GAINS & {row["tensor"] for row in rows}
    assert {row["arm"] for row in rows} == {"fork", "placebo-0", "chaos-0"}
    with pytest.raises(ForensicsError, match="which has them"):
        AddQKNorm().check(run, 76, 80)
    # a fork of the fork starts from its shape
    below = fork(Spec("normed", 77, 79, (LearningRate(77, 79, 0.5),), name="below"), runs)
    assert below.control.bitwise
    with pytest.raises(ForensicsError, match="two states of one shape"):
        Spec("base", 75, 80, (AddQKNorm(),), barrier=(80,)).check(base)


@pytest.mark.parametrize("rule", ["lion", "muon"])
def test_a_fork_goes_on_by_another_optimizer(rule: str, base: Run, runs: Path) -> None:
    changes = (AnotherOptimizer(77, 80, rule), LearningRate(77, 80, 0.1))
    result = fork(Spec("base", 75, 80, changes, name=rule), runs)
    assert result.control.bitwise and f"updates by {rule} in 77:80" in result.does
    run = open_trajectory(runs, rule)
    assert run.replay(run.load(75), 77).digest() == base.state_at(77).digest()
    assert run.replay(run.load(75), 80).digest() == run.load(80).digest()
    moved = run.load(80).params["layers.0.attn.q_proj.weight"]
    assert np.isfinite(moved.numpy()).all()


def test_the_runs_own_optimizer_and_an_unknown_one_are_refused(base: Run) -> None:
    with pytest.raises(ForensicsError, match="another optimizer than the run's"):
        AnotherOptimizer(75, 80, "adamw").check(base, 75, 80)
    with pytest.raises(ForensicsError, match="adamw or lion or muon or nadamw"):
        AnotherOptimizer(75, 80, "lyon").check(base, 75, 80)
    anew = Spec("base", 75, 80, (AnotherOptimizer(75, 80, "muon"), ResetMoments(counter=True)))
    anew.check(base)
