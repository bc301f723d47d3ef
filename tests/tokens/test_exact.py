"""Never-seen rows, by the data order and by their own bits, are the same set, on every run; a
defect shows.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from forensics.config import UNDECAYED
from forensics.data import intact
from forensics.step.state import TrainState
from forensics.tokens import exact
from forensics.tokens.applied_steps import moves
from forensics.tokens.exact import EMBED, exact_test, untouched, zero_gradient
from forensics.train.optimizer import decayed_names, update
from forensics.train.run import Run
from replay.lineage import open_trajectory


def assert_holds(run: Run, step: int) -> None:
    found = exact_test(run, step)
    assert found.applies and found.holds, found.sentence
    assert np.array_equal(found.never, found.found) and len(found.never)
    assert found.precision == found.recall == 1.0


@pytest.mark.parametrize("name", ["base", "masked", "held", "frozen", "edited", "removed", "again"])
def test_it_holds_on_runs_and_forks_with_masks_skips_holds_freezes_noise_and_edits(
    name: str, moved_runs: Path
) -> None:
    run = open_trajectory(moved_runs, name)
    for step in (run.header.first_step, run.last_step()):
        assert_holds(run, step)


@pytest.mark.parametrize(
    "settings",
    [
        {"train.optimizer": "foreach"},
        {"train.optimizer": "loop", "model.width": 24},
        {"train.decay_embeddings": False},
        {"train.weight_decay": 0.0, "train.z_loss": 1e-3},
        {"model.width": 20, "model.heads": 1, "train.micro_batch": 4},
        {
            "data.mask_repeats": True,
            "model.document_mask": True,
            "model.family": "gpt2",
            "model.tied": False,
        },
    ],
    ids=lambda each: " ".join(f"{k}={v}" for k, v in each.items()),
)
def test_it_holds_under_every_optimizer_decay_and_width(settings: dict, train_run) -> None:
    name = "exact-" + str(abs(hash(repr(settings))) % 10**8)
    run = train_run(name, **settings, **{"train.steps": 12, "record.level": "off"})
    assert_holds(run, 10)
    assert_holds(run, 12)


def test_it_holds_between_checkpoints(tiny_run: Run) -> None:
    assert_holds(tiny_run, 17)


def test_a_tied_model_is_told_that_the_test_does_not_apply(train_run) -> None:
    found = exact_test(train_run("tied", **{"model.tied": True, "train.steps": 4}), 4)
    assert not found.applies and not found.holds and found.precision is None
    assert "tied" in found.sentence and len(found.never)


def test_data_that_are_not_those_trained_on_are_reported_as_a_defect(
    moved_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # past the guard that refuses a corpus that changed: as a loader that reads other data
    monkeypatch.setattr(intact, "require", lambda folder, digests: None)
    runs = tmp_path / "runs"
    shutil.copytree(moved_runs, runs)
    run = open_trajectory(runs, "base")
    shutil.rmtree(run.folder / "exposure", ignore_errors=True)
    never = int(exact_test(run, 200).never[0])
    shutil.rmtree(run.folder / "exposure")
    (shard,) = (run.corpus.folder / run.corpus.sources[0].shards[0].file,)
    ids = np.fromfile(shard, run.corpus._dtype)
    ids[ids == ord("{")] = never
    shard.unlink()
    ids.tofile(shard)
    found = exact_test(open_trajectory(runs, "base"), 200)
    assert (
        not found.holds
        and found.only_bits.tolist() == [never]
        and found.only_ledger.tolist() == [ord("{")]
    )
    assert (
        found.precision is not None
        and found.precision < 1
        and found.recall is not None
        and found.recall < 1
    )
    assert "a defect of the data, the loader or the ledger" in found.sentence


def test_a_row_that_is_one_bit_off_is_found(tiny_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    never = untouched(tiny_run, 20)
    load = tiny_run.load

    def moved(step: int) -> TrainState:
        state = load(step)
        if step == 20:
            row = state.params[EMBED][int(never[0])]
            row[0] = torch.nextafter(row[0], torch.tensor(torch.inf))
        return state

    monkeypatch.setattr(tiny_run, "load", moved)
    assert exact_test(tiny_run, 20).only_ledger.tolist() == [int(never[0])]


@pytest.mark.parametrize("implementation", ["fused", "foreach", "loop"])
@pytest.mark.parametrize(("V", "D"), [(257, 24), (61, 7), (300, 5), (130, 32)])
def test_some_rows_alone_are_folded_as_within_the_whole_embedding(
    V: int, D: int, implementation: str, train_run
) -> None:
    run = (
        train_run("policy", **{"train.steps": 1})
        if not hasattr(train_run, "run")
        else train_run.run
    )
    train_run.run = run
    window = moves(run, 1)[0]
    window = exact.Moves(
        run,
        np.arange(9),
        np.ones(9, bool),
        tuple(window.counters[0].__class__(k, k, k) for k in range(9)),
    )
    generator = torch.Generator().manual_seed(0)
    start = tuple(torch.randn(V, D, generator=generator) * size for size in (0.02, 1e-3, 1e-6))
    start = (start[0], start[1], start[2].abs())
    whole = TrainState(*({EMBED: part.clone()} for part in start))
    for counters in window.counters:
        whole.counters = counters
        update(
            whole,
            {EMBED: torch.zeros(V, D)},
            run.policy(counters),
            decayed_names([EMBED], UNDECAYED, True),
            implementation,
        )
    ids = np.sort(np.random.default_rng(0).choice(V - 1, 20, replace=False))
    ids[-1] = V - 1
    holder = type(
        "R",
        (),
        {
            "shape": type("S", (), {"vocabulary": V})(),
            "policy": staticmethod(run.policy),
            "recipe": type(
                "C",
                (),
                {
                    "train": replace(
                        run.recipe.train, decay_embeddings=True, optimizer=implementation
                    )
                },
            )(),
        },
    )()
    rows = zero_gradient(holder, tuple(part[torch.from_numpy(ids)] for part in start), ids, window)  # type: ignore[arg-type]
    for own, all_ in zip(rows, (whole.params, whole.exp_avg, whole.exp_avg_sq)):
        assert torch.equal(
            own.view(torch.int32), all_[EMBED][torch.from_numpy(ids)].view(torch.int32)
        )
