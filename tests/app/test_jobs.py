"""Long work: only known commands, in a process that writes its progress and its end."""

import json
import time

import pytest

from app import jobs
from forensics.errors import ForensicsError


def until_ended(w, seconds=90):
    end = time.monotonic() + seconds
    while w.status == "running" and time.monotonic() < end:
        time.sleep(0.1)
        w = jobs.opened(w.run, w.id)
    return w


def test_a_command_runs_to_its_end_and_its_answer_is_there(runs):
    w = until_ended(jobs.start("demo", "forensics", ["spikes", "demo"]))
    assert (w.status, w.code) == ("done", 0)
    assert w.result()["spikes"]
    assert w.command == "forensics spikes demo"
    assert jobs.listed("demo")[0].id == w.id


def test_a_command_that_fails_leaves_its_one_line(runs):
    w = until_ended(jobs.start("demo", "forensics", ["batch", "demo", "99999"]))
    assert (w.status, w.code) == ("failed", 3)
    assert w.log().startswith("error: ") and "Traceback" not in w.log()


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("sh", ["-c", "true"]),
        ("forensics", ["train", "demo"]),
        ("replay", []),
        ("forensics", ["app"]),
    ],
)
def test_what_the_app_may_not_start_is_refused(runs, program, arguments):
    with pytest.raises(ForensicsError, match="wanted a command the app may start"):
        jobs.start("demo", program, arguments)


def test_the_work_of_no_run_is_refused(runs):
    with pytest.raises(ForensicsError):
        jobs.start("../demo", "forensics", ["spikes", "demo"])
    with pytest.raises(ForensicsError, match="no work of demo"):
        jobs.opened("demo", "../../etc")


def test_a_process_that_is_gone_without_a_word_is_lost(runs):
    folder = runs / "demo" / "work" / "20260101-000000-abcd"
    folder.mkdir(parents=True)
    about = {"program": "replay", "arguments": ["fork"], "started": "2026-01-01T00:00:00+00:00"}
    (folder / "work.json").write_text(json.dumps(about))
    (folder / "process.json").write_text(json.dumps({"pid": 2**22 + 1, "birth": "1"}))
    assert jobs.opened("demo", folder.name).status == "lost"
    (folder / "progress.json").write_text(
        json.dumps({"label": "x", "done": 3, "total": 4, "note": ""})
    )
    assert jobs.opened("demo", folder.name).share == 0.75


def test_progress_goes_into_the_file_that_is_named(tmp_path, monkeypatch):
    from forensics.cli.progress_bar import bar

    monkeypatch.setenv("FORENSICS_PROGRESS", str(tmp_path / "p.json"))
    with bar("training", "steps") as report:
        report(1, 10)
        assert json.loads((tmp_path / "p.json").read_text())["done"] == 1
        report(2, 10)  # too soon
        report(10, 10, "last")
    written = json.loads((tmp_path / "p.json").read_text())
    assert (written["label"], written["done"], written["total"], written["note"]) == (
        "training",
        10,
        10,
        "last",
    )
