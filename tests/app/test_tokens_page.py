"""Tokens: what a checkpoint says in numbers, what is drawn of many tokens, one token's page;
hostile token texts.
"""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pytest

from app import browser as driver
from app import data
from app.views.tokens import lists, scatter, summary
from app.views.tokens import token as token_page

HOSTILE = "<script>alert(1)</script>![](http://evil.example/a.png)\u202e\x07"


def vocabulary(run, V=257):
    """Rows of two checkpoints: token i was met i − 8 times (never below 8); id 3 is hostile, 4 has
    a cause.
    """
    from forensics.store.writer import Writer

    with Writer(run) as w:
        for step in (60, 120):
            met = np.maximum(np.arange(V) - 8, 0) * step // 60
            text = [HOSTILE if i == 3 else f"t{i} x" for i in range(V)]
            w.append(
                "vocabulary",
                step=step,
                token=list(range(V)),
                text=text,
                category=["UNDECODEABLE" if i == 5 else "OK" for i in range(V)],
                indicator=[float(0.1 + i / V) for i in range(V)],
                exposure_in=met.tolist(),
                exposure_out=met.tolist(),
                exposure_grad=met.tolist(),
                documents=np.minimum(met, 3).tolist(),
                first_seen=[None if m == 0 else 1 for m in met],
                last_seen=[None if m == 0 else step - 1 for m in met],
                cause=["merge-scaffold" if i == 4 else None for i in range(V)],
            )


@pytest.fixture(scope="module")
def token_runs(app_runs, tmp_path_factory):
    runs = tmp_path_factory.mktemp("tokens") / "runs"
    shutil.copytree(app_runs, runs)
    vocabulary(runs / "demo")
    return runs


@pytest.fixture
def measured(token_runs, monkeypatch):
    monkeypatch.setenv("FORENSICS_RUNS", str(token_runs))
    return token_runs


def text_of(parts):
    return "".join(p if isinstance(p, str) else p.text for p in parts)


def test_the_summary_counts_never_shown_candidates_and_causes(measured) -> None:
    s = summary.summary(data.table("token_points", run="demo", step=120))
    assert (s["tokens"], s["never"], s["candidates"], s["met_candidates"]) == (257, 9, 6, 0)
    assert (
        s["kinds"] == {"ok": 255, "merge-scaffold": 1, "partial-utf8": 1}
        and s["lowest"][0]["token"] == 0
    )
    said = text_of(summary.sentence_of(s, {0: True, 1: False}, "24 of 24 repeated"))
    assert (
        "6 of 256 tokens that text can contain are suspected of being hardly trained" in said
        and "None of them was seen during training." in said
        and "Prompted with 2 of them, the model could not repeat 1." in said
    )


def test_a_checkpoint_without_an_indicator_says_so(measured) -> None:
    rows = data.table("token_points", run="demo", step=120)
    empty = rows.set_column(
        rows.column_names.index("indicator"), "indicator", pa.nulls(rows.num_rows, pa.float32())
    )
    assert "only how often each token was seen is known" in text_of(
        summary.sentence_of(summary.summary(empty), {}, None)
    )


def test_the_tied_exposure_is_whichever_moved_the_row_more(measured) -> None:
    rows = data.rows("token_points", run="demo", tied=1)
    assert rows[0]["step"] == 120 and all(
        r["exposure"] == max(r["exposure_grad"], r["exposure_out"]) for r in rows
    )


def test_many_ok_tokens_are_rolled_up_and_those_with_a_cause_stay() -> None:
    n, caused = 30_000, 40
    rng = np.random.default_rng(0)
    kinds = ["forgotten"] * caused + ["ok"] * (n - caused)
    known = pa.table(
        {
            "token": np.arange(n),
            "kind": kinds,
            "exposure": rng.integers(0, 10**6, n),
            "indicator": rng.normal(size=n),
        }
    )
    marks, cells = scatter.rolled(known, 20_000)
    assert marks.num_rows == caused and sum(cells["tokens"].to_pylist()) == n - caused
    assert marks.num_rows + cells.num_rows <= 20_000
    ok = known.slice(caused)
    x, y = ok["exposure"].to_numpy(), ok["indicator"].to_numpy()
    assert min(cells["x"].to_pylist()) == pytest.approx(x.min(), abs=1e-6) and max(
        cells["y2"].to_pylist()
    ) == pytest.approx(y.max())
    few, none = scatter.rolled(known.slice(0, 20_000), 20_000)
    assert few.num_rows == 20_000 and none.num_rows == 0
    most, _ = scatter.rolled(
        known.set_column(1, "kind", pa.array(["forgotten"] * n)).slice(0, 25_000), 20_000
    )
    assert most.num_rows <= 20_000


@pytest.mark.parametrize(
    "text, first", [("17", 17), ("t200", 200), ("T200", None), ("script", 3), ("99999", None)]
)
def test_a_token_is_found_by_id_or_text(measured, text: str, first: int | None) -> None:
    found = lists.found_of(data.table("token_points", run="demo"), text)
    assert (found[0]["token"] if found else None) == first


def test_a_token_in_a_list_shows_its_spaces_and_what_is_hidden() -> None:
    assert lists.spelled(" a\n\tb\u202e") == "␣a↵→b⟨U+202E⟩" and lists.spelled("") == "∅"


def test_the_documents_of_a_token_are_those_of_the_corpus(measured) -> None:
    from forensics.data.shards import open_corpus

    folder = measured / "_data" / data.header("demo")["corpus"]
    corpus = open_corpus(folder)
    token = ord("<")
    rows, times, scanned, total = token_page.documents_of(folder, token)
    wanted = {}
    for s, source in enumerate(corpus.sources):
        stream = corpus.tokens(s, 0, source.tokens)
        for at in np.flatnonzero(stream == token):
            document = int(corpus.document_at(s, np.array([at]))[0])
            wanted[document] = wanted.get(document, 0) + 1
    assert (
        {r["document"]: r["times"] for r in rows} == wanted
        and times == sum(wanted.values())
        and scanned == total
    )
    assert [r["times"] for r in rows] == sorted((r["times"] for r in rows), reverse=True)
    part = token_page.documents_of(folder, token, total // 2)
    assert 0 < part[2] < total and part[1] <= times


def test_an_unmeasured_run_names_the_command_and_offers_it(runs, app_page, said) -> None:
    page = app_page("tokens", run="demo")
    assert (
        not page.exception
        and "forensics tokens demo" in said(page)
        and "Measure the tokens" in [b.label for b in page.button]
    )


def test_the_page_opens_on_its_sentence_and_hostile_text_stays_text(
    measured, app_page, said
) -> None:
    page = app_page("tokens", run="demo", token=3)
    html = "\n".join(h.proto.body for h in page.get("html"))
    assert not page.exception and "State 120: the model has never seen 9 of its 257 tokens" in html
    assert (
        "<script>" not in html
        and "&lt;script&gt;alert(1)&lt;/script&gt;" in html
        and "⟨U+202E⟩⟨U+0007⟩" in html
    )
    assert not page.markdown and not page.caption
    assert "State 60:" in said(app_page("tokens", run="demo", step=60))


def test_a_token_that_is_not_in_the_vocabulary_is_a_sentence(measured, app_page, said) -> None:
    page = app_page("tokens", run="demo", token=99999)
    assert not page.exception and "No token has the id 99,999" in said(page)


@pytest.fixture
def prompted(measured, tmp_path, monkeypatch):
    """A copy of the runs, and a function that keeps what prompts told of a checkpoint: P by token,
    and the verdict.
    """
    copy = tmp_path / "runs"
    shutil.copytree(measured, copy)
    monkeypatch.setenv("FORENSICS_RUNS", str(copy))

    def keep(step, p, verdict="24 of 24 well-trained control tokens repeated"):
        document = {
            "copies": bool(p),
            "verdict": verdict,
            "below": 0.01,
            "tokens": {
                "id": list(p),
                "max_prob": list(p.values()),
                "at_least": [x >= 0.01 for x in p.values()],
            },
        }
        (copy / "demo" / f"verified-{step}.json").write_text(json.dumps(document))

    return keep


def marked(test):
    """The ids that the list says are verified, and those that the chart rings."""
    listed = next(d.value for d in test.dataframe if "verified" in d.value)
    chart = next(
        c
        for c in test.get("vega_lite_chart")
        if {"verified", "points"} <= {d.name for d in c.proto.datasets}
    )
    rings = next(d for d in chart.proto.datasets if d.name == "verified").data.data
    return listed["id"][listed["verified"].eq(True)].tolist(), pa.ipc.open_stream(rings).read_all()[
        "token"
    ].to_pylist()


def test_verified_tokens_are_marked_wherever_they_were_prompted_and_at_no_other_checkpoint(
    prompted, app_page, said
) -> None:
    prompted(120, {0: 0.002, 7: 0.4})
    test = app_page("tokens", run="demo", token=0)
    assert not test.exception and marked(test) == ([0], [0])
    text = said(test)
    assert (
        "Prompted with <b>2</b> of them, the model could not repeat <b>1</b>." in text
        and "Asked to repeat it, the model cannot." in text
    )
    assert "--verify" not in text and not [
        b for b in test.button if b.label.startswith("Ask the model")
    ]
    assert "Asked to repeat it, the model can." in said(app_page("tokens", run="demo", token=7))
    other = app_page("tokens", run="demo", step=60, token=0)
    assert marked(other) == ([], []) and "forensics tokens demo@60 --verify" in said(other)


def test_a_model_that_cannot_copy_says_so_in_the_place_of_a_count(prompted, app_page, said) -> None:
    prompted(120, {}, "this model cannot copy: verification says nothing (<script>)")
    text = said(app_page("tokens", run="demo"))
    assert "Prompts: this model cannot copy: verification says nothing (&lt;script&gt;)." in text
    assert "0 of 0" not in text and "--verify" not in text


def test_the_candidates_of_a_checkpoint_can_be_verified_from_the_page(
    measured, app_page, monkeypatch
) -> None:
    from app import jobs

    started = []
    monkeypatch.setattr(jobs, "start", lambda *a: started.append(a))
    test = app_page("tokens", run="demo", step=60)
    next(
        b for b in test.button if b.label == "Ask the model to repeat the suspected tokens"
    ).click().run()
    assert started == [("demo", "forensics", ["tokens", "demo@60", "--verify"])]


def test_a_damaged_file_of_verification_counts_as_none(prompted, measured, app_page, said) -> None:
    prompted(120, {0: 0.002})
    path = data.runs_folder() / "demo" / "verified-120.json"
    assert token_page.verified_of("demo", 120) == (
        {0: True},
        "24 of 24 well-trained control tokens repeated",
    )
    for age, text in enumerate(
        ('{"half', "[]", '{"copies": true, "verdict": "", "below": 0.01, "tokens": []}')
    ):
        path.write_text(text)
        os.utime(path, (age, age))  # a file that is replaced is read again
        assert token_page.verified_of("demo", 120) == ({}, None)
    assert "--verify" in said(app_page("tokens", run="demo"))


def ticked(test, table):
    """The rows that a table has ticked."""
    return test.session_state[table]["selection"]["rows"]


def test_the_tick_of_the_list_follows_the_url(measured, app_page) -> None:
    test = app_page("tokens", run="demo", token=5)
    listed = next(d.value for d in test.dataframe if "verified" in d.value)
    assert ticked(test, "token-list-demo-120") == [listed["id"].tolist().index(5)]
    test.query_params["token"] = "9"  # as Back does
    test.run()
    assert ticked(test, "token-list-demo-120") == [listed["id"].tolist().index(9)]
    assert ticked(app_page("tokens", run="demo", token=99999), "token-list-demo-120") == []
    assert ticked(app_page("tokens", run="demo", step=60), "token-list-demo-60") == [0], (
        "the one that is shown"
    )


def test_a_row_that_is_clicked_is_a_function_of_the_event(monkeypatch) -> None:
    import streamlit as st

    gone = []
    monkeypatch.setattr(lists, "goto", lambda **change: gone.append(change))
    for rows in ([1], [], [7]):
        monkeypatch.setattr(st, "session_state", {"list": {"selection": {"rows": rows}}})
        lists._chose("list", [30, 31])
    assert gone == [{"token": 31}], (
        "the ticked row clicked again, or one that is no longer there, changes nothing"
    )
    assert [lists.row_of([30, 31], t) for t in (31, 5, None)] == [1, None, None]


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_drawn_in_a_browser_and_a_click_chooses_a_token(
    open_tab, token_url, dark: bool
) -> None:
    tab = open_tab(token_url, "tokens", dark=dark, run="demo", token=3)
    assert len(tab.charts()) >= 4
    left = tab.page.locator("canvas").first.bounding_box()
    inner = tab.page.locator('[data-testid="stVegaLiteChart"]').nth(1)
    assert left and inner
    tab.page.get_by_label("Find a token").fill("t200")
    tab.page.get_by_label("Find a token").press("Enter")
    tab.settle()


@pytest.fixture(scope="module")
def token_url(token_runs):
    with driver.serving(token_runs) as url:
        yield url


def test_in_a_browser_the_tick_goes_back_with_the_url_and_a_row_can_be_chosen_again(
    open_tab, token_url
) -> None:
    tab = open_tab(token_url, "tokens", run="demo")
    table = tab.page.locator('[data-testid="stDataFrame"]').first

    def click(row: int) -> str | None:
        table.scroll_into_view_if_needed()
        box = table.bounding_box()
        tab.page.mouse.click(box["x"] + 12, box["y"] + 35 * (row + 1) + 17)
        tab.page.wait_for_timeout(400)
        tab.settle()
        return tab.parameters().get("token")

    assert (click(2), click(4)) == ("2", "4")
    tab.page.go_back()
    tab.settle()
    assert tab.parameters()["token"] == "2" and "id 2" in tab.page.inner_text(
        '[data-testid="stMain"]'
    )
    assert click(4) == "4", (
        "the tick of row 4 had gone back too: the click chooses it and does not take it away"
    )
    assert click(4) == "4", "and a second click takes nothing away"
    assert click(2) == "2"
