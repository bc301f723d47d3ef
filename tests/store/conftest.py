import json

import pytest


@pytest.fixture
def run_folder(tmp_path):
    """An empty run in its folder of runs."""
    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"corpus_sources": []}))
    return folder
