"""Rows for the pages: cached until a manifest changes, from one lineage only, on any thread."""

import io
import json
import threading

import pytest

from app import data, safe_html
from app.selection import LONGEST, Selection
from app.views.sql import page as sql
from app.views.sql import result
from forensics.errors import ForensicsError
from forensics.store.writer import Writer, replace_table


def begin(runs, name, **header):
    folder = runs / name
    folder.mkdir()
    (folder / "run.json").write_text(
        json.dumps({"name": name, "corpus_sources": [], "parent": None} | header)
    )
    replace_table(
        folder,
        "runs",
        {
            "name": [name],
            "parent": [header.get("parent")],
            "parent_step": [header.get("parent_step")],
        },
    )
    return folder


def test_a_growing_run_is_seen_and_an_unchanged_one_is_not_asked_again(empty_runs):
    with Writer(begin(empty_runs, "a")) as w:
        w.append("steps", step=[0, 1], loss=[3.0, 2.0])
        w.flush()
        first = data.table("loss_band", run="a")
        assert data.table("loss_band", run="a") is first
        w.append("steps", step=[2], loss=[1.0])
        w.flush()
        assert data.table("loss_band", run="a")["step"].to_pylist() == [0, 1, 2]
        assert data.reached("a") == 3


def test_a_fork_is_read_with_its_ancestors(empty_runs):
    with Writer(begin(empty_runs, "a")) as w:
        w.append("steps", step=[0, 1, 2], loss=[3.0, 2.0, 9.0])
    with Writer(begin(empty_runs, "b", parent="a", parent_step=2)) as w:
        w.append("steps", step=[2], loss=[1.0])
    assert data.lineage("b") == ["b", "a"]
    assert data.table("loss_band", run="b")["mean"].to_pylist() == [3.0, 2.0, 1.0]
    assert data.table("loss_band", run="a")["mean"].to_pylist() == [3.0, 2.0, 9.0]


def test_a_run_has_the_forks_that_left_it_and_none_of_another_that_had_its_name(empty_runs):
    begin(empty_runs, "a", created="2026-01-01T00:00:00")
    begin(empty_runs, "of_this", parent="a", parent_created="2026-01-01T00:00:00")
    begin(empty_runs, "of_another", parent="a", parent_created="2001-01-01T00:00:00")
    assert [fork["name"] for fork in data.forks_of("a")] == ["of_this"]
    assert data.forks_of("of_this") == data.forks_of("gone") == []


def test_a_circle_of_parents_ends(empty_runs):
    begin(empty_runs, "a", parent="b")
    begin(empty_runs, "b", parent="a")
    assert data.lineage("a") == ["a", "b"]


def test_the_band_of_the_roll_ups_holds_every_spike_of_the_rows(empty_runs):
    losses = [2.0 + (s % 7) / 100 for s in range(1050)]
    losses[333], losses[1049] = 9.0, 8.0
    with Writer(begin(empty_runs, "long")) as w:
        w.append("steps", step=list(range(1050)), loss=losses)
    rolled = data.rows("loss_band_by100", run="long", every=200)
    fine = data.rows("loss_band", run="long", every=200)
    assert [(r["step"], r["low"], r["high"]) for r in rolled] == [
        (r["step"], r["low"], r["high"]) for r in fine
    ]
    assert max(r["high"] for r in rolled) == 9.0 and rolled[-1]["high"] == 8.0


def test_only_parts_of_the_window_are_hashed_before_a_query(empty_runs):
    with Writer(begin(empty_runs, "a")) as w:
        for first in (0, 100):
            w.append("steps", step=list(range(first, first + 100)), loss=1.0)
            w.flush()
    part = next(
        p for p in (empty_runs / "a" / "tables" / "steps").glob("*.parquet") if "100" in p.name
    )
    raw = bytearray(part.read_bytes())
    raw[len(raw) // 2] ^= 1
    part.write_bytes(raw)
    around = {"run": "a", "step": 10, "before": 2, "after": 2}
    assert data.table("steps_around", **around, window=(8, 13)).num_rows == 5
    data.forget()
    with pytest.raises(ForensicsError, match="is not as it was written"):
        data.table("steps_around", **around)


def test_names_that_are_no_runs_are_refused(empty_runs):
    for name in ("..", "nosuch", "a/b"):
        with pytest.raises(ForensicsError):
            data.rows("loss_band", run=name)


def test_threads_get_the_same_rows(runs):
    data.forget()
    found, errors = [], []

    def ask(step):
        try:
            found.append(
                data.table("steps_around", run="demo", step=step, before=0, after=0)[
                    "step"
                ].to_pylist()
            )
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=ask, args=(s,)) for s in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors and sorted(found) == [[s] for s in range(8)]


# ---- what is drawn of any column


def of_sql(text):
    import duckdb

    with duckdb.connect() as con:
        return con.sql(text).to_arrow_table()


HIDDEN = [
    "['a\u202e']",
    "{'a': 'b\u202e'}",
    "map {'k\u202e': 'v'}",
    "[{'a': ['\u202e']}]",
    "encode('\u202e')",
    "'\u202e'::enum('\u202e')",
    "union_value(n := '\u202e')",
    "['\u202e']::varchar[1]",
    "'\u202e'",
]


@pytest.mark.parametrize("value", HIDDEN)
def test_what_cannot_be_seen_is_shown_inside_every_kind_of_column(value):
    shown = safe_html.readable(of_sql(f"select {value} as x"))
    text = shown["x"][0].as_py()
    assert isinstance(text, str) and "⟨U+202E⟩" in text and "\u202e" not in text


def test_numbers_and_times_stay_what_they_are_and_the_rest_is_text():
    rows = of_sql(
        "select 1 as i, 1.5::double as f, sum(7) as s, date '2020-01-02' as d, true as b, null as"
        " n, interval 3 day as v, [1, null] as l, {'a': 1.5} as st, '\\xFF'::blob as raw,"
        " '101'::bit as bits"
    )
    (found,) = safe_html.readable(rows).to_pylist()
    assert (found["i"], found["f"], found["s"], found["b"], found["n"]) == (1, 1.5, 7.0, True, None)
    assert (
        str(found["d"]) == "2020-01-02"
        and found["l"] == "[1, null]"
        and found["st"] == '{"a": 1.5}'
    )
    assert found["raw"] == "\\xff" and "days=3" in found["v"] and isinstance(found["bits"], str)


def test_a_number_of_38_digits_is_written_to_a_file_as_it_is():
    assert result.written(
        of_sql("select 12345678901234567890123::hugeint as n"), "csv"
    ).split() == [
        b'"n"',
        b"12345678901234567890123",
    ]


def test_a_result_with_lists_structs_and_enums_can_be_written_and_a_sum_can_be_drawn():
    import pyarrow.csv
    import pyarrow.parquet

    rows = of_sql(
        "select range as step, sum(range) over () as total, [range] as l, {'a': range} as s,"
        " 'x'::enum('x') as e from range(3)"
    )
    csv = pyarrow.csv.read_csv(io.BytesIO(result.written(rows, "csv"))).to_pylist()
    assert csv[1] == {"step": 1, "total": 3.0, "l": "[1]", "s": '{"a": 1}', "e": "x"}
    assert pyarrow.parquet.read_table(io.BytesIO(result.written(rows, "parquet")))[
        "l"
    ].to_pylist() == [[0], [1], [2]]
    x, y = result.axes(result.unique(safe_html.plain(rows)))
    assert (x, y) == (["step", "total", "l", "s", "e"], ["total"])
    points, numeric = result.plotted(safe_html.plain(rows), "step", "total")
    assert numeric and points.to_pylist()[2] == {"x": 2, "y": 3.0}


def test_the_sql_page_holds_a_hostile_nested_result_and_draws_it(runs, app_page, said):
    text = (
        "select 1 as step, sum(2) as total, ['\u202e', '<script>'] as l, {'p': '\u202e'} as s union"
        " all select 2, 3, [], {'p': ''}"
    )
    test = app_page("sql", run="demo", sql=text)
    assert not test.exception and "2 rows" in said(test)
    drawn = next(d.value for d in test.dataframe if "l" in d.value)
    assert set(drawn["l"]) == {'["⟨U+202E⟩", "<script>"]', "[]"} and '{"p": "⟨U+202E⟩"}' in set(
        drawn["s"]
    )
    assert len(test.get("vega_lite_chart")) == 1, "a sum of integers is a decimal, and can be drawn"


def test_an_emptied_editor_stays_an_editor_and_no_statement_is_longer_than_a_url_holds(
    runs, app_page, said
):
    test = app_page("sql", run="demo", sql="select 1 as one")
    test.text_area(key="editor").set_value("").run()
    assert not test.exception and test.selectbox(key="named").value == sql.OWN
    assert "There is nothing to run yet" in said(test) and test.text_area(key="editor").value == ""
    assert test.text_area(key="editor").proto.max_chars == LONGEST
    longest = "x" * LONGEST
    assert Selection.parse({"sql": sql.kept_text(longest)}).sql == longest
    assert Selection.parse({"sql": sql.kept_text("")}).sql is not None


def test_a_statement_is_run_again_only_when_a_manifest_changed(runs, app_page, monkeypatch):
    asked = []
    monkeypatch.setattr(
        data,
        "sql",
        lambda text, limit=10_000: (
            asked.append(text) or of_sql("select 1 as a, 2 as b union all select 2, 3")
        ),
    )
    test = app_page("sql", run="demo", sql="select 41 as a, 2 as b")
    test.run()
    assert not test.exception and len(asked) == 1
