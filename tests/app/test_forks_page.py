"""The Forks page over a run with forks: which one is looked at, and what became of it."""

from __future__ import annotations

import json
import shutil
import tomllib

import pytest

from app import data
from app import documents as kept
from app.views.forks import page as forks_page
from app.views.forks.state import file_of, state_of
from tests.app.forks_by_hand import HOSTILE, url_of


def test_a_run_without_forks_opens_on_building_one_and_its_list_says_how(
    runs, app_page, said
) -> None:
    page = app_page("forks", run="demo")
    assert not page.exception and "A fork of <code>demo</code> from state" in said(page)
    page = app_page("forks", run="demo", part="fork")
    assert "This run has no fork yet" in said(page) and "replay fork demo --from" in said(page)


def test_a_fork_opens_on_its_verdict(forked, app_page, said) -> None:
    page = app_page("forks", run="demo", fork="skipped")
    text = said(page)
    assert not page.exception
    assert (
        "Fork of demo at state 88, which skips steps 90:92" in text
        and "equals the parent <b>bit for bit ✓</b>" in text
        and "with 2 placebos" in text
    )
    assert len(page.get("vega_lite_chart") or page.get("arrow_vega_lite_chart")) >= 3


def test_a_fork_in_place_of_the_run_is_looked_at_itself(forked, app_page, said) -> None:
    assert "Fork of demo at state 88, which skips steps 90:92" in said(
        app_page("forks", run="skipped")
    )


def test_what_is_chosen_on_the_page_of_a_fork_is_chosen_in_its_parent(
    forked, app_page, said
) -> None:
    page = app_page("forks", run="skipped")
    page.get("button_group")[0].set_value("matrix").run()
    assert url_of(page) == {
        "run": "demo",
        "fork": "skipped",
        "part": "matrix",
    } and "Cause: the data. Batch 11" in said(page)
    page = app_page("forks", run="skipped")
    next(b for b in page.button if b.label == "Build another fork").click().run()
    assert url_of(page) == {"run": "demo", "part": "build", "first": "88", "last": "96"}
    assert "A fork of <code>demo</code>" in said(page)


def test_another_row_of_the_list_is_another_fork_of_the_same_run(forked, monkeypatch) -> None:
    gone = []
    monkeypatch.setattr(forks_page, "goto", lambda **changes: gone.append(changes))
    monkeypatch.setattr(
        forks_page.st,
        "session_state",
        {"list": {"selection": {"rows": [1]}}, "none": {"selection": {"rows": []}}},
    )
    for key in ("list", "none"):
        forks_page._picked("demo", ["a", "b"], key)
    assert gone == [{"run": "demo", "fork": "b", "part": "fork"}]


def test_a_fork_that_runs_draws_what_it_has_written_so_far(forked, app_page, said) -> None:
    folder = forked / "skipped"
    (folder / "fork.json").rename(folder / "fork.kept")
    manifest = folder / "tables" / "divergence" / "manifest.json"
    whole = manifest.read_bytes()
    try:
        manifest.touch()
        (folder / "run.json").touch()
        page = app_page("forks", run="demo", fork="skipped")
        assert "Drawn below is what it has written so far" in said(page)
        assert len(page.get("vega_lite_chart") or page.get("arrow_vega_lite_chart")) == 1
    finally:
        manifest.write_bytes(whole)
        (folder / "fork.kept").rename(folder / "fork.json")


def test_the_chosen_rows_are_marked_and_have_a_table_of_their_own(forked, app_page) -> None:
    marks, ids = [], set()
    for name in ("skipped", "nothing"):
        table = app_page("forks", run="demo", fork=name, part="fork").dataframe[-1]
        marks.append(list(table.value[""]))
        ids.add(table.proto.id)
    assert marks == [["●"], [""]] and len(ids) == 2
    table = next(t for t in app_page("blame", run="demo").dataframe if "falls by" in t.value)
    assert list(table.value[""]) == ["●"]


def test_tolerance_only_is_a_banner_with_the_gap(rewritten, app_page, said) -> None:
    rewritten(
        lambda d: d["control"].update(
            bitwise=False,
            level="reproduces",
            sentence="tolerance only: losses by at most 0.01 nats",
        )
    )
    text = said(app_page("forks", run="demo", fork="skipped"))
    assert (
        'class="amber"><b>Tolerance only. </b>' in text
        and "losses by at most 0.01 nats" in text
        and "bit for bit ✓" not in text
    )


def test_what_a_fork_does_is_text_whatever_it_says(rewritten, app_page, said) -> None:
    rewritten(lambda d: d.update(does=HOSTILE))
    text = said(app_page("forks", run="demo", fork="skipped"))
    assert (
        "&lt;script&gt;alert(1)&lt;/script&gt;" in text
        and "<script>" not in text
        and "⟨U+202E⟩evil⟨U+0007⟩" in text
    )


def test_a_fork_that_is_not_there_and_a_damaged_document_are_sentences(
    forked, rewritten, app_page, said
) -> None:
    assert "No fork here is called <code>nothing</code>" in said(
        app_page("forks", run="demo", fork="nothing")
    )
    (forked / "skipped" / "fork.json").write_text("{")
    page = app_page("forks", run="demo", fork="skipped")
    assert not page.exception and "fork.json is damaged" in said(page)
    for version in (0, None):
        rewritten(lambda d, version=version: d.update(version=version))
        page = app_page("forks", run="demo", fork="skipped")
        assert not page.exception
        assert "fork.json: wanted a fork of version 2, found" in said(page)
        assert "replay fork skipped.toml --again" in said(page)
    assert "../../etc" not in said(app_page("forks", run="demo", fork="../../etc/passwd")).replace(
        "&#x27;../../etc/passwd&#x27;", ""
    )


def test_a_stopped_fork_offers_to_go_on_from_where_it_was(forked, app_page, said) -> None:
    import os
    import time

    folder = forked / "skipped"
    (folder / "fork.json").rename(folder / "fork.kept")
    header = (folder / "run.json").read_text()
    identity = {"placebos": 2, "chaos": 1, "seed": 7}
    (folder / "run.json").write_text(json.dumps(json.loads(header) | {"identity": identity}))
    (folder / "halfway").mkdir()
    (folder / "halfway" / "notes.json").write_text(json.dumps({"step": 92, "notes": {}}))
    try:
        for path in (folder / "run.json", folder / "tables" / "divergence" / "manifest.json"):
            os.utime(path, (time.time() - 900, time.time() - 900))
        page = app_page("forks", run="demo", fork="skipped")
        assert "was stopped before its end at 96" in said(
            page
        ) and "from where it can go on" in said(page)
        assert "Go on" in [b.label for b in page.button]
        raw = tomllib.loads(file_of(state_of("skipped", "demo")))
        assert (raw["placebos"], raw["chaos"], raw["seed"], raw["name"]) == (2, 1, 7, "skipped")
    finally:
        shutil.rmtree(folder / "halfway")
        (folder / "run.json").write_text(header)
        (folder / "fork.kept").rename(folder / "fork.json")


@pytest.mark.parametrize(
    "part, wanted",
    [
        ("sweep", "the effect is largest early, from state 60"),
        ("matrix", "Cause: the data. Batch 11 is +0.5 nats/token"),
        ("blame", "Step 90: the cause is the data"),
    ],
)
def test_what_commands_kept_is_shown_and_its_text_stays_text(
    forked, app_page, said, part: str, wanted: str
) -> None:
    page = app_page("forks", run="demo", part=part)
    assert not page.exception and wanted in said(page)
    html = "\n".join(h.proto.body for h in page.get("html"))
    assert (
        "<script>" not in html
        and ("&lt;script&gt;" in html or part == "matrix")
        and "\u202e" not in said(page)
    )
    assert not page.markdown and not page.caption


@pytest.mark.parametrize(
    "part, command",
    [
        ("sweep", "replay sweep fork.toml --at"),
        ("matrix", "replay matrix demo --batches"),
        ("blame", "replay blame demo --spike"),
    ],
)
def test_what_was_not_measured_names_the_command_for_this_run(
    runs, app_page, said, part: str, command: str
) -> None:
    page = app_page("forks", run="demo", part=part)
    assert not page.exception and command in said(page)


def test_documents_that_are_damaged_are_left_out(forked) -> None:
    path = forked / "demo" / "sweep-ffffffffffffffff.json"
    path.write_text("[")
    try:
        assert [document.name for document in kept.documents("demo", "sweep")] == [
            "sweep-0123456789abcdef"
        ]
    finally:
        path.unlink()


def test_layers_are_over_the_placebos_median(forked) -> None:
    rows = data.rows("fork_layers", run="skipped")
    assert (
        {r["row"] for r in rows} >= {"embed.weight", "L0", "L1"}
        and min(r["begin"] for r in rows) >= 88
        and max(r["step"] for r in rows) == 96
    )
    one_cell = next(r for r in rows if r["row"] == "L1" and r["step"] == 96)
    from statistics import median

    found = [
        d
        for d in data.recorded("divergence", "skipped")
        if d["step"] == 96 and d["tensor"] == "layers.1.*"
    ]
    nulls = median(d["l2"] for d in found if d["arm"].startswith("placebo"))
    own = next(d["l2"] for d in found if d["arm"] == "fork")
    assert one_cell["ratio"] == pytest.approx(own / nulls)
    few = data.rows("fork_layers", run="skipped", most=len({r["row"] for r in rows}) * 2)
    ratios = [[r["ratio"] for r in each if r["ratio"] is not None] for each in (few, rows)]
    assert len(few) < len(rows) and max(ratios[0]) == max(ratios[1])


def test_bands_are_percentiles_over_the_arms_of_a_kind(forked) -> None:
    found = [
        b
        for b in data.rows("fork_bands", run="skipped")
        if b["measure"] == "l2" and b["kind"] == "placebo" and b["step"] == 96
    ]
    own = sorted(
        r["l2"]
        for r in data.rows("fork_arms", run="skipped")
        if r["kind"] == "placebo" and r["step"] == 96
    )
    assert found[0]["middle"] == pytest.approx(sum(own) / 2) and found[0]["forks"] == 2
