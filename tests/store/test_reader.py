import json
import threading

import pytest

from forensics.errors import ForensicsError
from forensics.records import TABLES
from forensics.store.macros import FOREVER
from forensics.store.reader import check_run_name, connect, read, refresh, runs_in
from forensics.store.writer import Writer, replace_table
from forensics.table_schema import SQL_TYPES


def make_run(runs, name, parent=None, parent_step=None, sources=None):
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(
        json.dumps({} if sources is None else {"corpus_sources": sources})
    )
    replace_table(
        folder, "runs", {"name": [name], "parent": [parent], "parent_step": [parent_step]}
    )
    return folder


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "_data", "-x", ".hidden", "a b", "a\n", "é", "a\x00b"]
)
def test_a_name_that_could_leave_the_folder_is_refused(name):
    with pytest.raises(ForensicsError) as e:
        check_run_name(name)
    assert e.value.kind == "usage" and "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["a", "demo-1.2_x", "0"])
def test_an_ordinary_name_is_taken(name):
    assert check_run_name(name) == name


def test_runs_are_the_folders_with_a_run_json(tmp_path):
    make_run(tmp_path, "b")
    make_run(tmp_path, "a")
    make_run(tmp_path, "_data")
    (tmp_path / "no-run").mkdir()
    (tmp_path / "file").write_text("")
    assert runs_in(tmp_path) == ["a", "b"]
    assert runs_in(tmp_path / "nowhere") == []


def test_an_unwritten_table_is_an_empty_typed_relation(run_folder):
    con = connect(run_folder.parent)
    for table in TABLES.values():
        empty = read(run_folder, table.name)
        assert empty.num_rows == 0
        assert [(f.name, str(f.type)) for f in empty.schema] == [
            (c.name, {"float64": "double", "float32": "float"}.get(c.type, c.type))
            for c in table.columns
        ]
        described = con.sql(f"describe {table.name}").fetchall()
        expected = [("run", "VARCHAR")] + [(c.name, SQL_TYPES[c.type]) for c in table.columns]
        if table.open_column:
            expected.append(
                (table.open_column.name, "STRUCT(these_runs_have_no_attributes BOOLEAN)")
            )
        assert [row[:2] for row in described] == expected
        assert con.sql(f"select * from {table.name}").fetchall() == []
    assert con.sql("select * from sources").fetchall() == []


def test_written_views_have_the_schema_of_the_records(run_folder):
    with Writer(run_folder) as w:
        w.append("heads", step=0, layer=0, head=0)
    described = connect(run_folder.parent).sql("describe heads").fetchall()
    assert [row[:2] for row in described] == [("run", "VARCHAR")] + [
        (c.name, SQL_TYPES[c.type]) for c in TABLES["heads"].columns
    ]


@pytest.mark.parametrize("folder", ["runs", "r[1]*?", "it's", "a b"])
def test_views_put_the_folder_name_in_front_whatever_the_path_holds(tmp_path, folder):
    for name, loss in (("x", 1.0), ("y.2", 2.0)):
        with Writer(make_run(tmp_path / folder, name)) as w:
            w.append("steps", step=0, loss=loss)
    make_run(tmp_path / folder.replace("*", "Z"), "other")
    con = connect(tmp_path / folder)
    assert con.sql("select run, step, loss from steps order by run").fetchall() == [
        ("x", 0, 1.0),
        ("y.2", 0, 2.0),
    ]
    assert con.sql("select loss from steps where run = 'y.2'").fetchall() == [(2.0,)]
    assert con.sql("select runs_folder()").fetchall() == [(str(tmp_path / folder),)]


def test_a_missing_folder_of_runs_is_one_line(tmp_path):
    with pytest.raises(ForensicsError) as e:
        connect(tmp_path / "nowhere")
    assert e.value.kind == "missing"


def test_lineage_gives_each_ancestor_its_range_and_views_never_mix_them(tmp_path):
    for name, first, last, parent in (
        ("base", 0, 30, None),
        ("fork", 10, 25, "base"),
        ("again", 20, 28, "fork"),
    ):
        with Writer(make_run(tmp_path, name, parent, first if parent else None)) as w:
            w.append("steps", step=list(range(first, last)))
    con = connect(tmp_path)

    def lineage(run):
        return con.sql(
            "select run, first_step, last_step from lineage($run)", params={"run": run}
        ).fetchall()

    assert lineage("base") == [("base", 0, FOREVER)]
    assert lineage("fork") == [("base", 0, 10), ("fork", 10, FOREVER)]
    assert lineage("again") == [("base", 0, 10), ("fork", 10, 20), ("again", 20, FOREVER)]
    assert lineage("nobody") == []
    rows = con.sql("""
        select s.run, s.step from steps as s
        join lineage('again') as l
          on l.run = s.run and s.step >= l.first_step and s.step < l.last_step
        order by s.step""").fetchall()
    assert [step for _, step in rows] == list(range(28))
    assert [run for run, _ in rows] == ["base"] * 10 + ["fork"] * 10 + ["again"] * 8
    assert con.sql("select count(*) from steps where run = 'fork'").fetchall() == [(15,)]


def test_runs_that_name_each_other_as_parent_do_not_hang(tmp_path):
    make_run(tmp_path, "a", "b", 10)
    make_run(tmp_path, "b", "a", 5)
    rows = connect(tmp_path).sql("from lineage('a')").fetchall()
    assert ("a", 10, FOREVER) in rows and len(rows) < 5


def test_sources_come_from_run_json(tmp_path):
    entry = {"source": "it's", "first_sequence": 5, "sequences": 3, "tokens": 30}
    make_run(tmp_path, "a", sources=[entry])
    make_run(tmp_path, "b")
    assert connect(tmp_path).sql("from sources").fetchall() == [("a", "it's", 5, 3, 30)]


@pytest.mark.parametrize("text", ["{", "[]", '{"corpus_sources": [{"source": "x"}]}'])
def test_a_damaged_run_json_or_manifest_is_named(tmp_path, text):
    folder = make_run(tmp_path, "a")
    (folder / "run.json").write_text(text)
    with pytest.raises(ForensicsError, match=r"run\.json") as e:
        connect(tmp_path)
    assert e.value.kind == "integrity"
    (folder / "run.json").write_text("{}")
    (folder / "tables" / "runs" / "manifest.json").write_text(text)
    with pytest.raises(ForensicsError, match="manifest") as e:
        connect(tmp_path)
    assert e.value.kind == "integrity"


def test_a_connection_can_be_limited_and_refreshed(tmp_path):
    for name in ("a", "b"):
        with Writer(make_run(tmp_path, name)) as w:
            w.append("steps", step=0)
            w.append("events", step=0)
    con = connect(tmp_path, tables={"steps"}, runs=["b"])
    assert con.sql("select run from steps").fetchall() == [("b",)]
    assert con.sql("select run from events").fetchall() == []
    refresh(con, tmp_path)
    assert len(con.sql("from events").fetchall()) == 2


def test_one_cursor_per_thread_reads_the_same_views(run_folder):
    with Writer(run_folder) as w:
        w.append("steps", step=list(range(100)))
    con, found = connect(run_folder.parent), []

    def count():
        found.append(con.cursor().sql("select count(*), max(step) from steps").fetchall())

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[(100, 99)]] * 8


def test_opening_two_hundred_runs_takes_well_under_a_second(tmp_path):
    import os
    import time

    from forensics.store import manifest

    first = make_run(tmp_path, "r0")
    with Writer(first) as w:
        for step in range(20):
            for table, key in (
                ("steps", {}),
                ("layers", {"layer": 0}),
                ("heads", {"layer": 0, "head": 0}),
            ):
                w.append(table, step=step, **key)
            w.flush()
    for i in range(1, 200):
        for table in ("runs", "steps", "layers", "heads"):
            place = manifest.folder(tmp_path / f"r{i}", table)
            place.mkdir(parents=True)
            for path in manifest.folder(first, table).iterdir():
                os.link(path, place / path.name)
        os.link(first / "run.json", tmp_path / f"r{i}" / "run.json")
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        con = connect(tmp_path)
        best = min(best, time.perf_counter() - start)
    assert con.sql("select count(*) from steps where run = 'r77'").fetchall() == [(20,)]
    assert best < 1.0, f"{best:.2f} s"
