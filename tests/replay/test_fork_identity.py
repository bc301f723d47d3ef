"""A fork's name stands for everything that it depends on: nothing finished or half-run is taken for
another fork, and nothing is lost to a name.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forensics.errors import ForensicsError
from forensics.train.header import write_header
from forensics.train.run import open_run
from replay.cli.main import main
from replay.forks import run as fork_run
from replay.forks.plan import plan
from replay.forks.result import RESULT_FILE
from replay.forks.spec import Spec
from replay.interventions.no_update import Skip
from replay.interventions.order import Drop, Swap
from replay.interventions.policy import LearningRate
from replay.interventions.removal import RemoveSequences
from replay.interventions.state import Transplant

ONE = Spec("base", 75, 79, (LearningRate(75, 79, 0.5),), chaos=1, name="one")


@pytest.fixture(scope="module")
def forked(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder in which `one` is done, and no test changes it."""
    runs = tmp_path_factory.mktemp("identity") / "runs"
    shutil.copytree(trained, runs)
    fork_run.fork(ONE, runs)
    return runs


@pytest.fixture
def runs(forked: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy that a test may write to."""
    shutil.copytree(forked, tmp_path / "runs")
    yield tmp_path / "runs"


def asked(**changes: Any) -> Spec:
    return dataclasses.replace(ONE, **changes)


def stamp(runs: Path, name: str = "one") -> int:
    return (runs / name / RESULT_FILE).stat().st_mtime_ns


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            {"interventions": (Skip(76, 77),)},
            "one that skips steps 76:77; found one that multiplies the learning rate by 0.5 in",
        ),
        ({"last": 80, "interventions": (LearningRate(75, 79, 0.5),)}, "from 75 to 80; found from"),
        ({"interventions": ()}, "one that changes nothing; found one that multiplies"),
        ({"chaos": 0, "placebos": 2}, "placebos = 2, chaos = 0, found it with placebos = 0"),
        ({"seed": 4}, "seed = 4, found it with seed = 0"),
        ({"record": "dense", "chaos": 0}, "record = dense, found it with chaos = 1, record = li"),
    ],
)
def test_a_name_never_stands_for_another_fork(
    other: dict[str, Any], words: str, forked: Path
) -> None:
    before = stamp(forked)
    for call in (fork_run.fork, plan):
        with pytest.raises(ForensicsError, match=words) as e:
            call(asked(**other), forked)
        assert e.value.exit_code == 2 and "--name" in e.value.hint and "--again" in str(e.value)
    assert stamp(forked) == before


def test_a_finished_fork_answers_what_it_holds_and_more_runs_anew(runs: Path) -> None:
    before = stamp(runs)
    for fewer in ({}, {"chaos": 0}, {"chaos": 0, "seed": 9}, {"record": "off"}, {"probe_every": 2}):
        assert fork_run.fork(asked(**fewer), runs).chaos == 1
    assert stamp(runs) == before
    more = fork_run.fork(asked(chaos=2), runs)
    assert more.chaos == 2 and stamp(runs) > before
    assert more.final.logit_kl is not None


def test_rows_that_differ_are_named_where_the_sentences_agree(runs: Path) -> None:
    one = Spec("base", 75, 77, (RemoveSequences(75, 77, ((75, 1, 0, 32),)),), name="rows")
    fork_run.fork(one, runs)
    other = dataclasses.replace(one, interventions=(RemoveSequences(75, 77, ((75, 2, 0, 32),)),))
    with pytest.raises(ForensicsError, match=r"the same with other remove-sequences\.at"):
        fork_run.fork(other, runs)


def test_a_half_run_fork_goes_on_as_itself_alone(runs: Path) -> None:
    half = asked(name="half", last=85, interventions=(LearningRate(80, 84, 3.0),))

    def ctrl_c(done: int, total: int, note: str) -> None:
        if done == 6:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fork_run.fork(half, runs, ctrl_c)
    steps: list[int] = []

    def count(done: int, total: int, note: str) -> None:
        steps.append(done)

    for other in ({"interventions": (LearningRate(80, 84, 2.0),)}, {"chaos": 0}):
        with pytest.raises(ForensicsError, match="half"):
            fork_run.fork(dataclasses.replace(half, **other), runs, count)
    assert not steps
    fork_run.fork(dataclasses.replace(half, probe_every=None), runs, count)
    assert steps == [7, 8, 9, 10]
    steps.clear()
    changed = dataclasses.replace(half, interventions=(LearningRate(80, 84, 2.0),))
    fork_run.fork(changed, runs, count, again=True)
    assert steps[0] == 1
    assert open_run(runs, "half").header.interventions[0]["factor"] == 2.0  # type: ignore[index]


@pytest.mark.parametrize("again", [False, True])
def test_no_fork_takes_the_name_of_its_parent_an_ancestor_or_a_stranger(
    again: bool, runs: Path
) -> None:
    header = open_run(runs, "base").header
    write_header(runs, dataclasses.replace(header, name="stranger"))
    (runs / "folder").mkdir()
    (runs / "folder" / "mine.txt").write_text("mine")
    kept = {p: p.read_bytes() for p in (runs / "base" / "run.json", runs / "one" / "run.json")}
    for parent, name, words in (
        ("base", "base", "found 'base', its parent"),
        ("one", "one", "found 'one', its parent"),
        ("one", "base", "found 'base', an ancestor of one"),
        ("base", "stranger", "found a run of its own"),
        ("base", "folder", "a folder that is no run"),
        ("stranger", "one", "found a fork of base"),
    ):
        spec = Spec(parent, 76, 78, (), name=name)
        with pytest.raises(ForensicsError, match=words) as e:
            fork_run.fork(spec, runs, again=again)
        assert e.value.exit_code == 2 and e.value.hint == "give the fork another --name"
    assert {p: p.read_bytes() for p in kept} == kept


def test_again_puts_another_fork_in_the_place_with_nothing_of_the_old_one_left(runs: Path) -> None:
    other = asked(first=80, last=83, interventions=(Skip(81, 82),))
    result = fork_run.fork(other, runs, again=True)
    assert (result.first, result.last) == (80, 83)
    run = open_run(runs, "one")
    assert run.saved_steps() == [80, 83]
    assert sorted(run.table("steps", ["step"])["step"].to_pylist()) == [80, 81, 82]
    assert fork_run.fork(other, runs) == result


def test_a_fork_that_has_forks_is_made_anew_only_as_itself(runs: Path) -> None:
    child = Spec("one", 77, 79, (Swap(77, 78),), name="child")
    before = fork_run.fork(child, runs)
    with pytest.raises(ForensicsError, match="found child, which is a fork of the one"):
        fork_run.fork(asked(interventions=(Skip(76, 77),)), runs, again=True)
    fork_run.fork(ONE, runs, again=True)  # the same bits: its fork stands
    assert fork_run.fork(child, runs) == before


def test_a_parent_that_was_trained_anew_has_other_forks(runs: Path) -> None:
    header = open_run(runs, "base").header
    write_header(runs, dataclasses.replace(header, created="2031-01-01T00:00:00Z"))
    words = "wanted a fork of the run made at 2031-.*; found one of the run made at 2"
    with pytest.raises(ForensicsError, match=words):
        fork_run.fork(ONE, runs)
    with pytest.raises(ForensicsError, match="another run of that name"):  # not one's parent
        fork_run.fork(Spec("one", 77, 79, (), name="child"), runs)


def test_a_donor_that_changed_is_another_fork(runs: Path) -> None:
    one = Spec("base", 75, 77, (Transplant("base@50", ("embed.weight",)),), name="given")
    fork_run.fork(one, runs)
    path = runs / "base" / "checkpoints" / "step-000050" / "state.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"digest": "0" * 32}))
    with pytest.raises(ForensicsError, match=r"tensors of base@50 \(digest 00000000\); found bas"):
        fork_run.fork(one, runs)


def test_a_fork_from_before_identities_is_said_to_be_one(runs: Path) -> None:
    header = open_run(runs, "one").header
    write_header(runs, dataclasses.replace(header, identity=None))
    with pytest.raises(ForensicsError, match="before forks wrote down all that they depend on"):
        fork_run.fork(ONE, runs)
    assert fork_run.fork(ONE, runs, again=True).chaos == 1


def test_the_command_refuses_in_one_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for extra in ([], ["--dry-run"]):
        flags = ["--from", "75", "--to", "79", "--drop", "76:77", "--name", "one", *extra]
        with pytest.raises(SystemExit) as e:
            main.main(["fork", "base", *flags, "--runs", str(runs)])
        err = capsys.readouterr().err
        assert e.value.code == 2 and "Traceback" not in err and len(err.splitlines()) == 1
        assert "one that drops batches 76:77, later ones move up; found one that mult" in err
    assert Drop(76, 77).sentence() in err
