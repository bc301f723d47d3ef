"""Runs whose tokens were seen in every way there is: masked, skipped, held, edited, forked; and a
planted one.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from forensics import config
from forensics.train.loop import train
from forensics.train.run import Run
from replay.forks import run
from replay.forks.spec import Spec
from replay.interventions.boost_token import BoostToken
from replay.interventions.edit_tokens import EditTokens
from replay.interventions.mask_tokens import MaskTokens
from replay.interventions.no_update import HoldParameters, Skip, ZeroUpdate
from replay.interventions.policy import Freeze
from replay.interventions.removal import RemoveDocuments
from replay.interventions.state import Noise, ResetMoments
from replay.lineage import open_trajectory

RECIPE = {
    "data": {
        "sequence_length": 32,
        "tokenizer": "bytes",
        "held_out": 8,
        "sources": {"clean": "stdlib/json", "damaged": "shuffled:stdlib/wsgiref"},
        "phases": [
            {"until": 190, "mix": {"clean": 1.0}},
            {"until": 191, "mix": {"damaged": 1.0}},
            {"mix": {"clean": 1.0}},
        ],
    },
    "model": {"layers": 1, "width": 24, "heads": 2, "document_mask": True},
    "train": {
        "steps": 200,
        "batch": 8,
        "micro_batch": 4,
        "threads": 1,
        "device": "cpu",
        "warmup": 5,
        "learning_rate": 1e-2,
        "skip_step": True,
    },
    "checkpoint": {"every": 40},
    "record": {"level": "off"},
}
FORKS = {
    "masked": (40, 50, (MaskTokens(41, 46, tokens=(10, 32, 101)),)),
    "held": (40, 50, (HoldParameters(41, 44), Skip(45, 46), ZeroUpdate(47, 48))),
    "frozen": (40, 50, (Freeze(41, 44, ("embed.*",)), Noise(0.01), BoostToken(41, 50, 126, 5))),
    "edited": (40, 50, (EditTokens(41, 46, "self", "é"), ResetMoments())),
    "removed": (
        40,
        50,
        (RemoveDocuments(41, 48, (1, 2), "mask"), RemoveDocuments(41, 48, (3,), "replace")),
    ),
}


@pytest.fixture(scope="session")
def moved_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, 200 steps over documents with SkipStep on, forks of it named as FORKS, and `again`, a
    fork of a fork.
    """
    runs = tmp_path_factory.mktemp("moved")
    train(config.from_dict(RECIPE), name="base", recipe_name="test", runs=runs)
    for name, (first, last, interventions) in FORKS.items():
        run.fork(Spec("base", first, last, interventions, name=name), runs)
    run.fork(Spec("masked", 44, 54, (MaskTokens(44, 50, tokens=(32,)),), name="again"), runs)
    return runs


@pytest.fixture(scope="session")
def planted_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny run of `planted-tokens`: one epoch of the source it reads, one sequence a step, and
    half of another.
    """
    from forensics.data.tokenize import prepare

    runs = tmp_path_factory.mktemp("planted")
    changes = [
        "data.sources.read=planted:stdlib/json",
        "data.vocabulary=800",
        "data.sequence_length=128",
        "data.held_out=0",
        "model.layers=1",
        "model.width=32",
        "model.heads=2",
        "train.batch=1",
        "train.threads=1",
        "train.device=cpu",
        "checkpoint.every=50",
        "train.held_out_every=0",
    ]
    recipe = config.load("planted-tokens", changes)
    epoch = prepare(recipe.data, runs).layout(recipe.data.cut).n_sequences[0]
    recipe = config.load(
        "planted-tokens", [*changes, f"train.steps={epoch * 3 // 2}", f"checkpoint.steps=[{epoch}]"]
    )
    train(recipe, name="planted", recipe_name="planted-tokens", runs=runs)
    return open_trajectory(runs, "planted")
