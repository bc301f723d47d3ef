"""Runs that other trainers made are brought in, whole or not at all, and replayed to tolerance."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from forensics.errors import ForensicsError
from forensics.foreign.bring_in import import_run
from forensics.foreign.options import ImportOptions
from forensics.train.run import open_run
from replay.verify import verify

FIXTURES = Path(__file__).parents[1] / "fixtures" / "foreign"
OLMO, CORE = FIXTURES / "olmo1", FIXTURES / "olmo_core"


@pytest.fixture(scope="module")
def brought(tmp_path_factory) -> Path:
    """A folder of runs with OLMo's run converted and linked, and OLMo-core's."""
    runs = tmp_path_factory.mktemp("imported")
    options = ImportOptions(data=(str(OLMO / "data"),), logs=(OLMO / "wandb_export.csv",))
    import_run(str(OLMO), runs, "olmo", options)
    linked = ImportOptions(data=(str(OLMO / "data"),), link=True, steps=(4,))
    import_run(str(OLMO), runs, "linked", linked)
    core = tmp_path_factory.mktemp("core")
    with tarfile.open(CORE / "step4.tar.xz") as packed:
        packed.extractall(core / "checkpoints", filter="data")
    shutil.copytree(CORE / "work", core / "work")
    given = ImportOptions(data=(str(CORE / "data"),), logs=(CORE / "losses.json",))
    import_run(str(core), runs, "core", given)
    return runs


@pytest.mark.parametrize(("name", "folder"), [("olmo", OLMO), ("core", CORE)])
def test_every_token_of_every_batch_is_the_one_that_was_read(brought, name, folder):
    seen = json.loads((folder / "seen.json").read_text())
    run = open_run(brought, name)
    assert len(seen) == run.header.steps == 8
    for place, entry in enumerate(seen):
        step, ids = (place, entry) if isinstance(entry, list) else (entry["step"] - 1, entry["ids"])
        assert run.batch_at(step).tokens.tolist() == ids


def test_a_replay_reproduces_their_log_and_their_next_checkpoint(brought):
    report = verify(brought, "olmo", 4, 8)
    assert report.loss_max_abs_difference < 2e-5 and report.state_relative_difference < 1e-3
    assert report.holds and not report.bitwise and report.level == "reproduces"
    assert "tolerance only" in report.sentence()


def test_a_replay_of_olmo_core_reproduces_its_log(brought):
    report = verify(brought, "core", 4, 8)
    assert report.elsewhere.losses == 4 and report.loss_max_abs_difference < 2e-5
    assert report.state_relative_difference is None and report.holds


def test_a_linked_state_is_the_converted_one_and_a_changed_file_is_noticed(brought, tmp_path):
    linked, converted = open_run(brought, "linked").load(4), open_run(brought, "olmo").load(4)
    assert linked.digest() == converted.digest()
    shutil.copytree(OLMO / "checkpoints", tmp_path / "checkpoints")
    import_run(str(tmp_path / "checkpoints"), tmp_path / "runs", "moved", ImportOptions(link=True))
    file = tmp_path / "checkpoints" / "step4-unsharded" / "model.pt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ForensicsError, match=r"changed: .*model\.pt") as e:
        open_run(tmp_path / "runs", "moved").load(4)
    assert e.value.kind == "integrity"


def test_a_state_without_moments_is_marked_and_goes_on_only_with_some_made(brought, monkeypatch):
    run = open_run(brought, "olmo")
    assert run.header.origin["without_moments"] == [8]
    state = run.load(8)
    assert not state.has_moments and not state.exp_avg
    run.warm_moments = 3
    warm = run.state_at(8)
    assert warm.has_moments and warm.counters.updates == 3 and warm.counters.step == 8
    assert all(bool((warm.params[name] == tensor).all()) for name, tensor in state.params.items())
    assert any(bool(tensor.any()) for tensor in warm.exp_avg.values())


@pytest.mark.parametrize(
    ("source", "name", "options", "kind", "words"),
    [
        ("nowhere", None, ImportOptions(), "missing", "nowhere"),
        (str(FIXTURES / "README.md"), None, ImportOptions(), "data", "looked for .*olmo.*log"),
        (str(OLMO), None, ImportOptions(steps=(5,)), "missing", "4, 8"),
        (str(OLMO), None, ImportOptions(stage="two"), "usage", "two"),
        (str(OLMO), None, ImportOptions(format="olmoo"), "usage", "olmo"),
        (str(OLMO), None, ImportOptions(data=("gone",)), "missing", "gone|part-0"),
        (str(OLMO / "wandb_export.csv"), None, ImportOptions(link=True), "usage", "--link"),
        (str(OLMO), None, ImportOptions(order=Path("x.npy")), "usage", "--order"),
    ],
)
def test_what_cannot_be_brought_in_leaves_nothing(tmp_path, source, name, options, kind, words):
    with pytest.raises(ForensicsError) as e:
        import_run(source, tmp_path / "runs", name, options)
    assert e.value.kind == kind
    import re

    assert re.search(words, str(e.value), re.DOTALL), str(e.value)
    assert not list((tmp_path / "runs").glob("*")) if (tmp_path / "runs").exists() else True


def test_a_name_that_is_there_and_a_cut_file_leave_all_as_it_was(brought, tmp_path):
    before = sorted(path.name for path in brought.iterdir())
    with pytest.raises(ForensicsError, match="olmo") as e:
        import_run(str(OLMO), brought, "olmo")
    assert e.value.kind == "usage"
    shutil.copytree(OLMO / "checkpoints", tmp_path / "cut")
    file = tmp_path / "cut" / "step4-unsharded" / "model.pt"
    file.write_bytes(file.read_bytes()[:-100_000])
    with pytest.raises(ForensicsError) as e:
        import_run(str(tmp_path / "cut"), brought, "half")
    assert e.value.kind in ("data", "integrity") and "model.pt" in str(e.value)
    assert sorted(path.name for path in brought.iterdir()) == before
