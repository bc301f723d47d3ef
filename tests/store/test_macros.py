"""The SQL macros beside the views: a run's trajectory, robust statistics, lists of names."""

import math
import statistics

import pytest

from forensics.errors import ForensicsError
from forensics.records import TABLES
from forensics.store.macros import MACROS
from forensics.store.reader import connect
from forensics.store.sandbox import run_sandboxed
from forensics.store.select_check import used_tables
from forensics.store.writer import Writer, replace_table

VALUES = [1.0, 2.0, 2.0, 5.0, 11.0]
MAD = 1.0  # the median of |x − 2|: 0, 0, 1, 3, 9


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`base` with steps 0 to 29, `fork` of it at 10 with steps 10 to 24."""
    folder = tmp_path_factory.mktemp("macros")
    for name, parent, first, last in (("base", None, 0, 30), ("fork", "base", 10, 25)):
        run = folder / name
        run.mkdir()
        (run / "run.json").write_text("{}")
        replace_table(
            run,
            "runs",
            {"name": [name], "parent": [parent], "parent_step": [first if parent else None]},
        )
        with Writer(run) as writer:
            writer.append("steps", step=list(range(first, last)), loss=1.0)
    return folder


def value(con, expression):
    return con.sql(f"select {expression}").fetchall()[0][0]


def test_rows_along_a_fork_are_its_parent_s_up_to_the_fork_and_then_its_own(runs):
    sql = "select run, step from steps_along($run) order by step"
    for rows in (
        connect(runs).sql(sql, params={"run": "fork"}).fetchall(),
        [tuple(r.values()) for r in run_sandboxed(runs, sql, params={"run": "fork"}).to_pylist()],
    ):
        assert rows == [("base" if s < 10 else "fork", s) for s in range(25)]


def test_every_table_with_a_row_for_a_batch_has_its_macro_and_the_sandbox_knows_what_it_reads(runs):
    names = {name.removesuffix("_along") for name in MACROS if name.endswith("_along")}
    assert names == {
        *("events", "steps", "layers", "heads", "tensors", "sequences", "tokens", "metrics")
    }
    for name in names:
        assert used_tables(f"from {name}_along('base')") == {name, "runs"}
        assert connect(runs).sql(f"from {name}_along('base')").columns == [
            "run",
            *(c.name for c in TABLES[name].columns),
        ]
    with pytest.raises(ForensicsError, match="stepz_along"):
        used_tables("from stepz_along('base')")


def test_a_connection_to_some_tables_has_the_macros_that_read_them(runs):
    con = connect(runs, {"steps"})
    assert con.sql("from lineage('base')").fetchall() == []  # `runs` is empty here
    with pytest.raises(Exception, match="heads_along"):
        con.sql("from heads_along('base')")


def test_robust_scale_is_that_of_mad_and_where_it_is_0_the_standard_deviation(runs):
    con = connect(runs)
    for name, values, expected in (
        ("robust_sigma", VALUES, 1.4826 * MAD),
        ("robust_scale", VALUES, 1.4826 * MAD),
        ("robust_sigma", [2.0, 2.0, 2.0, 5.0], 0.0),
        ("robust_scale", [2.0, 2.0, 2.0, 5.0], statistics.pstdev([2, 2, 2, 5])),
        # what is not finite has no place in an order: it is counted, and passed over
        ("robust_sigma", [*VALUES, *[math.nan] * 9, math.inf, -math.inf], 1.4826 * MAD),
        ("robust_scale", [2.0, 2.0, 2.0, 5.0, math.inf], statistics.pstdev([2, 2, 2, 5])),
        ("nonfinite", [2.0, None, math.nan, math.inf, -math.inf], 3),
        ("nonfinite", [2.0, None], 0),
    ):
        (row,) = con.sql(
            f"select {name}(x) from (select unnest($values) as x)", params={"values": values}
        ).fetchall()
        assert row[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("x", "scale", "z"),
    [
        ("5.0", "2.0", 1.5),
        ("-1.0", "2.0", -1.5),
        ("2.0", "0.0", 0.0),
        ("2.5", "0.0", math.inf),
        ("'nan'", "2.0", math.inf),
        ("'-infinity'", "2.0", math.inf),
        ("null", "2.0", None),
    ],
)
def test_robust_z_of_a_number_and_of_what_is_none(runs, x, scale, z):
    assert value(connect(runs), f"robust_z({x}::double, 2.0::double, {scale}::double)") == z


@pytest.mark.parametrize(
    ("z", "level"),
    [("2.9", 0), ("3", 1), ("6", 2), ("10", 3), ("-20", -4), ("39.9", 4), ("'infinity'", 5)],
)
def test_the_level_counts_3_6_10_20_40_with_the_sign_of_z(runs, z, level):
    assert value(connect(runs), f"z_level({z}::double)") == level
    assert value(connect(runs), "z_level(null::double)") is None


@pytest.mark.parametrize(
    ("names", "listed"),
    [("", True), ("*", True), ("a", True), ("b, a", True), ("b", False), ("ab", False)],
)
def test_a_name_is_listed_or_all_are(runs, names, listed):
    assert value(connect(runs), f"is_listed('a', '{names}')") is listed
