"""A run is where it lies: copies and renamed runs are themselves, a fork is of the run it left."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from forensics.errors import ForensicsError
from forensics.store.reader import connect
from forensics.train import checkpoint
from forensics.train.run import Run, open_run
from replay import verify
from replay.forks.run import fork
from replay.forks.spec import Spec
from replay.integrity import examine
from replay.interventions.no_update import Skip
from replay.lineage import ancestors, holder_of, is_recorded, lowest_state, open_trajectory, root
from replay.state_export import export_state


def forked(runs: Path, parent: str = "base", name: str = "child") -> str:
    return fork(Spec(parent, 75, 80, (Skip(76, 77),), name=name), runs).fork


def test_a_copy_is_itself_its_own_files_under_its_own_name(runs: Path, base: Run) -> None:
    shutil.copytree(base.folder, runs / "copy")
    weights = runs / "copy" / "checkpoints" / "step-000075" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 100)
    copy = open_run(runs, "copy")
    assert (copy.name, copy.folder) == ("copy", runs / "copy")
    with pytest.raises(ForensicsError, match=r"step-000075: model\.safetensors"):
        verify.verify(runs, "copy", 76, 78)
    verify.verify(runs, "base", 76, 78)
    rows = connect(runs).sql("select run, name from runs order by run").fetchall()
    assert rows == [("base", "base"), ("copy", "copy")]


def test_damage_is_found_in_the_folder_in_which_it_is(runs: Path, base: Run) -> None:
    shutil.copytree(base.folder, runs / "copy")
    weights = runs / "copy" / "checkpoints" / "step-000075" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 100)
    found = examine(runs, "copy")
    assert found.header_name == "base"
    (problem,) = found.problems
    assert "step-000075: model.safetensors" in problem
    shutil.rmtree(base.folder)  # nothing of the copy is read there
    assert examine(runs, "copy").problems == found.problems


def test_doctor_counts_what_it_read_and_lists_what_it_did_not(runs: Path, base: Run) -> None:
    (base.folder / "sweep-0123456789abcdef.json").write_text("{}")
    found = examine(runs, "base")
    assert found.problems == () and found.header_name is None
    checked = {check.what: check.files for check in found.checks}
    assert checked["checkpoints"] == 7 * len(base.saved_steps()) and checked["data"] == 4
    assert found.checked == sum(checked.values())
    assert [(each.what, each.files) for each in found.unchecked] == [
        ("sweep-0123456789abcdef.json", 1)
    ]


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("tables/steps/manifest.json", "manifest.json is missing"),
        ("checkpoints/step-000075/manifest.json", "step-000075 has no manifest"),
        ("checkpoints/step-000075", "step-000075 was saved and is no longer there"),
    ],
)
def test_what_is_missing_is_a_problem(gone: str, words: str, runs: Path, base: Run) -> None:
    path = base.folder / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    (problem,) = examine(runs, "base").problems
    assert words in problem


def test_a_whole_checkpoint_of_another_state_is_a_problem(runs: Path, base: Run) -> None:
    state = base.load(50)
    state.params["embed.weight"][0, 0] += 1
    checkpoint.save(base.folder / "checkpoints", state, base.shape, None, base.header.eot)
    (problem,) = examine(runs, "base").problems
    assert "step-000050 holds a state of digest" in problem
    assert is_recorded(base, base.load(50)) is False, "never called exact"
    assert is_recorded(base, base.load(75)) is True
    exported = [export_state(runs, "base", step, runs / f"s{step}") for step in (52, 75)]
    assert [each["exact"] for each in exported] == [False, True]


def test_a_fork_whose_parent_was_renamed_says_which_it_misses(runs: Path, base: Run) -> None:
    name = forked(runs)
    base.folder.rename(runs / "moved")
    with pytest.raises(ForensicsError) as e:
        open_trajectory(runs, name)
    assert e.value.kind == "missing" and "child is a fork of base" in e.value.message
    assert e.value.hint.startswith("moved was begun then")
    assert open_run(runs, "moved").name == "moved"
    (problem,) = examine(runs, name).problems
    assert problem.startswith("lineage: child is a fork of base")
    assert connect(runs).sql("select run from lineage('child')").fetchall() == [("child",)]


def test_another_run_of_the_parents_name_is_not_the_parent(runs: Path, base: Run) -> None:
    name = forked(runs)
    path = base.folder / "run.json"
    header = json.loads(path.read_bytes())
    path.write_text(json.dumps(header | {"created": "2001-01-01T00:00:00Z"}))
    with pytest.raises(ForensicsError, match="found another run of that name"):
        open_trajectory(runs, name)
    # a fork of before the time was written down knows its parent's recipe, corpus and order
    path_of_fork = runs / name / "run.json"
    old = json.loads(path_of_fork.read_bytes()) | {"parent_created": None, "identity": None}
    path_of_fork.write_text(json.dumps(old))
    open_trajectory(runs, name)
    path.write_text(json.dumps(header | {"order": "0" * 32}))
    with pytest.raises(ForensicsError, match="found another run of that name"):
        open_trajectory(runs, name)


def test_a_fork_that_took_its_parents_name_is_refused_in_one_line(runs: Path, base: Run) -> None:
    name = forked(runs)
    shutil.rmtree(base.folder)
    (runs / name).rename(base.folder)
    with pytest.raises(ForensicsError, match="found that name on the fork itself"):
        open_trajectory(runs, "base")


def test_the_walks_over_ancestors_agree(runs: Path, base: Run) -> None:
    forked(runs)
    grandchild = fork(Spec("child", 78, 80, (Skip(79, 80),), name="grandchild"), runs).fork
    run = open_trajectory(runs, grandchild)
    assert [each.name for each in ancestors(run)] == ["grandchild", "child", "base"]
    assert root(run).name == "base" and lowest_state(run) == 0
    assert [holder_of(run, step).name for step in (0, 74, 75, 77, 78)] == [
        *("base", "base", "child", "child", "grandchild")
    ]
