import json
import os
import subprocess
import sys

import pytest

from forensics.errors import ForensicsError
from forensics.records import TABLES
from forensics.store import manifest
from forensics.store.sandbox import run_sandboxed
from forensics.store.select_check import check_select, used_tables
from forensics.store.writer import Writer

# What syntax alone gives away: refused before any process starts.
REFUSED = [
    "",
    "   -- nothing",
    "select 1; select 2",
    "select 1; copy (select 1) to '{out}'",
    "selec 1",
    "copy (select 1) to '{out}'",
    "copy (select 1) to '{part}'",
    "with x as (copy (select 1) to '{out}') select 1",
    "with x as materialized (copy (select 1) to '{part}' (use_tmp_file false)) select 1",
    "select * from (with x as (copy (select 1) to '{out}') select 1)",
    "with x as (insert into steps values (1) returning *) select * from x",
    "with x as (delete from sources returning *) select * from x",
    "with x as (update steps set loss = 0 returning *) select * from x",
    "explain analyze copy (select 1) to '{out}'",
    "explain select 1",
    "attach '{out}'",
    "attach '{out}' as x (type duckdb)",
    "export database '{out}'",
    "import database '{out}'",
    "install httpfs",
    "load httpfs",
    "set enable_external_access = true",
    "reset lock_configuration",
    "pragma enable_profiling",
    "call enable_logging(storage = 'file', storage_path = '{out}')",
    "select * from enable_logging(storage = 'file', storage_path = '{out}')",
    "select * from enable_profiling()",
    "select * from checkpoint()",
    "create table t as select 1",
    "create macro f() as 1",
    "drop view steps",
    "insert into steps select * from steps",
    "begin",
    "prepare p as select 1",
    "execute p",
    "select * from read_csv('/etc/passwd')",
    "select * from READ_TEXT('/etc/passwd')",
    "select * from read_blob('/proc/self/environ')",
    "select * from read_json('{run}/run.json')",
    "select * from read_parquet('{part}')",
    "select * from parquet_metadata('{part}')",
    "select * from parquet_scan('{part}')",
    "select * from glob('/*')",
    "select * from glob('{run}/*')",
    "select * from sniff_csv('/etc/passwd')",
    "select * from read_duckdb('{out}')",
    "select * from query('select 1')",
    "select * from query_table('steps')",
    "select * from json_execute_serialized_sql('x')",
    "select * from arrow_scan(1, 2, 3)",
    "select * from duckdb_settings()",
    "select * from duckdb_secrets()",
    "select * from pragma_database_size()",
    "select (select content from read_text('/etc/passwd'))",
    "select 1 where exists (from glob('/*'))",
    "from steps union all from read_csv('/etc/passwd')",
    "select getenv('HOME')",
    "select GetEnv('HOME')",
    "select current_setting('allowed_paths')",
    "select getvariable('x')",
    "select write_log('x')",
    "select sleep_ms(100000)",
    "select nextval('s')",
    "pivot steps on step using sum(loss)",
    "select * from other.main.steps",
    "select * from pg_catalog.pg_settings",
    "select " + "(" * 5000 + "1" + ")" * 5000,
    "select * from " + "(select * from " * 3000 + "steps" + ")" * 3000,
    "select " + "+".join(["1"] * 5000),
    "select " + "not " * 5000 + "true",
    "select 1" + " " * 300_000,
]

# What only shows when it runs: the child ends it.
FAILING = [
    "select * from '/etc/passwd'",
    "select * from '{run}/run.json'",
    "select * from '{part}'",
    "select * from 'https://example.invalid/x.parquet'",
    "select * from stepz",
    "select lossy from steps",
    "select length(repeat('x', 2000000000))",
    "select repeat('x', 2000000000)",
    "select list_sum(list_transform(range(1000000000), lambda x: x * 2))",
    "select error('stop')",
    "select * from steps where step = $missing",
    "select cast('x' as int)",
]

ENDLESS = [
    "with recursive t as (select 1 as n union all select n + 1 from t) select max(n) from t",
    "select count(*) from range(10000000) as a, range(10000000) as b",
]


@pytest.fixture
def filled(run_folder):
    with Writer(run_folder) as w:
        w.append("steps", step=list(range(50)), loss=[float(s) for s in range(50)])
    return run_folder


def fill(sql, run_folder):
    part = run_folder / "tables" / "steps" / "part-0-49.parquet"
    for name, value in (("{out}", run_folder / "out"), ("{run}", run_folder), ("{part}", part)):
        sql = sql.replace(name, str(value))
    return sql


def everything(folder):
    return {
        p: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"")
        for p in sorted(folder.rglob("*"))
    }


def is_one_line_about_sql(error):
    assert (
        error.kind == "sql"
        and "\n" not in str(error)
        and "Traceback" not in str(error)
        and len(str(error)) < 700
    )


@pytest.mark.parametrize("sql", REFUSED, ids=lambda sql: sql[:50])
def test_a_statement_that_is_not_one_plain_select_is_refused_unrun(filled, sql):
    with pytest.raises(ForensicsError) as e:
        check_select(fill(sql, filled))
    is_one_line_about_sql(e.value)


@pytest.mark.parametrize("sql", FAILING, ids=lambda sql: sql[:50])
def test_an_attack_that_parses_ends_in_one_line_with_nothing_written(filled, sql):
    before = everything(filled.parent)
    with pytest.raises(ForensicsError) as e:
        run_sandboxed(filled.parent, fill(sql, filled), timeout_s=10)
    is_one_line_about_sql(e.value)
    assert everything(filled.parent) == before


def test_what_is_refused_by_syntax_is_refused_by_the_sandbox_too(filled):
    before = everything(filled.parent)
    with pytest.raises(ForensicsError, match="COPY"):
        run_sandboxed(
            filled.parent, fill("with x as (copy (select 1) to '{part}') select 1", filled)
        )
    assert everything(filled.parent) == before


CHILD_WITHOUT_SYNTAX_CHECK = """
import json, os, sys
from forensics.store import manifest, reader, sandbox
sandbox.used_tables = lambda sql: {"steps"}
folder, statements = json.loads(sys.stdin.read())
landlock = []
real = sandbox.read_only_process
sandbox.read_only_process = lambda: landlock.append(real())
def ask(sql):
    request = {"folder": folder, "sql": sql, "params": {}, "limit": 10}
    request |= {"timeout_s": 9, "memory": "1GB"}
    try:
        return str([b.to_pylist() for b in sandbox._answer(request)[1]])
    except Exception as e:
        return f"refused {type(e).__name__}"
for sql in statements:
    sys.stdout.write(ask(sql) + chr(10))
    sys.stdout.flush()
sys.stdout.write(f"landlock {landlock[0]}")
sys.stdout.flush()
os._exit(0)
"""


def test_the_process_alone_writes_nothing_and_reads_no_other_file_even_if_syntax_let_it(filled):
    """The second wall by itself: in the child, the check of the syntax tree is switched off."""
    allowed_there = (
        "parquet_metadata",
        "read_parquet",
        "parquet_scan",
        "select 1; select",
    )  # of parts it may read anyhow
    named = [
        s
        for s in REFUSED
        if any(x in s for x in ("{out}", "{part}", "/etc/passwd", "/proc", "{run}"))
    ]
    chosen = [fill(s, filled) for s in named if not any(x in s for x in allowed_there)]
    assert len(chosen) > 15
    before = everything(filled.parent)
    done = subprocess.run(
        [sys.executable, "-c", CHILD_WITHOUT_SYNTAX_CHECK],
        input=json.dumps([str(filled.parent), chosen]),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    *answers, landlock = done.stdout.splitlines()
    assert len(answers) == len(chosen), done.stderr
    assert "root:" not in done.stdout and "PATH=" not in done.stdout
    if landlock != "landlock True":
        pytest.skip(
            "this kernel has no Landlock: there the syntax check alone keeps COPY from emptying a"
            " part"
        )
    assert everything(filled.parent) == before


@pytest.mark.parametrize("sql", ENDLESS, ids=lambda sql: sql[:30])
def test_an_endless_statement_is_stopped(filled, sql):
    with pytest.raises(ForensicsError, match="longer than 1 s") as e:
        run_sandboxed(filled.parent, sql, timeout_s=1)
    is_one_line_about_sql(e.value)


def test_a_select_with_parameters_joins_and_lineage_works(filled):
    from forensics.store.writer import replace_table

    replace_table(filled, "runs", {"name": ["r"]})
    sql = """with late as (
        select s.* from steps as s join lineage($run) as l using (run) where step >= $low)
             select run, count(*) as n, max(loss) as top from late group by run"""
    got = run_sandboxed(filled.parent, sql, params={"run": "r", "low": 40})
    assert got.to_pylist() == [{"run": "r", "n": 10, "top": 49.0}]
    assert got.schema.metadata == {b"truncated": b"false"}


@pytest.mark.parametrize(
    "sql, rows",
    [
        ("describe steps", 20),
        ("show tables", len(TABLES) + 1),
        ("from steps limit 3;", 3),
        ("values (1), (2)", 2),
        ("select 1 as a, 2 as a", 1),
        ("select * from (pivot steps on step in (1, 2) using sum(loss) group by run)", 1),
        ("select 'copy x to y; drop table'", 1),
        ("select * from information_schema.tables", len(TABLES) + 1),
        ("select loss from steps where step = 0 union select 7", 2),
        ("from range(5)", 5),
    ],
)
def test_harmless_statements_run(filled, sql, rows):
    assert run_sandboxed(filled.parent, sql).num_rows == rows


def test_too_many_rows_are_cut_in_order_and_said_to_be(filled):
    got = run_sandboxed(filled.parent, "select step from steps order by step desc", limit=7)
    assert got["step"].to_pylist() == list(range(49, 42, -1))
    assert got.schema.metadata == {b"truncated": b"true"}
    exact = run_sandboxed(filled.parent, "select step from steps limit 7", limit=7)
    assert exact.num_rows == 7 and exact.schema.metadata == {b"truncated": b"false"}


def test_a_result_larger_than_its_bound_is_refused(filled):
    with pytest.raises(ForensicsError) as e:
        run_sandboxed(
            filled.parent, "select repeat('x', 10000000) as x from range(200)", memory="512MB"
        )
    is_one_line_about_sql(e.value)


def test_a_flipped_byte_is_found_only_where_the_statement_reads_it(filled):
    path = manifest.folder(filled, "steps") / "part-0-49.parquet"
    data = bytearray(path.read_bytes())
    data[30] ^= 1
    path.write_bytes(data)
    assert run_sandboxed(filled.parent, "select count(*) as n from heads").to_pylist() == [{"n": 0}]
    with pytest.raises(ForensicsError, match=r"part-0-49\.parquet") as e:
        run_sandboxed(filled.parent, "select count(*) from steps")
    assert e.value.kind == "integrity"


def test_the_tables_of_a_statement_are_known_from_its_syntax():
    sql = (
        'with a as (select * from Steps join "heads" using (run, step)) select * from a,'
        " lineage('x'), main.sources"
    )
    assert used_tables(sql) == {"steps", "heads", "runs", "sources"}
    assert used_tables("describe tensors") == {"tensors"}
    assert used_tables("select 1") == set()


def test_secrets_of_the_parent_do_not_reach_the_child(filled, monkeypatch):
    from forensics.store import sandbox

    monkeypatch.setenv("FORENSICS_SECRET", "hush")
    seen = {}
    real = sandbox.subprocess.run

    def spy(*args, **kwargs):
        seen.update(kwargs["env"])
        return real(*args, **kwargs)

    monkeypatch.setattr(sandbox.subprocess, "run", spy)
    run_sandboxed(filled.parent, "select 1")
    assert seen and "FORENSICS_SECRET" not in seen and "HOME" not in seen
