import math
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from forensics.records import ROLLUPS, TABLES
from forensics.rollup_schema import BUCKET, NUMERIC
from forensics.store import manifest
from forensics.store.reader import connect, problems, read
from forensics.store.writer import Writer

HEADS = (0, 1)


def expected(run, table):
    """The roll-up by a loop over the rows: {(bucket, rest of key): row}."""
    spec, groups = TABLES[table], {}
    for row in read(run, table).to_pylist():
        key = (row["step"] // BUCKET * BUCKET, *(row[k] for k in spec.key[1:]))
        groups.setdefault(key, []).append(row)
    found = {}
    for key, rows in groups.items():
        out = {"rows": len(rows), "nonfinite": 0}
        for c in spec.columns:
            if c.name in spec.key or c.type not in NUMERIC:
                continue
            values = [row[c.name] for row in rows if row[c.name] is not None]
            finite = [x for x in values if math.isfinite(x)]
            out["nonfinite"] += len(values) - len(finite)
            out[f"{c.name}_min"], out[f"{c.name}_max"] = (
                min(finite, default=None),
                max(finite, default=None),
            )
            if table == "steps":
                out[f"{c.name}_mean"] = (
                    pytest.approx(math.fsum(finite) / len(finite)) if finite else None
                )
        found[key] = out
    return found


def rolled(run, table):
    keys = ROLLUPS[table].key
    rows = read(run, ROLLUPS[table].name).to_pylist()
    found = {tuple(row.pop(k) for k in keys): row for row in rows}
    assert len(found) == len(rows), "a bucket twice"
    return found


def whole(found, run, table):
    """Those of its buckets that are followed by a later step, or whose last step is there."""
    steps = read(run, table)["step"].to_pylist()
    return {key: row for key, row in found.items() if steps and key[0] + BUCKET - 1 <= max(steps)}


VALUES = st.sampled_from([None, math.nan, math.inf, -math.inf, 0.5, -2.0, 1e30, 7.25])
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("steps"), st.integers(1, 140), VALUES),
        st.tuples(st.just("late"), st.integers(0, 400), VALUES),
        st.tuples(st.just("truncate"), st.integers(0, 500), st.none()),
        st.tuples(st.sampled_from(["flush", "reopen", "kill", "compact"]), st.just(0), st.none()),
    ),
    max_size=14,
)


@settings(max_examples=40, deadline=None)
@given(ACTIONS, st.booleans())
@example(
    [
        ("steps", 130, 0.5),
        ("flush", 0, None),
        ("late", 20, 7.25),
        ("flush", 0, None),
        ("late", 120, None),
    ],
    True,
)
@example(
    [("steps", 140, 0.5)] * 3
    + [("reopen", 0, None), ("steps", 30, math.nan), ("truncate", 250, None)],
    False,
)
def test_a_roll_up_is_the_aggregate_of_the_rows_after_any_sequence_of_writes_cuts_and_restarts(
    actions, background
):
    with tempfile.TemporaryDirectory() as folder:
        run, writer, step = Path(folder), Writer(folder, background), 0
        for action, n, value in actions:
            if action == "steps":
                for s in range(step, step + n):
                    writer.append(
                        "steps", step=s, loss=s * 0.5, grad_norm=value, tokens=s % 7, update="apply"
                    )
                    writer.append(
                        "heads",
                        step=s,
                        layer=0,
                        head=np.array(HEADS),
                        attn_logit_max=[value, s % 13],
                        sink_mass=float(s),
                    )
                step += n
            elif action == "late":
                writer.append("heads", step=n, layer=1, head=0, attn_logit_max=value)
            elif action == "truncate":
                writer.truncate(n)
                step = min(step, n)
                for table in ("steps", "heads"):
                    assert rolled(run, table) == expected(run, table)
            elif action == "kill":
                for done, _ in writer._handed:
                    done.result()
                writer = Writer(folder, background)
            elif action == "reopen":
                writer.close()
                for table in ("steps", "heads"):
                    assert rolled(run, table) == expected(run, table)
                writer = Writer(folder, background)
            else:
                writer.drain()
                if action == "compact":
                    for table in ("heads", "heads_by100"):
                        writer.compact(table)
                for table in ("steps", "heads"):
                    assert whole(rolled(run, table), run, table) == whole(
                        expected(run, table), run, table
                    )
        writer.close()
        for table in (
            "steps",
            "heads",
        ):  # what a killed writer left is taken in by the next write to the table
            if read(run, table).num_rows:
                with Writer(folder) as w:
                    w.append(
                        table,
                        step=max(read(run, table)["step"].to_pylist()),
                        **({"layer": 2, "head": 0} if table == "heads" else {}),
                    )
            assert rolled(run, table) == expected(run, table)


def test_the_schema_of_a_roll_up_follows_from_its_table():
    assert {spec.name for spec in ROLLUPS.values()} == {
        "steps_by100",
        "layers_by100",
        "heads_by100",
        "tensors_by100",
    }
    for table, spec in ROLLUPS.items():
        assert TABLES[spec.name] is spec and not spec.stepped
        assert spec.key == ("bucket", *TABLES[table].key[1:])
        names = [c.name for c in spec.columns]
        assert names[: len(spec.key) + 2] == [*spec.key, "rows", "nonfinite"]
        assert any(n.endswith("_mean") for n in names) == (table == "steps")
    types = {c.name: c.type for c in ROLLUPS["heads"].columns}
    assert (
        types["attn_logit_max_max"] == "float32"
        and types["bucket"] == "int64"
        and types["head"] == "int32"
    )
    assert "update_min" not in {c.name for c in ROLLUPS["steps"].columns}, "text has no extremes"


def test_a_bucket_appears_with_its_last_step_and_the_incomplete_one_when_the_writer_closes(
    run_folder,
):
    writer = Writer(run_folder)

    def written():
        return read(run_folder, "layers_by100").select(["bucket", "layer", "rows"]).to_pylist()

    for step in range(99):
        writer.append("layers", step=step, layer=[0, 1], resid_rms_in=[step, -step])
    writer.flush()
    assert written() == []
    writer.append("layers", step=99, layer=[0, 1], resid_rms_in=[99.0, -99.0])
    writer.flush()
    assert written() == [
        {"bucket": 0, "layer": 0, "rows": 100},
        {"bucket": 0, "layer": 1, "rows": 100},
    ]
    writer.append("layers", step=130, layer=0, resid_rms_in=1.0)
    writer.flush()
    assert len(written()) == 2
    writer.close()
    assert written()[2:] == [{"bucket": 100, "layer": 0, "rows": 1}]
    view = connect(run_folder.parent).sql(
        "select run, bucket, resid_rms_in_min, resid_rms_in_max from layers_by100"
    )
    assert view.fetchall() == [("r", 0, 0.0, 99.0), ("r", 0, -99.0, 0.0), ("r", 100, 1.0, 1.0)]


def test_a_row_of_only_nan_has_no_extremes_and_is_counted(run_folder):
    with Writer(run_folder) as w:
        w.append(
            "tensors",
            step=[0, 1],
            tensor="a",
            grad_norm=[math.nan, math.inf],
            param_norm=[1.0, None],
        )
    (row,) = read(run_folder, "tensors_by100").to_pylist()
    assert (row["rows"], row["nonfinite"]) == (2, 3 - 1)
    assert row["grad_norm_min"] is row["grad_norm_max"] is row["rms_t_max"] is None
    assert row["param_norm_min"] == row["param_norm_max"] == 1.0


def test_a_run_without_a_roll_up_gets_a_whole_one_with_its_next_write(run_folder):
    import shutil

    with Writer(run_folder) as w:
        for step in range(0, 430, 10):
            w.append("steps", step=step, loss=float(step))
            w.flush()
    shutil.rmtree(run_folder / "tables" / "steps_by100")
    assert read(run_folder, "steps_by100").num_rows == 0
    with Writer(run_folder) as w:
        w.append("steps", step=430, loss=1.0)
    assert (
        rolled(run_folder, "steps") == expected(run_folder, "steps")
        and len(rolled(run_folder, "steps")) == 5
    )


def test_a_long_run_keeps_its_roll_up_in_few_parts_of_few_bytes(run_folder):
    with Writer(run_folder, background=True) as w:
        for first in range(0, 5000, 100):
            w.append(
                "heads",
                step=np.repeat(np.arange(first, first + 100), 2),
                layer=0,
                head=np.tile(HEADS, 100),
                **dict.fromkeys(
                    ("attn_logit_max", "sink_mass"), np.random.default_rng(first).random(200)
                ),
            )
            w.flush()
    parts = manifest.load(run_folder, "heads_by100", fresh=True).parts
    assert len(parts) < 16 and sum(p.rows for p in parts) == 100
    assert rolled(run_folder, "heads") == expected(run_folder, "heads")
    assert problems(run_folder) == []


def test_a_write_that_fails_between_rows_and_roll_up_leaves_neither_out(run_folder, monkeypatch):
    from forensics.errors import ForensicsError
    from forensics.store import rollup

    writer = Writer(run_folder)
    for step in range(250):
        writer.append("steps", step=step, loss=float(step))
    with monkeypatch.context() as patch:
        patch.setattr(
            rollup,
            "aggregate",
            lambda *_: (_ for _ in ()).throw(ForensicsError("storage", "full", "")),
        )
        with pytest.raises(ForensicsError):
            writer.flush()
    assert read(run_folder, "steps").num_rows == 250
    killed = Writer(run_folder)
    killed.append("steps", step=250)
    killed.flush()
    assert rolled(run_folder, "steps") == whole(expected(run_folder, "steps"), run_folder, "steps")
    writer.close()  # tries again what it could not do
    assert read(run_folder, "steps")["step"].to_pylist() == list(range(251))
    assert rolled(run_folder, "steps") == expected(run_folder, "steps")


def test_an_aggregate_of_nothing_is_an_empty_table_of_its_schema():
    from forensics.store.rollup import aggregate

    for table, made in ROLLUPS.items():
        empty = aggregate(TABLES[table], TABLES[table].arrow_schema().empty_table())
        assert (
            empty.num_rows == 0
            and empty.schema == made.arrow_schema()
            and isinstance(empty, pa.Table)
        )
