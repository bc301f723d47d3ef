"""The way out: trackers are told what is recorded, change no bit, and never stop the training."""

import json
import math
from pathlib import Path

import pytest

from forensics import config, identity
from forensics.errors import ForensicsError
from forensics.logs.read import read_logs
from forensics.logs.trackers import follow
from forensics.logs.trackers.follow import Trackers, target_of
from forensics.logs.trackers.protocol import TrackedRun
from forensics.logs.trackers.sent import Sent
from forensics.store import reader
from forensics.train.loop import train

STEPS, STOPPED = 12, 7


def recipe():
    identity.enable_determinism(1)
    return config.from_dict(
        {
            "data": {"source": "stdlib/json", "tokenizer": "bytes", "sequence_length": 16},
            "model": {"layers": 1, "width": 16, "heads": 2},
            "train": {"steps": STEPS, "batch": 2, "warmup": 2, "threads": 1, "device": "cpu"},
            "checkpoint": {"every": 5},
            "record": {"level": "off"},
        }
    )


def trained(runs, name, log_to=(), **more):
    warnings = []
    outcome = train(
        recipe(),
        name=name,
        recipe_name="tiny",
        runs=runs,
        log_to=log_to,
        warn=warnings.append,
        **more,
    )
    return outcome, warnings


class Stopped(Exception):
    """Stands for whatever kills a run."""


def stop(done, total, note):
    if done == STOPPED:
        raise Stopped


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`plain`, and `told`, which was killed at step 7 and went on from checkpoint 5."""
    folder = tmp_path_factory.mktemp("trackers")
    trained(folder / "runs", "plain")
    with pytest.raises(Stopped):
        trained(folder / "runs", "told", [f"tensorboard:{folder / 'tb'}"], progress=stop)
    trained(folder / "runs", "told", [f"tensorboard:{folder / 'tb'}"], resume=True)
    return folder / "runs"


def recorded(runs, name):
    return reader.read(runs / name, "steps").to_pylist()


def test_logging_changes_no_bit(runs):
    digests = [[row["state_digest"] for row in recorded(runs, name)] for name in ("plain", "told")]
    assert digests[0] == digests[1] and None not in digests[0]


def test_event_files_hold_every_step_once_over_a_resume(runs):
    files = sorted((runs.parent / "tb" / "told").iterdir())
    assert len(files) == 2
    table = read_logs([runs.parent / "tb" / "told"])
    assert table.series("loss").steps.tolist() == list(range(STEPS))
    assert table.summary.repeated == 1  # the step between the checkpoint and the end
    assert (table.summary.trainer, table.summary.step_base) == ("forensics", 0)
    for name in ("loss", "lr", "grad_norm", "param_norm"):
        told = table.metrics[name].values.tolist() if name in table.metrics else []
        rows = [row[name] for row in recorded(runs, "told") if row[name] is not None]
        assert told == pytest.approx(rows, rel=1e-6)  # float32, as TensorBoard's scalars are


def test_tensorboard_reads_them_as_we_do(runs):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(runs.parent / "tb" / "told")).Reload()
    assert [e.step for e in events.Scalars("loss")] == list(range(STEPS))
    table = read_logs([runs.parent / "tb" / "told"])
    assert [e.value for e in events.Scalars("loss")] == table.series("loss").values.tolist()


def row_of(step, **more):
    return {"step": step, "loss": 1.0 / (step + 1), "lr": None, "update": "apply"} | more


def tracked(tmp_path, first_step=0):
    (tmp_path / "run").mkdir(exist_ok=True)
    return TrackedRun("one", tmp_path / "run", "2026-01-01T00:00:00Z", {"a": 1}, first_step)


def told(tmp_path, target, steps, first_step=0):
    warnings = []
    trackers = Trackers([target_of(target)], tracked(tmp_path, first_step), warnings.append)
    for step in steps:
        trackers.log(row_of(step))
    trackers.close()
    return trackers.followed()[0], warnings


def test_numbers_that_are_not_finite_go_out_as_they_are(tmp_path):
    trackers = Trackers([target_of("tensorboard")], tracked(tmp_path), pytest.fail)
    for step, loss in enumerate((math.nan, -math.inf, 1e300)):
        trackers.log(row_of(step, loss=loss))
    trackers.close()
    values = read_logs([tmp_path / "run" / "tensorboard" / "one"]).metrics["loss"].values
    assert math.isnan(values[0]) and values[1:].tolist() == [-math.inf, math.inf]


def test_wandb_is_told_every_step_once_over_a_resume(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert told(tmp_path, "wandb:mine", range(8)) == (follow.Followed("wandb", "mine", 8, None), [])
    told(tmp_path, "wandb:mine", range(5, STEPS), first_step=5)
    files = sorted(tmp_path.rglob("*.wandb"), key=lambda path: path.stat().st_mtime)
    assert len(files) == 2 and files[0].name == files[1].name  # one run, taken up again
    table = read_logs(files)
    assert table.series("loss").values.tolist() == [1.0 / (s + 1) for s in range(STEPS)]
    assert table.summary.repeated == 0


def test_trackio_is_told_every_step_once_over_a_resume(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    assert told(tmp_path, "trackio:mine", range(8))[1] == []
    told(tmp_path, "trackio:mine", range(5, STEPS), first_step=5)
    (project,) = Path(tmp_path / "trackio").glob("*.db")
    table = read_logs([project])
    assert table.series("loss").values.tolist() == [1.0 / (s + 1) for s in range(STEPS)]
    assert table.summary.repeated == 0


def test_a_tracker_that_fails_is_let_go_with_one_line(tmp_path, monkeypatch):
    class Broken:
        def log(self, step, numbers):
            raise ConnectionError("no route to host\nat all")

        def close(self):
            raise AssertionError("it was let go")

    monkeypatch.setattr(follow, "_tracker", lambda target, run: Broken())
    outcome, warnings = told(tmp_path, "wandb:mine", range(3))
    assert warnings == ["wandb is not told of this run: no route to host"]
    assert (outcome.steps, outcome.problem) == (0, "no route to host")


def test_a_package_that_is_not_there_is_one_line_and_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(follow.KINDS, "wandb", ("weights_and_biases", "WandbRun", "wandb"))
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    outcome, warnings = trained(tmp_path, "alone", ["wandb"])
    assert outcome.steps == STEPS
    assert len(warnings) == 1 and "`pip install wandb`" in warnings[0]
    assert outcome.trackers[0].problem


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    outcome, warnings = told(tmp_path, f"tensorboard:{tmp_path / 'file'}", range(2))
    assert len(warnings) == 1 and outcome.problem


@pytest.mark.parametrize("text", ["tensorbord:x", "", "mlflow"])
def test_an_unknown_tracker_is_refused_before_anything_is_made(tmp_path, text):
    with pytest.raises(ForensicsError, match="wanted a tracker as KIND:WHERE"):
        trained(tmp_path, "none", [text])
    assert not (tmp_path / "none").exists()


def test_what_was_sent_is_known_after_a_kill(tmp_path):
    sent = Sent(tmp_path, "wandb", "p")
    assert [sent.begin(step) for step in (0, 1, 2)] == [True] * 3
    again = Sent(tmp_path, "wandb", "p")  # the first was never closed
    assert [again.begin(step) for step in (1, 2, 3)] == [False, False, True]
    again.close()
    sent.close()
    assert Sent(tmp_path, "wandb", "another").next == 0


def test_the_outcome_of_a_run_that_was_told_is_plain_json(runs):
    import dataclasses

    from forensics.json_documents import dumps

    document = json.loads(dumps(dataclasses.asdict(follow.Followed("wandb", "p", 3, None))))
    assert document == {"kind": "wandb", "where": "p", "steps": 3, "problem": None}
