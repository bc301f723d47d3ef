"""The notebooks run on a small folder of runs, as marimo and as Jupyter, and their two forms say
the same.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "queries" / "notebooks"
NAMES = ("spike", "early_and_late", "tokens")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that spikes at damaged batches, two forks of it, and its tokens at two checkpoints."""
    import numpy as np

    from forensics import config, identity
    from forensics.tokens.vocabulary import write_vocabulary
    from forensics.train.loop import train
    from forensics.train.run import open_run
    from replay.forks.run import fork
    from replay.forks.spec import build

    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "damaged").mkdir()
    (folder / "damaged" / "a.txt").write_text(
        "".join(chr(0x400 + (i * 7919) % 256) for i in range(8000)), encoding="utf-8"
    )
    identity.enable_determinism(1)
    recipe = config.from_dict(
        {
            "data": {
                "sources": {"clean": "stdlib/json", "damaged": str(folder / "damaged")},
                "tokenizer": "bytes",
                "sequence_length": 32,
                "held_out": 4,
                "phases": [
                    {"until": 90, "mix": {"clean": 1.0}},
                    {"until": 93, "mix": {"clean": 0.5, "damaged": 0.5}},
                    {"mix": {"clean": 1.0}},
                ],
            },
            "model": {"layers": 1, "width": 32, "heads": 2},
            "train": {
                "steps": 104,
                "batch": 8,
                "learning_rate": 1e-2,
                "warmup": 8,
                "schedule": "constant",
                "threads": 1,
                "device": "cpu",
            },
            "checkpoint": {"every": 52},
        }
    )
    train(recipe, name="base", recipe_name="base", runs=folder / "runs", resume=False)
    run = open_run(folder / "runs", "base")
    for first in (20, 88):
        plan = {
            "parent": "base",
            "from": first,
            "to": first + 5,
            "placebos": 1,
            "chaos": 1,
            "intervention": [{"kind": "skip", "window": f"{first + 2}:{first + 3}"}],
        }
        fork(build(folder / "runs", run, plan), folder / "runs")
    for step in (52, 104):
        write_vocabulary(
            run, step, indicator=np.linspace(0.1, 1, run.shape.vocabulary, dtype=np.float32)
        )
    return folder / "runs"


def loaded(name):
    spec = importlib.util.spec_from_file_location(f"notebook_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.app


@pytest.mark.parametrize(
    "name, wanted", [("spike", "step"), ("early_and_late", "forks"), ("tokens", "known")]
)
def test_a_notebook_runs_as_marimo(runs, monkeypatch, name: str, wanted: str) -> None:
    monkeypatch.setenv("FORENSICS_RUNS", str(runs))
    outputs, names = loaded(name).run()
    assert len(outputs) >= 10 and wanted in names
    if name == "spike":
        assert names["run"] == "base" and 88 <= names["step"] <= 96 and len(names["moved"])
    if name == "early_and_late":
        assert sorted(names["forks"]["first"]) == [20, 88] and set(names["growth"].kind) == {
            "fork",
            "placebo",
            "chaos",
        }
    if name == "tokens":
        assert names["step"] == 104 and names["known"].step.tolist() == [52, 104]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_as_jupyter(runs, tmp_path, monkeypatch, name: str) -> None:
    import nbclient
    import nbformat

    monkeypatch.setenv("FORENSICS_RUNS", str(runs))
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parents[1]))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    shown = [
        output["data"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "data" in output
    ]
    charts = [
        data
        for data in shown
        if any("vega" in kind for kind in data) or "vega" in data.get("text/html", "")
    ]
    assert len(charts) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_the_two_forms_of_a_notebook_are_in_step(tmp_path, name: str) -> None:
    exported = tmp_path / f"{name}.ipynb"
    command = [
        sys.executable,
        "-m",
        "marimo",
        "-q",
        "export",
        "ipynb",
        str(FOLDER / f"{name}.py"),
        "-o",
        str(exported),
        "--sort",
        "top-down",
        "--no-include-outputs",
        "-f",
    ]
    export = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"}
    )
    assert export.returncode == 0, export.stderr
    stored, new = (
        json.loads(path.read_text(encoding="utf-8"))
        for path in (FOLDER / f"{name}.ipynb", exported)
    )
    assert [cell["source"] for cell in stored["cells"]] == [
        cell["source"] for cell in new["cells"]
    ], "run `make notebooks`"


@pytest.mark.parametrize("name", NAMES)
def test_no_output_and_no_path_of_a_machine_is_kept(name: str) -> None:
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert all(not cell.get("outputs") for cell in json.loads(text)["cells"])
    # a path from the root of any machine: a slash that begins a word, and a folder after it
    assert not re.search(r"(?<![\w./<>:*)-])/[a-z]\w*/", text)


def test_a_folder_without_spikes_says_how_to_get_one(tmp_path, runs, monkeypatch) -> None:
    shutil.copytree(runs / "base", tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / "tables" / "events")
    monkeypatch.setenv("FORENSICS_RUNS", str(tmp_path))
    with pytest.raises(Exception, match="no spike of the loss is recorded: forensics demo"):
        loaded("spike").run()
