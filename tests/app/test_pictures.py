"""The pictures: each shows its page full where something is kept, and `prepare` runs exactly what
is missing.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from app import browser as driver
from app import data, navigation, pictures
from app.selection import Selection
from tests.app.forks_by_hand import matrix_of, sweep_document

SPEC = Path("sweep.toml")


@pytest.fixture
def copied(app_runs, tmp_path, monkeypatch):
    """The folder of a copy of the run, to keep things in."""
    shutil.copytree(app_runs, tmp_path / "runs")
    monkeypatch.setenv("FORENSICS_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs" / "demo"


@pytest.fixture
def full(copied):
    """What the commands leave in a run's folder, made by hand: the costliest token of the worst
    sequence is the 8th.
    """
    from forensics.store.writer import Writer
    from replay.step import artifacts

    spike = pictures._spike("demo")
    slot = data.rows("batch_at", run="demo", step=spike)[0]["slot"]
    losses = np.ones((8, 32), np.float32)
    losses[slot, 7] = 9.0
    artifacts.write(
        artifacts.token_losses_of(copied, spike),
        {"losses": losses},
        {"run": "demo", "step": spike, "exact": True},
    )
    lens = np.ones((2, 3, 32), np.float32)
    lens[1, -1, 20] = 5.0
    artifacts.write(
        artifacts.attention_of(copied, spike, 3),
        {"lens_loss": lens},
        {
            "run": "demo",
            "step": spike,
            "slot": 3,
            "states": [spike - 16, spike],
            "lens": True,
            "tokens": list(range(33)),
        },
    )
    artifacts.trace_of(copied, spike).write_text(
        json.dumps({"events": [{"phase": "forward"}, {"phase": "loss"}]})
    )
    for name, document in {"sweep": sweep_document(), "matrix": matrix_of()}.items():
        (copied / f"{name}-0123456789abcdef.json").write_text(json.dumps(document))
    (copied / f"blame-{spike}.json").write_text(
        json.dumps({"version": 2, "spike": {"step": spike}})
    )
    with Writer(copied) as w:
        for step in [20, 40, 60, 100, 120, 136]:
            w.append(
                "vocabulary",
                step=step,
                token=[0, 1, 2],
                text=["a", "b", "c"],
                category="OK",
                indicator=[0.1, 0.2, 0.3],
                exposure_in=1,
                exposure_out=1,
                exposure_grad=1,
                documents=1,
                cause=[None, "forgotten", None],
            )
    (copied / "verified-136.json").write_text(
        json.dumps(
            {
                "copies": True,
                "verdict": "",
                "below": 0.01,
                "tokens": {"id": [0, 2], "max_prob": [0.5, 0.001], "at_least": [True, False]},
            }
        )
    )
    return copied


def test_without_anything_kept_each_page_has_a_picture_and_no_part_of_the_forks_has(copied):
    found = pictures.views("demo")
    assert set(found) == set(navigation.views()) and all(
        name == page for name, (page, _) in found.items()
    )
    for _, selection in found.values():
        assert (
            Selection.parse({k: str(v) for k, v in selection.items() if v is not None}).problems
            == ()
        )


def test_each_page_is_shown_where_something_is_kept(full):
    spike, found = pictures._spike("demo"), pictures.views("demo")
    chosen = {name: selection for name, (_, selection) in found.items()}
    assert chosen["batch"]["position"] == 8, "the token of highest loss: the loss of target 7"
    assert (chosen["attention"]["slot"], chosen["attention"]["position"]) == (3, 20)
    assert chosen["trace"]["position"] == 1, "the loss, which lists its costliest tokens"
    assert (chosen["tokens"]["step"], chosen["tokens"]["token"]) == (136, 2), (
        "a token that is verified"
    )
    parts = {
        name: (page, chosen[name]["part"])
        for name, (page, _) in found.items()
        if name not in navigation.views()
    }
    assert parts == {f"forks-{p}": ("forks", p) for p in ("sweep", "matrix")}
    assert chosen["blame"]["spike"] == spike
    for selection in chosen.values():
        assert (
            Selection.parse({k: str(v) for k, v in selection.items() if v is not None}).problems
            == ()
        )


def test_every_picture_stands_in_the_docs_and_every_page_of_the_docs_has_one():
    docs = Path(pictures.__file__).parents[1] / "docs"
    text = (docs / "app.md").read_text(encoding="utf-8")
    drawn = {path.stem for path in (docs / "pictures").glob("*.png")}
    for name in {stem.removesuffix("-dark") for stem in drawn}:
        assert f"(pictures/{name}.png)" in text
    assert set(re.findall(r"\(pictures/(.*?)\.png\)", text)) <= drawn
    assert {"runs", "spikes", "batch", "attention", "trace", "forks", "blame", "tokens"} <= drawn


def named(commands):
    return [" ".join(c[:2]) for c in commands]


def test_what_is_missing_is_all_of_it_and_then_nothing_but_a_fork(copied, request):
    todo = pictures.missing("demo", SPEC)
    assert named(todo) == [
        "replay trace",
        "replay attention",
        "forensics batch",
        "replay matrix",
        "replay sweep",
        "replay blame",
        "replay fork",
        *["forensics tokens"] * pictures.STATES,
    ]
    assert [c[2:] for c in todo[-2:]] == [["demo@120"], ["demo@136", "--verify"]], (
        "the last is prompted"
    )
    request.getfixturevalue("full")
    assert named(pictures.missing("demo", SPEC)) == ["replay fork"]
    (copied / "verified-136.json").unlink()
    assert named(pictures.missing("demo", SPEC)) == ["replay fork", "forensics tokens"]


def test_each_missing_command_is_one_that_its_program_takes(copied, tmp_path):
    import forensics.cli.main
    import replay.cli.main

    spec = tmp_path / "sweep.toml"
    spec.touch()
    for program, name, *arguments in pictures.missing("demo", spec):
        group = {"replay": replay.cli.main, "forensics": forensics.cli.main}[program].main
        group.commands[name].make_context(name, [*arguments])  # a wrong option or argument raises


def test_the_steps_of_the_missing_commands_are_in_the_run(copied):
    todo = {c[1]: c for c in pictures.missing("demo", SPEC)}
    at = [
        int(s)
        for s in next(a for a in todo["sweep"] if a.startswith("--at="))
        .removeprefix("--at=")
        .split(",")
    ]
    assert len(at) == 4 and min(at) >= 1 and max(at) + pictures.SWEPT <= 136
    low, high = map(int, todo["matrix"][todo["matrix"].index("--batches") + 1].split(":"))
    assert 0 <= low < pictures._spike("demo") < high <= 136


def test_prepare_runs_one_after_the_other_and_tells_what_failed(copied, monkeypatch, capsys):
    from replay.forks import spec as specs

    ran = []

    def run(command, **_):
        ran.append(command[2:])
        if "sweep" in command:
            raw = specs.read(Path(command[command.index("sweep") + 1]))
            assert raw["parent"] == "demo" and raw["to"] - raw["from"] == pictures.SWEPT
        return subprocess.CompletedProcess(command, 1 if "trace" in command else 0)

    monkeypatch.setattr(subprocess, "run", run)
    failed = pictures.prepare(copied.parent, "demo")
    assert named(failed) == ["replay trace"] and len(ran) == 7 + pictures.STATES
    assert ran[0][:4] == ["replay.cli.main", "--runs", str(copied.parent), "trace"]
    assert capsys.readouterr().out.startswith(f"$ replay trace demo {pictures._spike('demo')}\n")


def test_in_a_browser_a_socket_to_elsewhere_is_a_fault_and_the_apps_own_is_none(chromium, app_url):
    tab = driver.Watched(chromium, app_url)
    try:
        tab.open("sql", run="demo")
        tab.check()
        tab.page.evaluate("() => { new WebSocket('ws://elsewhere.example/x'); }")
        tab.page.wait_for_timeout(300)
        assert "a socket to ws://elsewhere.example/x" in tab.faults
    finally:
        tab.close()
