"""The pages Runs, Spikes and SQL under AppTest: what they say, their empty states, and that nothing acts in hostile text."""

import json

import pytest

from forensics.store.writer import Writer, replace_table

PAGES = ["runs", "spikes", "sql"]


def begin(runs, name, **header):
    """A run's folder without a step."""
    folder = runs / name
    folder.mkdir()
    document = {"name": name, "status": "running", "first_step": 0, "steps": 200, "config": {}, "corpus_sources": [],
                "created": "2026-01-01T00:00:00Z", "arguments": [], "parameters": 1, "recipe": "r", "device": "cpu",
                "precision": "fp32", "threads": 1, "parent": None, "parent_step": None} | header  # fmt: skip
    (folder / "run.json").write_text(json.dumps(document))
    row = {
        k: document[k] for k in ("name", "status", "recipe", "first_step", "steps", "parent", "parent_step", "created")
    }
    replace_table(folder, "runs", {k: [v] for k, v in row.items()} | {"config": [json.dumps(document["config"])]})
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
    assert "Left out of the URL" in said(test) or "No run here is called" in said(test)
    assert "<script>" not in said(test)
    assert test.selectbox(key="run-picker").value == "demo"


def test_the_spike_page_opens_on_a_sentence_with_step_gap_sigma_and_a_hedge(runs, app_page, said):
    from app import data

    spike = next(s for s in data.rows("spikes", run="demo") if s["metric"] == "loss")
    text = said(app_page("spikes", run="demo", spike=spike["step"]))
    assert f"Step {spike['step']}: loss {spike['baseline']:.3f} → {spike['value']:.3f} nats/token" in text
    assert "σ" in text and "of the sequences before" in text
    assert "not proof of cause" in text and f"replay blame demo --spike {spike['step']}" in text
    assert "caused" not in text


def test_a_replay_takes_the_place_of_the_hedge(runs, app_page, said):
    from app import data

    spike = next(s for s in data.rows("spikes", run="demo") if s["metric"] == "loss")["step"]
    row = {"spike": [spike], "rank": [0], "step": [spike], "slot": [3], "replayed_effect": [-1.25]}
    replace_table(runs / "demo", "blame", row)
    try:
        text = said(app_page("spikes", run="demo", spike=spike))
    finally:
        replace_table(runs / "demo", "blame", {"spike": [], "rank": []})
    assert "By replay" in text and "slot 3" in text and "−1.250" in text
    assert "not proof of cause" not in text


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
    assert "robust z needs 16 recorded steps" in said(test)


def test_the_runs_page_shows_only_what_differs_from_the_parent(runs, empty_runs, app_page):
    begin(empty_runs, "parent", config={"train": {"lr": 1, "steps": 200}, "data": {"x": 1}})
    begin(empty_runs, "fork", config={"train": {"lr": 2, "steps": 200}, "data": {"x": 1}}, parent="parent", parent_step=7,
          interventions=[{"kind": "<script>alert(1)</script>\u202e"}])  # fmt: skip
    test = app_page("runs", run="fork")
    assert not test.exception
    tables = [d.value for d in test.dataframe]
    (diff,) = [t for t in tables if list(t.columns) == ["key", "parent", "here"]]
    assert diff.values.tolist() == [["train.lr", "1", "2"]]
    assert any("⟨U+202E⟩" in c.value for c in test.code)


def test_the_tree_puts_forks_under_their_parents_and_null_forks_in_one_row(empty_runs, page_module):
    from app import data

    begin(empty_runs, "a", status="finished")
    begin(empty_runs, "b")
    with Writer(begin(empty_runs, "a-fork", parent="a", parent_step=50, first_step=50, steps=80)) as w:
        w.append("steps", step=[50, 51], loss=1.0)
    replace_table(
        empty_runs / "a-fork", "forks", {"fork": ["a-fork"], "placebos": [5], "chaos": [3], "sentence": ["drops"]}
    )
    module = page_module("runs")
    rows = module.tree(data.headers(), {h["run"]: h for h in data.rows("run_health")})
    assert [(r["row"].strip("└ "), r["kind"]) for r in rows] == [
        ("a", "run"), ("a-fork", "fork"), ("null ×8 of a-fork", "null"), ("b", "run")]  # fmt: skip
    fork = rows[1]
    assert (fork["first"], fork["last"], fork["ahead"], fork["parent_row"], fork["parent_step"]) == (
        50,
        52,
        80,
        "a",
        50,
    )
    assert module.bar_of({"selection": {"bar": [{"run": "a-fork"}]}}) == {"run": "a-fork"}
    assert module.bar_of({"selection": {"bar": []}}) is None


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
def test_sql_of_the_url_runs_in_the_sandbox_and_errors_are_sentences(runs, app_page, said, sql, wanted):
    test = app_page("sql", run="demo", sql=sql)
    assert not test.exception
    assert wanted in said(test)
    assert "<script>" not in said(test)


def test_a_named_query_asks_for_what_it_lacks_and_takes_the_rest_from_the_selection(runs, app_page, said):
    test = app_page("sql", run="demo", query="worst_sequences")
    assert "worst_sequences needs <b>step</b>" in said(test)
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


def test_what_a_click_changes_is_a_function_of_the_event(page_module):
    module = page_module("spikes")
    assert module.spike_of({"selection": {"spike": [{"step": 90.0}]}}) == {"spike": 90}
    assert module.spike_of({"selection": {"spike": []}}) is None and module.spike_of({}) is None
    assert module.cell_of({"selection": {"cell": [{"step": 9, "layer": 5}]}}) == {"layer": 5, "step": 9}
    assert module.cell_of({"selection": {"cell": [{"step": 9, "layer": 5, "head": 3}]}}) == {
        "layer": 5,
        "head": 3,
        "step": 9,
    }
    assert module.cell_of({"selection": {}}) is None


def test_the_title_of_a_spike_says_from_where_to_where_its_kind_and_when_it_was_over(page_module):
    module = page_module("spikes")
    spike = {"kind": "spike", "step": 1342, "metric": "loss", "baseline": 2.27, "value": 5.38, "spike_kind": "fast", "sigma": 31.2,
             "recovered_at": 1351, "tensor": None}  # fmt: skip
    assert module.title_of(spike) == "Step 1,342: loss 2.270 → 5.380 nats/token · fast (31σ, back in 9 steps)"
    assert module.title_of({**spike, "recovered_at": None, "spike_kind": "slow"}).endswith("slow (31σ, not back)")
    assert module.title_of({**spike, "metric": "grad_norm"}).startswith("Step 1,342: gradient norm 2.27 → 5.38 ·")
    broken = {**spike, "kind": "nonfinite", "tensor": "layers.0"}
    assert module.title_of(broken) == "Step 1,342: loss is not finite, first in layers.0"
