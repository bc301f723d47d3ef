import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import forensics.store.parts as parts_module
from forensics.errors import ForensicsError
from forensics.store import manifest
from forensics.store.reader import problems, read
from forensics.store.writer import HAND_OVERS, Writer


def steps_of(run_folder, table="steps"):
    return read(run_folder, table)["step"].to_pylist()


def put(writer, step):
    writer.append("steps", step=step, loss=float(step))
    writer.append(
        "heads", step=step, layer=0, head=np.arange(3), attn_logit_max=np.arange(3.0) + step
    )


@pytest.fixture
def disk(monkeypatch):
    """`disk.full = True` makes every sync fail, `disk.failures = 1` the next one; `disk.go.clear()`
    makes it hang until `disk.go.set()`.
    """

    class Disk:
        full = False
        failures = 0
        go = threading.Event()
        threads: set[str] = set()  # noqa: RUF012

        def sync(self, _):
            self.threads.add(threading.current_thread().name)
            assert self.go.wait(30)
            self.failures -= 1
            if self.full or self.failures >= 0:
                raise OSError(28, "No space left on device")

    found = Disk()
    found.go.set()
    monkeypatch.setattr(parts_module.os, "fsync", found.sync)
    yield found
    found.go.set()


def wait_until(true):
    limit = time.monotonic() + 30
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.002)


def test_a_flush_does_not_wait_for_a_disk_that_hangs_until_two_are_unwritten(run_folder, disk):
    writer = Writer(run_folder, background=True)
    disk.go.clear()
    longest = 0.0
    for step in range(HAND_OVERS):
        put(writer, step)
        started = time.perf_counter()
        writer.flush()
        longest = max(longest, time.perf_counter() - started)
    put(writer, 2)  # appending does not wait either
    assert longest < 1.0 and steps_of(run_folder) == []
    third = threading.Thread(target=writer.flush)
    third.start()
    third.join(0.2)
    assert third.is_alive(), "the third waits: that is the bound"
    disk.go.set()
    third.join(30)
    writer.drain()
    assert steps_of(run_folder) == [0, 1, 2]
    writer.close()
    assert {name.split("_")[0] for name in disk.threads} == {
        "store",
        "MainThread",
    }  # the roll-up's last part, at close


def test_nothing_is_synced_by_the_run_before_it_closes(run_folder, disk):
    with Writer(run_folder, background=True) as writer:
        for step in range(230):
            put(writer, step)
            if step % 20 == 0:
                writer.flush()
        writer.drain()
        assert {name.split("_")[0] for name in disk.threads} == {"store"}
        assert steps_of(run_folder) == list(range(230))


def test_arrays_may_be_written_into_once_they_are_appended(run_folder, disk):
    heads, values, weights = np.arange(3), np.zeros(3), [0.5, 1.5, 2.5]
    with Writer(run_folder, background=True) as writer:
        disk.go.clear()
        for step in range(2):
            values[:] = step
            writer.append(
                "heads", step=step, layer=0, head=heads, attn_logit_max=values, sink_mass=weights
            )
            writer.flush()
        values[:], heads[:], weights[:] = -1, -1, []
        disk.go.set()
    got = read(run_folder, "heads")
    assert got["head"].to_pylist() == [0, 1, 2] * 2
    assert got["attn_logit_max"].to_pylist() == [0.0] * 3 + [1.0] * 3
    assert got["sink_mass"].to_pylist() == [0.5, 1.5, 2.5] * 2


@pytest.mark.parametrize("at", ["append", "flush", "drain", "close"])
def test_a_write_that_fails_is_raised_once_at_the_next_call_and_close_neither_repeats_it_nor_hangs(
    run_folder, disk, at
):
    writer = Writer(run_folder, background=True)
    put(writer, 0)
    writer.drain()
    disk.full = True
    put(writer, 1)
    writer.flush()
    wait_until(lambda: writer._handed[0][0].done())
    call = {
        "append": lambda: put(writer, 2),
        "flush": writer.flush,
        "drain": writer.drain,
        "close": writer.close,
    }[at]
    with pytest.raises(ForensicsError, match="No space left") as e:
        call()
    assert e.value.kind == "storage"
    writer.close()
    writer.close()
    assert writer._thread is None
    assert steps_of(run_folder) == [0] and steps_of(run_folder, "heads") == [0] * 3
    assert problems(run_folder) == []


def test_what_could_not_be_written_is_written_in_order_once_there_is_room(run_folder, disk):
    writer = Writer(run_folder, background=True)
    disk.full = True
    disk.go.clear()
    for step in range(2):
        put(writer, step)
        writer.flush()
    put(writer, 2)
    disk.go.set()
    with pytest.raises(ForensicsError):
        writer.drain()
    assert steps_of(run_folder) == []
    disk.full = False
    put(writer, 3)
    writer.drain()
    assert steps_of(run_folder) == [0, 1, 2, 3]
    assert steps_of(run_folder, "heads") == [s for s in range(4) for _ in range(3)]
    writer.close()


def test_what_was_handed_over_behind_a_failure_is_not_written_before_it(run_folder, disk):
    writer = Writer(run_folder, background=True)
    disk.go.clear()
    for step in range(2):
        put(writer, step)
        writer.flush()
    disk.failures = 1  # there is room again when the second hand-over has its turn
    disk.go.set()
    with pytest.raises(ForensicsError):
        writer.drain()
    assert steps_of(run_folder) == [] and steps_of(run_folder, "heads") == []
    writer.drain()
    assert steps_of(run_folder) == [0, 1] and steps_of(run_folder, "heads") == [0] * 3 + [1] * 3


def test_a_failure_after_one_that_was_told_is_told_too(run_folder, disk):
    writer = Writer(run_folder, background=True)
    disk.full = True
    for _ in range(2):
        put(writer, 0)
        writer.flush()
        with pytest.raises(ForensicsError):
            writer.drain()
    disk.full = False
    writer.drain()
    assert steps_of(run_folder) == [0, 0]


def test_a_manifest_whose_folder_could_not_be_synced_is_put_back(run_folder, monkeypatch):
    def broken(_):
        raise OSError(5, "Input/output error")

    writer = Writer(run_folder)
    writer.append("steps", step=0)
    writer.flush()
    before = (run_folder / "tables/steps/manifest.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(parts_module, "_sync_folder", broken)
        writer.append("steps", step=1)
        with pytest.raises(ForensicsError, match="Input/output"):
            writer.flush()
        assert (run_folder / "tables/steps/manifest.json").read_bytes() == before
    writer.close()
    assert steps_of(run_folder) == [0, 1], "not twice"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_one_line(run_folder):
    run_folder.chmod(0o500)
    try:
        writer = Writer(run_folder, background=True)
        put(writer, 0)
        writer.flush()
        with pytest.raises(ForensicsError, match="Permission denied"):
            writer.drain()
        writer.close()
    finally:
        run_folder.chmod(0o700)


def test_a_folder_that_is_a_file_is_one_line(run_folder):
    (run_folder / "tables").write_text("in the way")
    writer = Writer(run_folder, background=True)
    put(writer, 0)
    writer.flush()
    with pytest.raises(ForensicsError, match="could not write") as e:
        writer.drain()
    assert e.value.kind == "storage"
    writer.close()


FAULTS = st.lists(
    st.sampled_from(["step", "step", "step", "flush", "drain", "full", "room", "full at sync 3"]),
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(FAULTS, st.booleans())
def test_faults_at_any_sync_lose_no_row_and_write_none_twice(actions, background):
    real = os.fsync
    left = [10**9]  # syncs until the disk is full

    def sync(_):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")

    with tempfile.TemporaryDirectory() as folder:
        os.fsync = sync
        try:
            writer, step, appended = Writer(folder, background), 0, []
            for action in [*actions, "room"]:
                try:
                    if action == "step":
                        writer.append("steps", step=step, loss=1.0)
                        appended.append(step)
                        step += 40
                    elif action in ("flush", "drain"):
                        getattr(writer, action)()
                    else:
                        left[0] = {"full": 0, "room": 10**9, "full at sync 3": 3}[action]
                except ForensicsError as e:
                    assert e.kind == "storage"
                written = steps_of(folder) if not background else []
                assert written == appended[: len(written)]
            try:
                writer.drain()
            except ForensicsError:  # of a flush before there was room
                writer.drain()
            assert steps_of(folder) == appended
            writer.close()
            assert steps_of(folder) == appended and problems(folder) == []
            rolled = read(folder, "steps_by100").select(["bucket", "rows"]).to_pylist()
            assert {r["bucket"]: r["rows"] for r in rolled} == {
                b: sum(s // 100 * 100 == b for s in appended)
                for b in {s // 100 * 100 for s in appended}
            }
        finally:
            os.fsync = real


def test_after_a_full_disk_a_resumed_run_has_every_row_once(run_folder, disk):
    writer = Writer(run_folder, background=True)
    for step in range(150):
        put(writer, step)
    writer.drain()  # checkpoint 150
    with pytest.raises(ForensicsError):
        for step in range(150, 400):
            disk.full = step > 230
            put(writer, step)
            if step % 10 == 0:
                writer.flush()
    writer.close()
    assert steps_of(run_folder) == list(range(len(steps_of(run_folder))))
    disk.full = False
    with Writer(run_folder, background=True) as writer:
        writer.truncate(150)
        for step in range(150, 310):
            put(writer, step)
            writer.flush()
    assert steps_of(run_folder) == list(range(310))
    assert [r["rows"] for r in read(run_folder, "steps_by100").to_pylist()] == [100, 100, 100, 10]
    assert problems(run_folder) == []


SCRIPT = """
    import sys
    import numpy as np
    from forensics.store.writer import Writer

    writer = Writer(sys.argv[1], background=True)
    for step in range(1_000_000):
        writer.append("steps", step=step, loss=float(step))
        maxima = np.arange(3.0) + step
        writer.append("heads", step=step, layer=0, head=np.arange(3), attn_logit_max=maxima)
        if step % 7 == 0:
            writer.flush()
        if step % 70 == 0:
            writer.drain()
            print(step, flush=True)
"""


def test_a_process_killed_while_it_writes_leaves_whole_parts_and_is_resumed(run_folder):
    code = textwrap.dedent(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path(parts_module.__file__).parents[2])}
    start = 0
    for wanted in (1, 3, 5):  # killed in three places, resumed each time from what was drained
        command = [
            sys.executable,
            "-c",
            code.replace("range(1_000_000)", f"range({start}, 1_000_000)"),
            str(run_folder),
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        drained = [int(process.stdout.readline()) for _ in range(wanted)][-1]
        time.sleep(0.003 * wanted)
        process.send_signal(signal.SIGKILL)
        drained = max([drained, *map(int, process.stdout.read().split())])
        process.wait(30)
        process.stdout.close()
        assert problems(run_folder) == []
        for table, each in (("steps", 1), ("heads", 3)):
            found = steps_of(run_folder, table)
            assert (
                found == [s for s in range(len(found) // each) for _ in range(each)]
                and len(found) // each > drained
            )
        start = drained + 1
        with Writer(run_folder) as writer:
            writer.truncate(start)
        assert steps_of(run_folder) == list(range(start))
        rows = (
            read(run_folder, "heads_by100")
            .group_by("bucket")
            .aggregate([("rows", "sum")])
            .to_pylist()
        )
        assert sum(r["rows_sum"] for r in rows) == 3 * start
    place = manifest.folder(run_folder, "heads")
    assert {p.name for p in place.glob("*.parquet")} == {
        p.file for p in manifest.load(run_folder, "heads").parts
    }


def test_a_writer_that_is_never_closed_does_not_keep_its_process(run_folder):
    code = (
        "import sys; from forensics.store.writer import Writer; w = Writer(sys.argv[1],"
        " background=True); w.append('steps', step=0); w.flush()"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(parts_module.__file__).parents[2])}
    subprocess.run(
        [sys.executable, "-c", code, str(run_folder)], timeout=60, check=True, env=environment
    )
    assert steps_of(run_folder) == [0], "what was handed over is written before it ends"


def test_the_thread_changes_no_setting_of_torch(run_folder):
    import torch

    def settings_now():
        return (
            torch.get_num_threads(),
            torch.get_rng_state().tolist(),
            torch.are_deterministic_algorithms_enabled(),
        )

    before = settings_now()
    with Writer(run_folder, background=True) as writer:
        for step in range(120):
            put(writer, step)
            writer.flush()
        writer.drain()
        assert settings_now() == before


def test_a_run_whose_tables_meet_a_full_disk_ends_with_a_storage_error_and_is_resumed_whole(
    tmp_path, recipe_of, monkeypatch
):
    from forensics.train.loop import train
    from forensics.train.run import open_run

    def report(step, total, text=""):
        if step == 13:
            monkeypatch.setattr(os, "fsync", full)

    def full(_):
        if (
            threading.current_thread() is not threading.main_thread()
        ):  # the header can still say that it failed
            raise OSError(28, "No space left on device")

    settings = {"train.steps": 30, "checkpoint.every": 10, "record.flush_every": 1}
    with pytest.raises(ForensicsError, match="No space left") as e:
        train(
            recipe_of(**settings), name="full", recipe_name="tiny", runs=tmp_path, progress=report
        )
    assert e.value.kind == "storage"
    stopped = open_run(tmp_path, "full")
    assert stopped.header.status == "failed" and stopped.saved_steps() == [0, 10]
    assert problems(stopped.folder) == []
    monkeypatch.setattr(os, "fsync", lambda _: None)
    train(recipe_of(**settings), name="full", recipe_name="tiny", runs=tmp_path, resume=True)
    train(recipe_of(**settings), name="whole", recipe_name="tiny", runs=tmp_path)
    for table, drop in (
        ("steps", ["seconds"]),
        ("heads", []),
        ("tensors", []),
        ("heads_by100", []),
    ):
        found, whole = (
            read(tmp_path / name, table).drop_columns(drop) for name in ("full", "whole")
        )
        assert found.equals(whole), table
