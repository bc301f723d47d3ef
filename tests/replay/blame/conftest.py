"""Small runs with a planted cause, trained once; what blame says of each is asked once too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import blame_study
from replay.blame.excess import Control, Probes, clean_probes
from replay.blame.investigate import blame
from replay.blame.window_replays import Replays
from replay.lineage import open_trajectory


@pytest.fixture(scope="session")
def planted_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("planted")


@pytest.fixture(scope="session")
def made(planted_runs: Path) -> Callable[[str, int], tuple[str, list[tuple[str, int | None]]]]:
    """`made(cause, seed)`: the name of the study's run, and where it is blamed."""
    known: dict[tuple[str, int], Any] = {}

    def make(cause: str, seed: int) -> tuple[str, list[tuple[str, int | None]]]:
        if (cause, seed) not in known:
            known[cause, seed] = blame_study.make(cause, seed, planted_runs)
        return known[cause, seed]

    return make


@pytest.fixture(scope="session")
def blamed(
    planted_runs: Path, made: Callable[..., Any]
) -> Callable[[str, int, str], dict[str, Any]]:
    """`blamed(cause, seed, where)`: blame's document by default settings."""
    known: dict[tuple[str, int, str], dict[str, Any]] = {}

    def ask(cause: str, seed: int, where: str) -> dict[str, Any]:
        if (cause, seed, where) not in known:
            name, places = made(cause, seed)
            step = dict(places)[where]
            known[cause, seed, where] = blame(planted_runs, name, step, force=step is not None)
        return known[cause, seed, where]

    return ask


@pytest.fixture(scope="session")
def hurt(planted_runs: Path, made: Callable[..., Any]) -> Replays:
    """Replays of the aftermath of four damaged batches, 160 … 163: the spike at 164 is all
    state.
    """
    name, places = made("damaged document", 1)
    run = open_trajectory(planted_runs, name)
    step = dict(places)["aftermath"]
    probes: Probes = clean_probes(run, step - 24)
    return Replays(
        Control(run, step - 16, step, probes, lambda n, note: None), lambda n, note: None
    )
