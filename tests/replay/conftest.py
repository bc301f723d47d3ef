"""One small run with a planted shard, trained once for all tests of replay; each test forks it in
its own copy.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from forensics import config
from forensics.train.loop import train
from forensics.train.run import Run
from replay.lineage import open_trajectory

RECIPE = {
    "data": {
        "sequence_length": 32,
        "tokenizer": "bytes",
        "held_out": 8,
        "sources": {"clean": "stdlib/json", "damaged": "shuffled:stdlib/wsgiref"},
        "phases": [
            {"until": 80, "mix": {"clean": 1.0}},
            {"until": 82, "mix": {"clean": 0.5, "damaged": 0.5}},
            {"mix": {"clean": 1.0}},
        ],
    },
    "model": {"layers": 2, "width": 32, "heads": 2},
    "train": {
        "steps": 100,
        "batch": 8,
        "micro_batch": 4,
        "threads": 1,
        "warmup": 5,
        "learning_rate": 1e-2,
        "clip": 1.0,
    },
    "checkpoint": {"every": 25},
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    train(config.from_dict(RECIPE), name="base", recipe_name="test", runs=runs)
    return runs


@pytest.fixture(scope="module", autouse=True)
def _shared_runs_are_left_alone(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a module that writes into the runs that all tests share: what one leaves there, another
    would find or not, by the order in which workers take them.
    """
    items = (item for item in request.session.items if request.node in item.listchain())
    if not any("trained" in getattr(item, "fixturenames", ()) for item in items):
        yield
        return
    shared: Path = request.getfixturevalue("trained")
    before = _files(shared)
    yield
    assert _files(shared) == before, "a test wrote into the shared runs: copy them first"


def _files(folder: Path) -> set[Path]:
    # stamps of what was read and found whole are written beside a corpus by any reader
    return {path for path in folder.rglob("*") if path.name != ".intact.json"}


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the runs folder that a test may write to."""
    copy = tmp_path / "runs"
    shutil.copytree(trained, copy)
    yield copy


@pytest.fixture
def base(runs: Path) -> Run:
    return open_trajectory(runs, "base")


@pytest.fixture(scope="module")
def read_only(trained: Path) -> Run:
    """The run itself, for tests that write nothing."""
    return open_trajectory(trained, "base")
