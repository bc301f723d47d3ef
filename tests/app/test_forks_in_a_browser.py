"""Forks in a browser: every part is drawn, one is built, launched, stopped and taken up again."""

from __future__ import annotations

import json
import shutil

import pytest

from app import data
from app.views.forks.state import file_of, launch, state_of
from replay.forks import toml_text
from replay.forks.run import fork
from replay.forks.spec import build
from replay.lineage import open_trajectory
from tests.app.forks_by_hand import blame_of


@pytest.fixture(scope="module")
def striking(forked_runs):
    """A fork past the spike, that moves some layer at least twice as far as its placebos do."""
    name = "striking"
    raw = {"parent": "demo", "from": 118, "to": 126, "placebos": 2, "probe_every": 1, "name": name}
    skip = {"kind": "skip", "window": "120:122"}
    parent = open_trajectory(forked_runs, "demo")
    fork(build(forked_runs, parent, raw | {"intervention": [skip]}), forked_runs)
    yield name
    shutil.rmtree(forked_runs / name)


@pytest.fixture(scope="module", autouse=True)
def _what_is_built_here_is_taken_away(forked_runs):
    """The runs are shared by all files of tests: those that come later see what they were."""
    before = {path.name for path in forked_runs.iterdir()}
    yield
    for path in forked_runs.iterdir():
        if path.name not in before and path.is_dir():
            shutil.rmtree(path)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(
    "part, charts", [("fork", 4), ("build", 0), ("sweep", 3), ("matrix", 4), ("blame", 1)]
)
def test_every_part_is_drawn_in_a_browser(
    open_tab, forked_url, striking, part: str, charts: int, dark: bool
) -> None:
    chosen = {"fork": striking} if part == "fork" else {}
    tab = open_tab(forked_url, "forks", dark=dark, run="demo", part=part, **chosen)
    assert len(tab.charts()) >= charts


def test_a_fork_is_built_launched_and_seen_to_finish(open_tab, forked_url, forked_runs) -> None:
    tab = open_tab(forked_url, "forks", run="demo", part="build", kind="skip", first=100, last=104)
    tab.page.get_by_role("button", name="Dry run").click()
    tab.page.get_by_role("button", name="Launch").wait_for(timeout=60_000)
    tab.page.get_by_role("button", name="Launch").click()
    verdict = "Fork of demo at state 100, which skips steps 100:101"
    tab.page.get_by_text(verdict).first.wait_for(timeout=120_000)
    tab.page.get_by_text("Control: ").first.wait_for(timeout=120_000)
    tab.settle()
    name = tab.parameters()["fork"]
    assert (forked_runs / name / "fork.json").is_file()
    assert verdict in tab.page.inner_text("body")
    tab.page.go_back()
    tab.settle()
    assert tab.parameters().get("part") == "build"
    tab.page.go_forward()
    tab.settle()
    assert tab.parameters()["fork"] == name


def test_a_row_can_be_chosen_again_after_back(open_tab, forked_url, forked_runs, request) -> None:
    first = blame_of()["candidates"][0]
    document = blame_of() | {"candidates": [first, first | {"slot": 4}, first | {"slot": 6}]}
    path = forked_runs / "demo" / "blame-95.json"
    path.write_text(json.dumps(document | {"spike": document["spike"] | {"step": 95}}))
    request.addfinalizer(path.unlink)

    def choose(row: int) -> None:
        table = tab.page.locator(
            '[data-testid="stDataFrame"]'
        ).first  # the tick stands left of the row
        table.scroll_into_view_if_needed()
        box = table.bounding_box()
        tab.page.mouse.click(box["x"] + 20, box["y"] + 35 * (row + 1.5))
        tab.page.wait_for_timeout(300)
        tab.settle()

    tab = open_tab(forked_url, "forks", run="demo", part="blame", spike=95)
    for row, slot in ((1, "4"), (2, "6")):
        choose(row)
        assert tab.parameters().get("slot") == slot
    tab.page.go_back()
    tab.settle()
    assert tab.parameters().get("slot") == "4"
    assert tab.page.get_by_role("button", name="Fork without batch 90, slot 4").is_visible()
    choose(2)
    assert tab.parameters().get("slot") == "6", "one click is enough"


def waited(wanted, seconds=120.0):
    """The fork's state as soon as `wanted` holds of it."""
    import time

    end = time.monotonic() + seconds
    while not wanted(state := state_of("long", "demo")):
        assert time.monotonic() < end, (state.status, state.job and state.job.log())
        time.sleep(0.03)
    return state


def test_a_fork_that_is_stopped_goes_on_from_where_it_was(forked) -> None:
    from app import jobs

    text = toml_text.written(
        {"parent": "demo", "from": 0, "to": 60, "placebos": 2, "name": "long"},
        [{"kind": "skip", "window": "30:31"}],
    )
    launch("demo", "long", text)
    running = waited(lambda s: s.job.progress.get("done", 0) >= 3)
    assert running.status == "running"
    jobs.stop(running.job)
    stopped = waited(lambda s: s.status not in ("running", "starting"))
    assert stopped.status == "stopped" and 0 < stopped.halfway["step"] < 60
    launch("demo", "long", file_of(stopped))
    done = waited(lambda s: s.status == "done")
    assert done.result.placebos == 2 and not (forked / "long" / "halfway").exists()
    rows = [r["step"] for r in data.rows("fork_arms", run="long") if r["arm"] == "fork"]
    assert rows == list(range(1, 61)), "each state once"
    shutil.rmtree(forked / "long")
