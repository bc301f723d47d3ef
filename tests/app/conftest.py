"""A folder of runs with one that spikes on hostile documents, the app over it, and a browser.

The damaged documents hold what must never act: markup, Markdown that fetches, bidi and control
characters. So do their file names.
"""

from __future__ import annotations

import json
import os
import shutil

import pytest

from app import browser as driver
from app import navigation
from tests.app.forks_by_hand import blame_of, matrix_of, sweep_document

HOSTILE = [
    "<script>alert(1)</script>",
    "![x](http://evil.example/a.png)",
    "<img src=x onerror=alert(2)>",
    "\u202eevil\u202c\u200b\u2066",
    "\x07\x1b[31m",
    "[click](javascript:alert(3)) **bold** $x^2$ :red[no]",
    "".join(
        chr(0x4E00 + 7919 * i % 20000) for i in range(200)
    ),  # bytes that the clean text does not have: the loss jumps
]
NAMES = [
    "<script>alert(1)<&>.txt",
    "![x](http:evil.example).txt",
    "\u202etxt.evil.txt",
    "a\u200bb\x07.txt",
]
SPIKE = 120  # the batches of damaged documents begin here


@pytest.fixture(scope="session")
def app_runs(tmp_path_factory):
    """The folder of runs: `demo`, 136 steps, with a spike at about SPIKE. Tests that add to it
    clean up.
    """
    from forensics import config, identity
    from forensics.train.loop import train

    folder = tmp_path_factory.mktemp("app")
    damaged = folder / "damaged"
    damaged.mkdir()
    for i, name in enumerate(NAMES):
        (damaged / name).write_text(
            "".join(HOSTILE[(i + k) % len(HOSTILE)] for k in range(60)), encoding="utf-8"
        )
    identity.enable_determinism(1)
    recipe = config.from_dict(
        {
            "data": {
                "sources": {"clean": "stdlib/json", "damaged": str(damaged)},
                "tokenizer": "bytes",
                "sequence_length": 32,
                "held_out": 4,
                "phases": [
                    {"until": SPIKE, "mix": {"clean": 1.0}},
                    {"until": SPIKE + 3, "mix": {"clean": 0.25, "damaged": 0.75}},
                    {"mix": {"clean": 1.0}},
                ],
            },
            "model": {"family": "llama", "layers": 2, "width": 32, "heads": 2},
            "train": {
                "steps": 136,
                "batch": 8,
                "learning_rate": 1e-2,
                "warmup": 8,
                "schedule": "constant",
                "threads": 1,
                "device": "cpu",
            },
            "checkpoint": {"every": 20},
        }
    )
    train(recipe, name="demo", recipe_name="demo", runs=folder / "runs", resume=False)
    return folder / "runs"


@pytest.fixture
def runs(app_runs, monkeypatch):
    """The folder of runs, as the app in this process sees it."""
    monkeypatch.setenv("FORENSICS_RUNS", str(app_runs))
    return app_runs


@pytest.fixture
def apart(runs, tmp_path, monkeypatch):
    """A copy of the runs that a test may write to."""
    copy = tmp_path / "runs"
    shutil.copytree(runs, copy)
    monkeypatch.setenv("FORENSICS_RUNS", str(copy))
    return copy


@pytest.fixture
def empty_runs(tmp_path, monkeypatch):
    """A folder without runs."""
    monkeypatch.setenv("FORENSICS_RUNS", str(tmp_path))
    return tmp_path


@pytest.fixture
def app_page():
    """`app_page("spikes", run="demo")`: AppTest on a page with these parameters in its URL, run
    once.
    """

    def build(name: str, **selection):
        test = driver.scripted(name, **selection)
        test.run()
        return test

    return build


def texts_of(test) -> str:
    """All that a page says in text: HTML blocks, code, text."""
    return "\n".join(
        str(getattr(e, "value", None) or e.proto.body)
        for kind in ("html", "code", "text")
        for e in test.get(kind)
    )


@pytest.fixture
def said():
    """`said(test)`: the text of a page under AppTest."""
    return texts_of


@pytest.fixture(scope="session")
def app_url(app_runs):
    """The address of the app over `app_runs`, started as a user starts it."""
    with driver.serving(app_runs) as url:
        yield url


@pytest.fixture(scope="session")
def chromium():
    """Skips, with the reason, where this machine has no Chromium; CI installs it."""
    if driver.executable() is None and not os.environ.get("CI"):
        pytest.skip("no chromium on this machine")
    with driver.chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def tabs(chromium):
    """The tabs that tests share, by address and shade: a tab opened anew loads all scripts anew."""
    shared: dict[tuple[str, bool], driver.Watched] = {}
    yield shared
    for tab in shared.values():
        tab.close()


@pytest.fixture
def open_tab(chromium, tabs):
    """`open_tab(url, "spikes", run="demo")`: a shared tab on a page of an app.

    At the end of the test everything that went wrong since it was opened fails the test.
    """
    opened = []

    def build(url: str, name: str, *, dark: bool = False, **selection):
        if (url, dark) not in tabs:
            tabs[url, dark] = driver.Watched(chromium, url, dark=dark)
        tab = tabs[url, dark]
        tab.faults.clear()
        opened.append(tab)
        tab.open(navigation.path_of(name), **selection)
        return tab

    yield build
    for tab in opened:
        tab.check()


@pytest.fixture
def open_page(open_tab, app_url):
    """`open_page("spikes", run="demo")`: a shared tab on a page of the app over `app_runs`."""

    def build(name: str, *, dark: bool = False, **selection):
        return open_tab(app_url, name, dark=dark, **selection)

    return build


# ---- a run with forks


@pytest.fixture(scope="session")
def forked_runs(app_runs, tmp_path_factory):
    """A copy of the runs with a fork of demo, its placebos, and the documents of a sweep, a matrix
    and blame.
    """
    from replay.forks.run import fork
    from replay.forks.spec import build as made
    from replay.lineage import open_trajectory

    runs = tmp_path_factory.mktemp("forks") / "runs"
    shutil.copytree(app_runs, runs)
    raw = {
        "parent": "demo",
        "from": 88,
        "to": 96,
        "placebos": 2,
        "chaos": 1,
        "probe_every": 1,
        "intervention": [{"kind": "skip", "window": "90:92"}],
    }
    fork(made(runs, open_trajectory(runs, "demo"), raw | {"name": "skipped"}), runs)
    for name, document in (
        ("sweep-0123456789abcdef", sweep_document()),
        ("matrix-0123456789abcdef", matrix_of()),
        ("blame-90", blame_of()),
    ):
        (runs / "demo" / f"{name}.json").write_text(json.dumps(document))
    return runs


@pytest.fixture
def forked(forked_runs, monkeypatch):
    monkeypatch.setenv("FORENSICS_RUNS", str(forked_runs))
    return forked_runs


@pytest.fixture
def rewritten(forked):
    """`rewritten(change)`: the fork's document altered for one test."""
    path = forked / "skipped" / "fork.json"
    kept = path.read_bytes()

    def write(change):
        document = json.loads(kept)
        change(document)
        path.write_text(json.dumps(document))

    yield write
    path.write_bytes(kept)


@pytest.fixture(scope="session")
def forked_url(forked_runs):
    with driver.serving(forked_runs) as url:
        yield url
