"""Small runs with a planted cause, trained once; what blame says of each is asked once too."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import blame_study
from replay.blame.excess import WindowControl
from replay.blame.investigate import BlameOptions, blame
from replay.blame.result import BlameResult
from replay.blame.stretch import CleanProbes, Stretch, clean_probes
from replay.blame.window_replays import WindowReplays
from replay.lineage import open_trajectory


@pytest.fixture(scope="session")
def planted_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("planted")


@pytest.fixture(scope="session")
def made(
    planted_runs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], tuple[str, list[tuple[str, int | None]]]]:
    """`made(cause, seed)`: the name of the study's run, and where it is blamed.

    A run is trained by the first process that wants it; each has a copy to write to.
    """
    known: dict[tuple[str, int], Any] = {}
    folder = tmp_path_factory.getbasetemp()
    of_all = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder

    def make(cause: str, seed: int) -> tuple[str, list[tuple[str, int | None]]]:
        if (cause, seed) not in known:
            trained = of_all / "trained" / f"{cause} {seed}"
            trained.mkdir(parents=True, exist_ok=True)
            with (trained / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                known[cause, seed] = blame_study.make(cause, seed, trained)
            name = known[cause, seed].name
            for run in {name, name.removesuffix("-fork"), "_data"}:
                shutil.copytree(trained / run, planted_runs / run, dirs_exist_ok=True)
        return known[cause, seed]

    return make


@pytest.fixture(scope="session")
def blamed(planted_runs: Path, made: Callable[..., Any]) -> Callable[[str, int, str], BlameResult]:
    """`blamed(cause, seed, where)`: blame's result by default settings."""
    known: dict[tuple[str, int, str], dict[str, Any]] = {}

    def ask(cause: str, seed: int, where: str) -> BlameResult:
        if (cause, seed, where) not in known:
            name, places = made(cause, seed)
            step = dict(places)[where]
            known[cause, seed, where] = blame(
                planted_runs, name, step, BlameOptions(force=step is not None)
            )
        return known[cause, seed, where]

    return ask


@pytest.fixture(scope="session")
def hurt(planted_runs: Path, made: Callable[..., Any]) -> WindowReplays:
    """Replays of the aftermath of four damaged batches, 160 … 163: the spike at 164 is all
    state.
    """
    name, places = made("damaged document", 1)
    run = open_trajectory(planted_runs, name)
    step = dict(places)["aftermath"]
    probes: CleanProbes = clean_probes(run, step - 24)
    stretch = Stretch(run, step - 24, step, probes, lambda n, note: None)
    return WindowReplays(WindowControl(stretch, step - 16, step), lambda n, note: None)


@pytest.fixture
def blame_document() -> dict[str, Any]:
    """What a small `blame-<step>.json` holds: a spike that is not finite."""
    return {
        "version": 2,
        "run": "base",
        "spike": {
            "step": 1,
            "value": 4.0,
            "baseline": 3.0,
            "scale": 0.1,
            "kind": "fast",
            "onset": 1,
            "recovered_at": None,
            "spike": True,
            "words": "",
            "sigma": 10.0,
        },
        "height": 1.0,
        "calm": 0,
        "window": [0, 1],
        "before": 0,
        "method": "bisect",
        "control": {"level": "exact", "bitwise": True, "sentence": "bit for bit"},
        "probes": "32 held-out sequences",
        "excess": {
            "data": 0.0,
            "state": "Infinity",
            "loss": "NaN",
            "usual_gap": 0.0,
            "probe_before": 3.0,
            "probe_at": "NaN",
            "scale": 0.05,
            "total": "Infinity",
        },
        "verdict": "data",
        "reason": "removal takes it away",
        "sentence": "",
        "look_from": None,
        "p": None,
        "proof": None,
        "candidates": [],
        "groups": [],
        "documents": [],
        "sources": [],
        "smallest": None,
        "deletion_curve": [],
        "bisection": None,
        "trials": {
            "other_data": [],
            "other_states": [],
            "up_to_date": None,
            "policy": [],
            "policy_as_before": None,
            "neither": None,
            "earlier": [],
        },
        "tensors": None,
        "condition": None,
        "notes": [],
        "probe_losses": [],
        "replays": 1,
        "steps_replayed": 9,
        "interrupted": False,
        "seconds": 1.0,
        "created": "2026-01-01T00:00:00",
        "rules": [{"name": "AWAY", "value": 0.75, "unit": "of the excess"}],
    }
