import json
import os

import pytest


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """No test cuts the power; on a busy disk, syncing took four fifths of the time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def run_folder(tmp_path):
    """An empty run in its folder of runs."""
    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"corpus_sources": []}))
    return folder
