"""Attributes of documents as SQL sees them, over runs whose attributes differ."""

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forensics.errors import ForensicsError
from forensics.records import DOCUMENTS
from forensics.store.reader import connect, read
from forensics.store.sandbox import run_sandboxed
from forensics.store.writer import link_table


def run_with(runs, name, attributes):
    (runs / name).mkdir(parents=True)
    (runs / name / "run.json").write_text("{}")
    values = {"string": "x", "int64": 0, "float32": 0.0}
    columns = {c.name: [values[c.type]] * len(attributes) for c in DOCUMENTS.columns}
    table = pa.table(columns | {"document": range(len(attributes))}, DOCUMENTS.arrow_schema())
    if any(attributes):
        table = table.append_column("attributes", pa.array(attributes))
    pq.write_table(table, runs / f"{name}.parquet")
    link_table(runs / name, "documents", runs / f"{name}.parquet")


@pytest.fixture
def runs(tmp_path):
    run_with(tmp_path, "a", [{"quality": 0.1, "tags": ["x", "y"], "meta.lang": "en"}, None])
    run_with(tmp_path, "b", [{"Quality": 1, "tags": "x", "n": True}, {"Quality": 0}])
    run_with(tmp_path, "plain", [None])
    return tmp_path


def test_attributes_of_several_runs_have_one_type_each(runs):
    con = connect(runs)
    rows = con.sql(
        "select run, document, attributes.quality, attributes.tags, attributes['meta.lang'],"
        " attributes.n from documents order by run, document"
    ).fetchall()
    assert rows == [
        ("a", 0, 0.1, ["x", "y"], "en", None),
        ("a", 1, None, None, None, None),
        ("b", 0, 1.0, ["x"], None, True),
        ("b", 1, 0.0, None, None, None),
        ("plain", 0, None, None, None, None),
    ]
    assert read(runs / "a", "documents").column_names == [c.name for c in DOCUMENTS.columns]


def test_a_select_in_the_sandbox_chooses_by_attributes(runs):
    sql = "select run, document from documents where attributes.quality < 0.3 order by run"
    assert run_sandboxed(runs, sql).to_pylist() == [
        {"run": "a", "document": 0},
        {"run": "b", "document": 1},
    ]
    tagged = "select document from documents where list_contains(attributes.tags, 'y')"
    assert run_sandboxed(runs, tagged).num_rows == 1
    with pytest.raises(ForensicsError, match='"qualty"'):
        run_sandboxed(runs, sql.replace("quality", "qualty"))


def test_runs_without_attributes_say_so(tmp_path):
    run_with(tmp_path, "plain", [None])
    with pytest.raises(duckdb.Error, match="these_runs_have_no_attributes"):
        connect(tmp_path).sql("select attributes.quality from documents")


def test_names_that_sql_must_quote_are_quoted(tmp_path):
    names = ["select", "a b", 'we"ird', "it's", "run", "x); drop view steps; --", "größe"]
    run_with(tmp_path, "odd", [dict.fromkeys(names, 1)])
    run_with(tmp_path, "other", [{"a b": 2.5}])
    con = connect(tmp_path)
    for name in names:
        quoted = "'" + name.replace("'", "''") + "'"
        ((value,),) = con.sql(f"select max(attributes[{quoted}]) from documents").fetchall()
        assert value == (2.5 if name == "a b" else 1)
