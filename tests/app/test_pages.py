"""The pages Runs, Spikes and SQL under AppTest: what they say, their empty states, and that nothing
acts in hostile text.
"""

import json
import os
import re
import shutil
import time
from urllib.parse import parse_qsl

import pytest

from app.views.runs import health, tree
from app.views.runs import page as runs_page
from app.views.spikes import overview, panels, summary
from forensics.store.writer import Writer, replace_table

PAGES = ["runs", "spikes", "sql"]


def begin(runs, name, **header):
    """A run's folder without a step."""
    folder = runs / name
    folder.mkdir()
    document = {
        "name": name,
        "status": "running",
        "first_step": 0,
        "steps": 200,
        "config": {},
        "corpus_sources": [],
        "created": "2026-01-01T00:00:00Z",
        "arguments": [],
        "parameters": 1,
        "recipe": "r",
        "device": "cpu",
        "precision": "fp32",
        "threads": 1,
        "parent": None,
        "parent_step": None,
    } | header
    (folder / "run.json").write_text(json.dumps(document))
    row = {
        k: document[k]
        for k in (
            "name",
            "status",
            "recipe",
            "first_step",
            "steps",
            "parent",
            "parent_step",
            "created",
        )
    }
    replace_table(
        folder,
        "runs",
        {k: [v] for k, v in row.items()} | {"config": [json.dumps(document["config"])]},
    )
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_every_page_runs_without_an_exception(runs, app_page, page):
    test = app_page(page, run="demo")
    assert not test.exception
    assert any("<h1>" in e.proto.body for e in test.get("html"))


@pytest.mark.parametrize("page", PAGES)
def test_an_empty_folder_names_the_command_that_fills_it(empty_runs, app_page, page):
    test = app_page(page)
    assert not test.exception
    assert [c.value for c in test.code] == ["forensics demo"]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("run", ["../..", "nosuch", "<script>alert(1)</script>"])
def test_a_run_that_is_not_there_is_said_and_the_newest_is_shown(runs, app_page, said, page, run):
    test = app_page(page, run=run)
    assert not test.exception
    assert "Ignored in the URL" in said(test) or "No run here is called" in said(test)
    assert "<script>" not in said(test)
    assert test.selectbox(key="run-picker").value == "demo"


def test_the_spike_page_opens_on_a_sentence_with_step_gap_sigma_and_a_hedge(runs, app_page, said):
    from app import data

    spike = next(s for s in data.rows("spikes", run="demo") if s["metric"] == "loss")
    text = said(app_page("spikes", run="demo", spike=spike["step"]))
    assert (
        f"Step {spike['step']}: loss {spike['baseline']:.3f} → {spike['value']:.3f} nats/token"
        in text
    )
    assert "σ above its past" in text and "above those of the 64 steps before" in text
    assert (
        "is not thereby the cause" in text and f"replay blame demo --spike {spike['step']}" in text
    )
    assert "caused" not in text


def links(test):
    """Label → query of every link of a page."""
    return {e.proto.label: dict(parse_qsl(e.proto.query_string)) for e in test.get("page_link")}


def test_a_step_that_is_no_spike_is_said_and_the_largest_is_shown(runs, app_page, said):
    text = said(app_page("spikes", run="demo", spike=37))
    assert "Step 37 is not a spike of" in text and "Shown is its largest spike, at step 121" in text
    assert "is not a spike of" not in said(app_page("spikes", run="demo", spike=121))
    assert "is not a spike of" not in said(app_page("spikes", run="demo"))


def test_a_spike_of_a_url_without_a_run_is_the_newest_run_s(runs, app_page, said):
    from app import data

    early = min(s["step"] for s in data.rows("spikes", run="demo"))
    assert f"Step {early}: gradient norm" in said(app_page("spikes", spike=early))


@pytest.mark.parametrize("url", [{}, {"run": "nosuch", "step": 3}, {"run": "demo"}])
def test_a_callback_names_the_run_and_the_step_that_the_page_shows(runs, app_page, url):
    test = app_page("batch", **url)
    test.button(key="step-on").click().run()
    assert {k: test.query_params[k] for k in test.query_params} in (
        {"run": "demo", "step": "122"},
        {"run": ["demo"], "step": ["122"]},
    )


def test_another_run_of_the_picker_forgets_what_the_url_chose_inside_the_one_it_did_not_name(
    runs, app_page
):
    begin(runs, "older", created="2020-01-01T00:00:00Z")
    try:
        test = app_page("spikes", spike=121, layer=1)
        test.selectbox(key="run-picker").select("older").run()
        assert [*test.query_params] == ["run"]
    finally:
        shutil.rmtree(runs / "older")


def test_a_link_to_another_page_drops_what_only_this_page_has_unless_it_is_given():
    from app.navigation import parameters
    from app.selection import Selection

    here = Selection(
        run="demo",
        step=4,
        fork="f",
        part="blame",
        kind="skip",
        query="spikes",
        values="a=1",
        metric="rms_t",
    )
    assert parameters(here, slot=2) == {"run": "demo", "fork": "f", "step": "4", "slot": "2"}
    assert parameters(here, part="build", kind="remove-documents", fork=None) == {
        "run": "demo",
        "step": "4",
        "part": "build",
        "kind": "remove-documents",
    }


def test_forking_a_spike_without_its_worst_sequences_opens_the_form_whatever_the_url_held(
    runs, app_page
):
    test = app_page("spikes", run="demo", spike=121, fork="old", part="fork", kind="skip", slot=3)
    assert links(test)["Fork without its worst sequences"] == {
        "run": "demo",
        "spike": "121",
        "step": "121",
        "part": "build",
        "kind": "remove-sequences",
    }


def test_the_sequence_of_the_url_is_marked_in_the_table_and_no_other(runs, app_page):
    table = next(
        d.value
        for d in app_page("spikes", run="demo", spike=121, slot=3).dataframe
        if "repeat_share" in d.value
    )
    assert [(m, s) for m, s in zip(table[""], table["slot"]) if m] == [("●", 3)]
    for url in ({}, {"step": 120, "slot": 3}):  # nothing chosen; a row of another batch
        table = next(
            d.value
            for d in app_page("spikes", run="demo", spike=121, **url).dataframe
            if "repeat_share" in d.value
        )
        assert not any(table[""])


def test_the_spike_of_the_url_is_marked_among_the_events_of_its_run(runs, app_page):
    events = next(
        d.value for d in app_page("runs", run="demo", spike=120).dataframe if "back at" in d.value
    )
    assert [(m, s) for m, s in zip(events[""], events["step"]) if m] == [("●", 120)]
    events = next(d.value for d in app_page("runs", spike=120).dataframe if "back at" in d.value)
    assert [(m, s) for m, s in zip(events[""], events["step"]) if m] == [("●", 120)]


def test_the_share_above_is_of_all_sequences_and_says_so(runs, app_page, said):
    text = said(app_page("spikes", run="demo", spike=121))
    assert re.search(r"\d of the 8</b> sequences stand apart: 3σ or more above", text)


def test_a_run_without_a_spike_and_one_without_a_step_say_so(empty_runs, app_page, said):
    begin(empty_runs, "none")
    assert "has recorded no step yet" in said(app_page("spikes", run="none"))
    with Writer(begin(empty_runs, "calm")) as w:
        w.append("steps", step=list(range(80)), loss=2.0, grad_norm=1.0)
    test = app_page("spikes", run="calm")
    assert not test.exception
    assert "No spike was found in" in said(test) and "forensics spikes calm" in said(test)


def test_a_spike_without_a_past_says_why_there_is_no_heat(empty_runs, app_page, said):
    with Writer(begin(empty_runs, "young")) as w:
        w.append("steps", step=list(range(30)), loss=2.0, grad_norm=1.0)
        w.append("heads", step=list(range(30)), layer=0, head=0, attn_logit_max=1.0)
        w.append("events", step=20, kind="nonfinite", metric="loss", tensor="layers.0")
    test = app_page("spikes", run="young")
    assert not test.exception
    assert "is not finite, first in layers.0" in said(test)
    assert "that takes 16 recorded steps well before the spike" in said(test)


def test_a_run_that_recorded_no_heads_says_so_with_the_command_and_still_shows_its_tensors(
    empty_runs, app_page, said
):
    steps = list(range(200))
    with Writer(begin(empty_runs, "bare")) as w:
        w.append("steps", step=steps, loss=2.0, grad_norm=1.0)
        w.append(
            "tensors",
            step=steps,
            tensor="layers.0.mlp.up_proj.weight",
            rms_t=[1.0 + s % 2 / 9 + (s > 140) for s in steps],
        )
        w.append("events", step=150, kind="nonfinite", metric="loss")
    test = app_page("spikes", run="bare")
    assert not test.exception
    text = said(test)
    assert "The attention heads were not recorded here" in text and "16 recorded steps" not in text
    assert "replay fork bare --from 54 --to 183 --lr-scale 1@54:183 --record light" in text
    assert "Tensors: size of the update (rms_t) and staleness" in text
    assert (
        len(test.get("vega_lite_chart")) == 5
    )  # overview, loss, gradient norm, tensors, first alarms


def test_the_runs_page_shows_only_what_differs_from_the_parent(runs, empty_runs, app_page):
    begin(empty_runs, "parent", config={"train": {"lr": 1, "steps": 200}, "data": {"x": 1}})
    begin(
        empty_runs,
        "fork",
        config={"train": {"lr": 2, "steps": 200}, "data": {"x": 1}},
        parent="parent",
        parent_step=7,
        interventions=[{"kind": "<script>alert(1)</script>\u202e"}],
    )
    test = app_page("runs", run="fork")
    assert not test.exception
    tables = [d.value for d in test.dataframe]
    (diff,) = [t for t in tables if list(t.columns) == ["key", "parent", "here"]]
    assert diff.values.tolist() == [["train.lr", "1", "2"]]
    assert any("⟨U+202E⟩" in c.value for c in test.code)


def test_the_tree_puts_forks_under_their_parents_and_null_forks_in_one_row(empty_runs):
    from app import data

    begin(empty_runs, "a", status="finished")
    begin(empty_runs, "b")
    with Writer(
        begin(empty_runs, "a-fork", parent="a", parent_step=50, first_step=50, steps=80)
    ) as w:
        w.append("steps", step=[50, 51], loss=1.0)
    replace_table(
        empty_runs / "a-fork",
        "forks",
        {"fork": ["a-fork"], "placebos": [5], "chaos": [3], "sentence": ["drops"]},
    )
    rows = tree.tree(data.headers(), {h["run"]: h for h in data.rows("run_health")})
    assert [(r["row"].strip("└ "), r["kind"]) for r in rows] == [
        ("a", "run"),
        ("a-fork", "fork"),
        ("null ×8 of a-fork", "null"),
        ("b", "run"),
    ]
    fork = rows[1]
    assert (
        fork["first"],
        fork["last"],
        fork["ahead"],
        fork["parent_row"],
        fork["parent_step"],
    ) == (
        50,
        52,
        80,
        "a",
        50,
    )
    assert tree.bar_of({"selection": {"bar": [{"run": "a-fork"}]}}) == {"run": "a-fork"}
    assert tree.bar_of({"selection": {"bar": []}}) is None


def touch(path, seconds_ago):
    os.utime(path, (time.time() - seconds_ago,) * 2)


def test_a_run_that_was_killed_is_named_and_not_counted_as_healthy(empty_runs, app_page, said):
    from app import data

    for name, ago in (("killed", 4000), ("young", 10)):
        with Writer(begin(empty_runs, name, config={"record": {"flush_every": 50}})) as w:
            w.append("steps", step=[0, 1], loss=1.0, seconds=0.1)
        touch(empty_runs / name / "tables" / "steps" / "manifest.json", ago)
    begin(empty_runs, "done", status="finished")
    text = said(app_page("runs", run="killed"))
    assert "<h1>3 runs</h1>" in text
    quiet = "Without a spike of the loss or a value that is not finite: "
    assert f"{quiet}<b>young, done</b>" in text or f"{quiet}<b>done, young</b>" in text
    assert (
        "Training now: <b>young</b>" in text
        and "Stopped without an end being recorded: <b>killed</b>" in text
    )
    assert "<code>killed</code> · stopped without an end being recorded" in text
    assert "<code>young</code> · running" in said(app_page("runs", run="young"))
    rows = tree.tree(data.headers(), {})
    assert {r["run"]: r["status"] for r in rows} == {
        "killed": health.words_of(health.SILENT),
        "young": "running",
        "done": "finished",
    }


def test_a_slow_run_is_believed_for_as_long_as_its_steps_between_two_writes_take(empty_runs):
    from app import data

    with Writer(begin(empty_runs, "slow", config={"record": {"flush_every": 50}})) as w:
        w.append("steps", step=[0, 1], loss=1.0, seconds=[9.0, 11.0])
    written = empty_runs / "slow" / "tables" / "steps" / "manifest.json"
    touch(written, 1400)  # 50 steps of 10 s, three times
    assert health.status_of(data.header("slow")) == "running"
    touch(written, 1600)
    assert health.status_of(data.header("slow")) == health.SILENT
    begin(empty_runs, "first")
    touch(empty_runs / "first" / "run.json", 1000)  # nothing is written before the first flush
    assert health.status_of(data.header("first")) == "running"
    touch(empty_runs / "first" / "run.json", 2000)
    assert health.status_of(data.header("first")) == health.SILENT


def test_the_runs_page_looks_again_when_anything_it_shows_was_written_and_only_then(empty_runs):
    folder, other = begin(empty_runs, "a"), begin(empty_runs, "b")
    with Writer(folder) as w:
        w.append("steps", step=[0], loss=1.0)
        before = runs_page.state_of("a")
        w.flush()
        written = runs_page.state_of("a")
        assert before != written == runs_page.state_of("a")
        w.append("certificates", first=0, last=1, bitwise=True)
        w.flush()
    assert runs_page.state_of("a") != written
    seen = runs_page.state_of("a")
    with Writer(other) as w:
        w.append("events", step=0, kind="note", text="x")
    assert runs_page.state_of("a") != seen  # of another run: a spike is a mark in the tree
    seen = runs_page.state_of("a")
    touch(folder / "tables" / "steps" / "manifest.json", 4000)
    assert runs_page.state_of("a") != seen  # it fell silent, or another wrote


def test_a_fork_that_is_not_done_says_what_it_alters(empty_runs, app_page, said):
    begin(empty_runs, "base", status="finished")
    begin(
        empty_runs,
        "fork",
        parent="base",
        parent_step=7,
        interventions=[{"kind": "skip"}, {"kind": "lr-scale"}],
    )
    text = said(app_page("runs", run="fork"))
    assert "at state 7, which <b>skip, lr-scale</b>" in text and "nothing altered" not in text


@pytest.mark.parametrize(
    ("sql", "wanted"),
    [
        ("select 1 as one", "1 rows"),
        ("drop table steps", "found DROP"),
        ("select * from read_text('/etc/passwd')", "found the table function read_text"),
        ("select 1; select 2", "found 2 statements"),
        ("select '<script>alert(1)</script>' as x, 1 as x", "1 rows"),
        ("select nothing from steps", "Binder Error"),
    ],
)
def test_sql_of_the_url_runs_in_the_sandbox_and_errors_are_sentences(
    runs, app_page, said, sql, wanted
):
    test = app_page("sql", run="demo", sql=sql)
    assert not test.exception
    assert wanted in said(test)
    assert "<script>" not in said(test)


def test_a_named_query_asks_for_what_it_lacks_and_takes_the_rest_from_the_selection(
    runs, app_page, said
):
    test = app_page("sql", run="demo", query="worst_sequences")
    assert "worst_sequences needs a value for <b>step</b>" in said(test)
    test = app_page("sql", run="demo", query="worst_sequences", step=121, values="top=3")
    assert "3 rows" in said(test)
    test = app_page("sql", run="demo", query="worst_sequences", step=121, values="top=many")
    assert not test.exception and "wanted int" in said(test)


def test_hostile_documents_reach_the_page_only_as_visible_text(runs, app_page, said):
    from app import data

    spike = next(s for s in data.rows("spikes", run="demo") if s["metric"] == "loss")["step"]
    test = app_page("spikes", run="demo", spike=spike)
    paths = " ".join(" ".join(map(str, d.value.get("path", []))) for d in test.dataframe)
    assert "<script>alert(1)<&>.txt" in paths  # as text of a data frame, which draws it on a canvas
    assert "\u202e" not in paths and "⟨U+202E⟩" in paths
    assert "<script>" not in said(test) and not test.markdown


def test_what_a_click_changes_is_a_function_of_the_event():
    assert overview.spike_of({"selection": {"spike": [{"step": 90.0}]}}) == {"spike": 90}
    assert overview.spike_of({"selection": {"spike": []}}) is None and overview.spike_of({}) is None
    assert panels.cell_of({"selection": {"cell": [{"step": 9, "layer": 5}]}}) == {
        "layer": 5,
        "step": 9,
    }
    assert panels.cell_of({"selection": {"cell": [{"step": 9, "layer": 5, "head": 3}]}}) == {
        "layer": 5,
        "head": 3,
        "step": 9,
    }
    assert panels.cell_of({"selection": {}}) is None


def test_a_batch_too_large_to_be_drawn_whole_is_told():
    import pyarrow as pa

    assert (
        panels.thinned(pa.table({"sequences": [512, 8]})) == " (206 of the 512 of a step at most)"
    )
    assert panels.thinned(pa.table({"sequences": [206]})) == ""
    assert panels.thinned(pa.table({"sequences": pa.array([], pa.int64())})) == ""


def test_the_title_of_a_spike_says_from_where_to_where_its_kind_and_when_it_was_over():
    spike = {
        "kind": "spike",
        "step": 1342,
        "metric": "loss",
        "baseline": 2.27,
        "value": 5.38,
        "spike_kind": "fast",
        "sigma": 31.2,
        "recovered_at": 1351,
        "tensor": None,
    }
    assert (
        summary.title_of(spike)
        == "Step 1,342: loss 2.270 → 5.380 nats/token, 31σ above its past, back in 9 steps (a fast"
        " spike)"
    )
    assert summary.title_of({**spike, "recovered_at": None, "spike_kind": "slow"}).endswith(
        "31σ above its past, not back since (a slow spike)"
    )
    assert summary.title_of({**spike, "metric": "grad_norm"}).startswith(
        "Step 1,342: gradient norm 2.27 → 5.38, "
    )
    broken = {**spike, "kind": "nonfinite", "tensor": "layers.0"}
    assert summary.title_of(broken) == "Step 1,342: loss is not finite, first in layers.0"
