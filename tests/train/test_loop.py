"""Training runs, whole: the same bits whether recorded or not, interrupted, killed or left
alone.
"""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from forensics import config
from forensics.errors import ForensicsError
from forensics.records import TABLES
from forensics.step.state import TrainState
from forensics.train import checkpoint, loop
from forensics.train.advance import fold
from forensics.train.run import open_run
from replay.integrity import examine

CLOCK = {"seconds", "created"}  # columns that tell when, not what
STEPPED = ("steps", "layers", "heads", "tensors", "sequences", "tokens")


def rows(run, table):
    """A table's rows without the clock, in order of its key; fails where a key is there twice."""
    found = [
        {c: v for c, v in row.items() if c not in CLOCK} for row in run.table(table).to_pylist()
    ]
    keys = [tuple(row[k] for k in TABLES[table].key) for row in found]
    assert len(set(keys)) == len(keys) or table == "events", f"{table}: a row twice"
    return sorted(found, key=lambda row: tuple(row[k] for k in TABLES[table].key))


def same(a, b):
    """Equal, NaN being equal to NaN."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def assert_same_run(found, whole):
    for table in STEPPED:
        assert same(rows(found, table), rows(whole, table)), table
    assert set(whole.saved_steps()) <= set(found.saved_steps())
    for step in whole.saved_steps():
        assert found.load(step).digest() == whole.load(step).digest()
    spikes = [
        [e for e in rows(run, "events") if e["kind"] in ("spike", "nonfinite")]
        for run in (found, whole)
    ]
    assert same(*spikes)
    saved = {row["step"]: row["digest"] for row in rows(found, "checkpoints")}
    assert saved.keys() == set(found.saved_steps())
    assert all(saved[row["step"]] == row["digest"] for row in rows(whole, "checkpoints"))


def digests(run):
    return [row["state_digest"] for row in rows(run, "steps")]


def test_a_run_leaves_its_rows_checkpoints_and_header(tiny_run):
    steps = rows(tiny_run, "steps")
    assert [row["step"] for row in steps] == list(range(30))
    assert tiny_run.saved_steps() == [0, 10, 20, 30]
    assert [row["reason"] for row in rows(tiny_run, "checkpoints")] == [
        "first",
        "every",
        "every",
        "last",
    ]
    for row in rows(tiny_run, "checkpoints"):
        state = tiny_run.load(row["step"])
        assert state.digest() == row["digest"] and state.counters.step == row["step"]
        if row["step"]:
            assert steps[row["step"] - 1]["state_digest"] == row["digest"]
    assert [row["step"] for row in steps if row["held_out_loss"] is not None] == [9, 19, 29]
    assert (
        tiny_run.header.status == "finished"
        and open_run(tiny_run.runs, "tiny").header == tiny_run.header
    )
    assert all(len(rows(tiny_run, table)) > 0 for table in STEPPED if table != "tokens")


@pytest.mark.parametrize("level", ["off", "dense"])
def test_no_level_of_recording_changes_a_digest(level, tiny_run, train_run):
    other = train_run(
        f"level-{level}", **{"record.level": level, "train.steps": 12, "train.schedule_steps": 30}
    )
    assert digests(other) == digests(tiny_run)[:12]


def test_an_unrecorded_fold_gives_the_recorded_digests(tiny_run):
    found = []
    state = tiny_run.load(0)
    fold(
        state,
        tiny_run.stream,
        tiny_run.policy,
        30,
        tiny_run.model,
        after=lambda s, r: found.append(s.digest()),
    )
    assert found == digests(tiny_run)
    start = TrainState.start(loop.initialize(tiny_run.shape, "normal", 0))
    assert start.digest() == tiny_run.load(0).digest()


def test_the_state_at_any_step_is_the_one_that_was_recorded(tiny_run):
    for step in (0, 1, 10, 17, 30):
        assert tiny_run.state_at(step).counters.step == step
        if step:
            assert tiny_run.state_at(step).digest() == digests(tiny_run)[step - 1]


def stop_after(step):
    """A progress report that asks the trainer to stop, as Ctrl-C does, once `step` steps are
    done.
    """

    def report(done, total, text=""):
        if done == step:
            signal.raise_signal(signal.SIGINT)

    return report


@pytest.mark.parametrize("at", [1, 10, 14, 29])
def test_a_run_that_is_interrupted_and_resumed_is_the_run_that_was_not(
    at, tiny_run, recipe_of, train_run, runs
):
    name = f"stopped-{at}"
    # the worst moment: whether this step is saved has been decided already
    outcome = loop.train(
        recipe_of(), name=name, recipe_name="tiny", runs=runs, progress=stop_after(at)
    )
    stopped = open_run(runs, name)
    if at < 29:
        assert outcome.interrupted and outcome.steps == stopped.last_step() in (
            at,
            at + 1,
        ), "no checkpoint where it stopped"
        assert stopped.header.status == "interrupted"
        assert [e["kind"] for e in rows(stopped, "events")] == ["interrupt"]
        assert [row["step"] for row in rows(stopped, "steps")] == list(range(outcome.steps))
    run = train_run(name, resume=True)
    assert run.header.status == "finished"
    assert_same_run(run, tiny_run)
    if at < 29:
        assert [e["kind"] for e in rows(run, "events")] == ["interrupt", "resume"]


def test_a_run_that_is_interrupted_twice_is_still_the_same(tiny_run, recipe_of, train_run, runs):
    for at in (3, 12):
        loop.train(
            recipe_of(),
            name="twice",
            recipe_name="tiny",
            runs=runs,
            resume=True,
            progress=stop_after(at),
        )
    assert_same_run(train_run("twice", resume=True), tiny_run)


def test_resuming_a_finished_run_changes_nothing(runs, train_run):
    run = train_run("done", **{"train.steps": 4})
    before = {t: rows(run, t) for t in TABLES}
    again = train_run("done", resume=True, **{"train.steps": 4})
    assert same({t: rows(again, t) for t in TABLES}, before)


def test_another_recipe_or_an_existing_name_is_refused(tiny_run, recipe_of, runs):
    with pytest.raises(ForensicsError) as e:
        loop.train(recipe_of(), name="tiny", recipe_name="tiny", runs=runs)
    assert e.value.kind == "usage"
    with pytest.raises(ForensicsError, match=r"train\.learning_rate") as e:
        loop.train(
            recipe_of(**{"train.learning_rate": 1.0}),
            name="tiny",
            recipe_name="tiny",
            runs=runs,
            resume=True,
        )
    assert e.value.kind == "config"


ENDINGS = {"interrupt": 14, "kill": 17, "kill-in-save": 20}  # how a process ends, and at which step
SCRIPT = """
    import json, os, signal, sys, time
    from pathlib import Path
    from forensics import config
    from forensics.store import manifest
    # imported once; each ending is a fork of this process, made before torch has threads
    from forensics.train import loop

    recipe, runs, endings = sys.argv[1:]

    def run(how, at):
        number = signal.SIGINT if how == "interrupt" else signal.SIGKILL

        def wait_for_rows_past_the_checkpoint():  # they are written behind the run
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                parts = manifest.load(Path(runs) / how, "steps", fresh=True).parts
                if any(part.last >= 10 for part in parts):
                    break
                time.sleep(0.001)

        def report(step, total, text=""):
            if step == at and how != "kill-in-save":
                if how == "kill":
                    wait_for_rows_past_the_checkpoint()
                os.kill(os.getpid(), number)

        save = loop.checkpoint.save

        def save_then_die(folder, state, *arguments):
            # the folder is in place, nothing else is written any more
            written = save(folder, state, *arguments)
            if state.counters.step == at:
                os.kill(os.getpid(), number)
            return written

        if how == "kill-in-save":
            loop.checkpoint.save = save_then_die
        outcome = loop.train(
            config.load(recipe), name=how, recipe_name="tiny", runs=Path(runs), progress=report
        )
        os._exit(130 if outcome.interrupted else 0)

    codes = {}
    for how, at in json.loads(endings).items():
        child = os.fork()
        if child == 0:
            run(how, at)
        codes[how] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps(codes))
"""


def toml(recipe):
    def text(value):
        return "true" if value is True else "false" if value is False else json.dumps(value)

    lines = []
    for section, keys in config.to_dict(recipe).items():
        lines.append(f"[{section}]")
        lines += [
            f"{k} = {text(v)}"
            for k, v in keys.items()
            if v is not None and v != {} and k != "phases"
        ]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def ended(recipe_of, runs, tiny_run, tmp_path_factory):
    """Exit codes of processes that trained the tiny recipe under the names of ENDINGS and were
    ended so.
    """
    folder = tmp_path_factory.mktemp("process")
    (folder / "recipe.toml").write_text(toml(recipe_of()))
    (folder / "script.py").write_text(textwrap.dedent(SCRIPT))
    command = [
        sys.executable,
        str(folder / "script.py"),
        str(folder / "recipe.toml"),
        str(runs),
        json.dumps(ENDINGS),
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(config.__file__).parents[1])}
    process = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert process.returncode == 0 and "Traceback" not in process.stderr, process.stderr
    return json.loads(process.stdout)


@pytest.mark.parametrize("how", ENDINGS)
def test_a_process_that_is_interrupted_or_killed_is_resumed_as_if_it_had_not_been(
    how, ended, tiny_run, train_run, runs
):
    assert ended[how] == (130 if how == "interrupt" else -signal.SIGKILL)
    if how == "kill":
        assert open_run(runs, how).header.status == "running"
        assert max(row["step"] for row in rows(open_run(runs, how), "steps")) >= 10, (
            "rows past the last checkpoint"
        )
    assert_same_run(train_run(how, resume=True), tiny_run)


def test_a_step_that_goes_to_nan_is_an_event_with_its_first_tensor_and_nothing_crashes(train_run):
    run = train_run(
        "nan",
        **{"train.learning_rate": 1e30, "train.warmup": 0, "train.steps": 6, "train.clip": 0.0},
    )
    steps, events = rows(run, "steps"), [e for e in rows(run, "events") if e["kind"] == "nonfinite"]
    assert math.isfinite(steps[0]["loss"]) and not math.isfinite(steps[-1]["loss"])
    first = next(row["step"] for row in steps if not math.isfinite(row["loss"]))
    assert events and events[0]["step"] <= first and events[0]["tensor"]
    assert len(steps) == 6 and run.header.status == "finished" and run.saved_steps() == [0, 6]
    assert run.load(6).digest() == steps[-1]["state_digest"]


def test_states_that_are_not_finite_are_marked_and_not_gone_on_from(recipe_of, train_run, runs):
    settings = {"train.learning_rate": 1e30, "train.warmup": 0, "train.steps": 12}
    settings |= {"train.clip": 0.0, "checkpoint.every": 4}
    outcome = loop.train(
        recipe_of(**settings),
        name="nan-stopped",
        recipe_name="tiny",
        runs=runs,
        progress=stop_after(9),  # it ends after the step that comes next
    )
    assert outcome.nonfinite > 0 and outcome.last_finite_state == 0
    run = open_run(runs, "nan-stopped")
    marks = {row["step"]: row["nonfinite"] for row in rows(run, "checkpoints")}
    assert marks[0] == 0 and sorted(marks) == [0, 4, 8, 10]
    for step in (4, 8, 10):
        assert marks[step] == run.nonfinite_at(step).numbers > 0
        assert marks[step] == run.load(step).nonfinite().numbers
    assert run.last_finite_step() == 0
    with pytest.raises(ForensicsError, match="checkpoint 10 of nan-stopped that are not") as e:
        train_run("nan-stopped", resume=True, **settings)
    assert e.value.kind == "mismatch" and "the last finite state saved is 0" in e.value.hint
    assert [row["step"] for row in rows(run, "steps")] == list(range(10)), "nothing was cut"
    found = examine(runs, "nan-stopped")
    assert found.nonfinite_states == (4, 8, 10) and found.last_finite_state == 0
    assert found.problems == (), "the files are as they were written"


def test_a_checkpoint_of_before_it_was_marked_is_looked_through(train_run):
    run = train_run("unmarked", **{"train.steps": 2})
    path = run.folder / "checkpoints" / "step-000002" / "state.json"
    document = json.loads(path.read_bytes())
    del document["nonfinite"]
    path.write_text(json.dumps(document))
    with pytest.raises(ForensicsError, match=r"state\.json has other bytes"):
        run.nonfinite_at(2)  # it was read, hash by hash
    assert run.nonfinite_at(0) == (0, None)


def test_a_tiny_corpus_is_learnt_by_heart(train_run, runs, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_text("The quick brown fox jumps over the lazy dog. " * 4)
    run = train_run(
        "heart",
        **{
            "data.source": str(text),
            "data.held_out": 0,
            "train.steps": 50,
            "train.warmup": 2,
            "checkpoint.every": 0,
            "record.level": "off",
        },
    )
    losses = [row["loss"] for row in rows(run, "steps")]
    assert losses[0] > 5 and losses[-1] < 0.5, (losses[0], losses[-1])


def test_a_full_disk_ends_the_run_with_a_storage_error_and_resume_goes_on(
    tiny_run, recipe_of, train_run, runs, monkeypatch
):
    real = checkpoint.save

    def full(folder, state, *rest):
        if state.counters.step == 20:
            raise ForensicsError(
                "storage",
                "could not write checkpoint step-000020: No space left on device",
                "free some space",
            )
        return real(folder, state, *rest)

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(ForensicsError) as e:
        loop.train(recipe_of(), name="full", recipe_name="tiny", runs=runs)
    assert e.value.kind == "storage"
    assert open_run(runs, "full").header.status == "failed"
    monkeypatch.undo()
    assert_same_run(train_run("full", resume=True), tiny_run)


def test_a_run_killed_before_its_first_checkpoint_starts_over(
    tiny_run, recipe_of, train_run, runs, monkeypatch
):
    monkeypatch.setattr(loop.Trainer, "run_to_end", lambda self, resumed: None)
    loop.train(recipe_of(), name="nothing", recipe_name="tiny", runs=runs)
    monkeypatch.undo()
    assert_same_run(train_run("nothing", resume=True), tiny_run)


def test_a_spike_writes_the_ring_of_states_before_it(train_run, runs, tmp_path):
    """70 steps of one text, then one batch of other bytes: a spike that the detector sees."""
    clean, odd = tmp_path / "clean", tmp_path / "odd"
    for folder, text in (
        (clean, "abcd" * 2000),
        (odd, "".join(chr(33 + (i * i * 7) % 90) for i in range(4000))),
    ):
        folder.mkdir()
        (folder / "a.txt").write_text(text)
    settings = {
        "data.source": "stdlib",
        "data.sources": {"clean": str(clean), "odd": str(odd)},
        "data.held_out": 0,
        "data.phases": [
            {"until": 80, "mix": {"clean": 1.0}},
            {"until": 81, "mix": {"odd": 1.0}},
            {"mix": {"clean": 1.0}},
        ],
        "train.steps": 95,
        "checkpoint.every": 0,
        "checkpoint.ring": 4,
        "record.level": "off",
        "train.learning_rate": 3e-3,
    }
    run = train_run("ring", **settings)
    loss = [row["loss"] for row in rows(run, "steps")]
    assert loss[80] > 2 * loss[79]
    events = rows(run, "events")
    assert {80} <= {e["onset"] for e in events if e["kind"] == "spike"}
    ring = [row["step"] for row in rows(run, "checkpoints") if row["reason"] == "ring"]
    assert 80 in ring and 81 in ring, (ring, events)
    for step in ring:
        assert run.load(step).digest() == rows(run, "steps")[step - 1]["state_digest"]
