import math
import statistics

import pytest

import queries
from forensics.errors import ForensicsError
from forensics.records import TABLES
from forensics.store.macros import MACROS
from forensics.store.writer import Writer, replace_table
from queries.entries import TYPES, read_entry


def rows(runs, name, **params):
    return queries.run(runs, name, params).to_pylist()


def column(result, name):
    return [row[name] for row in result]


VALUES = {  # for parameters that must be given
    "run": "base",
    "step": "150",
    "document": "0",
    "slot": "0",
    "token": "0",
    "parent": "base",
    "first": "140",
    "last": "160",
}


def test_there_are_at_least_ten_queries_and_every_file_is_one():
    files = {path.stem for path in queries.FOLDER.glob("*.sql")}
    assert files == set(queries.catalog()) and len(files) >= 10


@pytest.mark.parametrize("name", queries.catalog())
def test_every_query_is_a_chain_that_ends_in_final_and_gives_the_columns_it_describes(runs, name):
    query = queries.catalog()[name]
    sql = queries.load(name)
    assert sql.startswith("with ") and sql.endswith("\nselect * from final\n")
    assert "-- include" not in sql
    assert query.sentence.endswith((".", "?"))
    required = [p for p in query.parameters.values() if p.default is None]
    assert all(f"${p}" in sql for p in query.parameters)
    assert {p.type for p in query.parameters.values()} <= set(TYPES)
    result = queries.run(runs, name, {p.name: VALUES[p.name] for p in required})
    assert result.schema.names == list(query.columns)
    assert all(c.meaning for c in query.columns.values())


@pytest.mark.parametrize("name", queries.catalog())
def test_every_query_is_listed_in_one_line_and_described_whole(name):
    query = queries.catalog()[name]
    lines = [line.split(maxsplit=1) for line in queries.names_text().splitlines()]
    assert lines.count([name, query.sentence]) == 1
    text = queries.about_text(name)
    assert query.sentence in text and queries.load(name).rstrip() in text
    assert f"Example: forensics query {name}" in text
    for column in query.columns.values():
        assert column.meaning in text and column.unit in text
    assert all(p.meaning in text for p in query.parameters.values())
    values = queries.about(name)
    assert values["columns"] == {c.name: c.meaning for c in query.columns.values()}
    assert queries.listing()["queries"][name].items() <= values.items()


def test_tables_and_macros_are_listed_and_described_too():
    text = queries.names_text()
    assert "one row per step × layer × head" in text and "z_level(z)" in text
    assert "cross-entropy" in queries.about_text("steps") and "nats/token" in queries.about_text(
        "steps"
    )
    assert queries.about_text("z_level").startswith("z_level(z): how many of 3, 6, 10, 20, 40")
    with pytest.raises(ForensicsError, match="no query, table or macro is called 'spike'") as error:
        queries.about("spike")
    assert error.value.kind == "usage" and "spikes" in error.value.hint


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("with final as (select 1 as x) select * from final\n", "wanted a comment with TOML"),
        ("/*\nsentence = \n*/\nselect 1\n", "cannot be read"),
        ('/*\n[columns]\nx = "x"\n*/\nselect 1\n', "sentence"),
        ('/*\nsentence = "X."\nauthor = "me"\n[columns]\nx = "x"\n*/\nselect 1\n', "author"),
        ('/*\nsentence = "X."\n[columns]\nx.units = "s"\n*/\nselect 1\n', "units"),
    ],
)
def test_a_front_comment_that_cannot_be_read_is_named(tmp_path, text, problem):
    path = tmp_path / "odd.sql"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=problem) as error:
        read_entry(path)
    assert "odd.sql" in str(error.value)


def test_a_query_is_one_file(runs, tmp_path, monkeypatch):
    """A new file in the folder is run, listed, described and documented: no other file changes."""
    from queries import entries

    (tmp_path / "final_loss.sql").write_text(
        """/*
sentence = "The loss of a run's last step."

[parameters]
run = { type = "run", meaning = "the run" }

[columns]
loss = { unit = "nats/token", meaning = "loss of the batch" }
*/
with final as (
    select arg_max(loss, step) as loss from steps_along($run)
)
select * from final
""",
        encoding="utf-8",
    )
    caches = (entries.catalog, entries.load, entries.tables_of)
    monkeypatch.setattr(entries, "FOLDER", tmp_path)
    for cached in caches:
        cached.cache_clear()
    try:
        assert rows(runs, "final_loss", run="base") == [{"loss": 3.01}]
        assert queries.tables_of("final_loss") == {"steps", "runs"}
        assert "The loss of a run's last step." in queries.names_text()
        assert "nats/token" in queries.about_text("final_loss")
        assert "## `final_loss`" in queries.describe()
    finally:
        for cached in caches:
            cached.cache_clear()


def test_run_summary(runs):
    base, fork = rows(runs, "run_summary")
    assert (base["run"], base["parent"], base["recorded"], base["reached"], base["steps"]) == (
        "base",
        None,
        200,
        200,
        200,
    )
    assert base["last_loss"] == pytest.approx(3.01) and base["lowest_loss"] == 3.0
    # of 200 gradient norms one is NaN, which is counted and is no largest
    assert (base["largest_grad_norm"], base["nonfinite_steps"]) == (20.0, 1)
    assert (base["tokens"], base["tokens_per_second"]) == (6400, 64.0) and type(
        base["tokens"]
    ) is int
    assert (base["spikes"], base["nonfinite"], base["checkpoints"], base["last_checkpoint"]) == (
        1,
        1,
        4,
        200,
    )
    assert (fork["run"], fork["parent"], fork["parent_step"], fork["recorded"]) == (
        "fork",
        "base",
        140,
        20,
    )
    assert (fork["spikes"], fork["checkpoints"], fork["last_checkpoint"]) == (0, 0, None)
    assert column(rows(runs, "run_summary", run="fork"), "run") == ["fork"]


def test_loss_curve_of_a_fork_continues_its_parent(runs):
    result = rows(runs, "loss_curve", run="fork", first="138", last="142", smooth="2")
    assert [(row["run"], row["step"], row["loss"]) for row in result] == [
        ("base", 138, 3.0),
        ("base", 139, 3.01),
        ("fork", 140, 2.5),
        ("fork", 141, 2.5),
    ]
    assert column(result, "smooth_loss") == pytest.approx([3.005, 3.005, 2.755, 2.5])
    assert column(result, "median_grad_norm") == pytest.approx([1.1, 1.05, 1.05, 1.0])
    assert column(rows(runs, "loss_curve", run="base"), "step") == list(range(200))


def test_spikes_and_what_they_cost(runs):
    spike, nonfinite = rows(runs, "spikes", run="base")
    assert (spike["step"], spike["metric"], spike["spike_kind"], spike["steps_to_recover"]) == (
        150,
        "loss",
        "fast",
        2,
    )
    assert spike["excess"] == pytest.approx((6 - 3.005) + (4 - 3.005))
    assert (nonfinite["step"], nonfinite["kind"], nonfinite["excess"], nonfinite["tensor"]) == (
        180,
        "nonfinite",
        None,
        "w",
    )
    assert column(rows(runs, "spikes", run="base", metric="loss"), "step") == [150]
    assert rows(runs, "spikes", run="fork") == []  # the parent's spike lies beyond the fork


def test_spike_neighbourhood(runs):
    result = rows(runs, "spike_neighbourhood", run="base", step="150")
    assert column(result, "offset") == list(range(-20, 21))
    middle = result[20]
    assert (middle["step"], middle["loss"], middle["grad_norm"]) == (150, 6.0, 20.0)
    assert (middle["attn_logit_max"], middle["layer"], middle["head"]) == (60.0, 1, 0)
    assert (result[17]["rms_t"], result[17]["tensor"]) == (3.0, "w")


def test_worst_sequences_with_their_documents(runs):
    worst, second = rows(runs, "worst_sequences", run="base", step="150", top="2")
    assert (worst["slot"], worst["sequence"], worst["loss"]) == (2, 11, 9.0)
    assert worst["above_median"] == pytest.approx(9 - statistics.median([3.0, 3.1, 9.0, 3.3]))
    # sequence 11 is the damaged source's second: tokens 8 … 16, of which c.txt supplies 8 … 11,
    # d.txt 12 … 16
    assert (worst["source"], worst["first_token"], worst["documents"]) == ("damaged", 8, 2)
    assert (worst["document"], worst["path"], worst["document_tokens"], worst["tags"]) == (
        3,
        "d.txt",
        5,
        "repeats",
    )
    # 4·150 + 3 mod 14 = 1: the clean source's tokens 8 … 16
    assert (second["slot"], second["sequence"], second["path"], second["document_tokens"]) == (
        3,
        1,
        "a.txt",
        9,
    )


def test_worst_sequences_names_one_made_by_an_intervention(runs):
    worst = rows(runs, "worst_sequences", run="fork", step="150", top="1")[0]
    assert (worst["sequence"], worst["source"], worst["documents"]) == (-1, None, None)


def test_head_logits_and_their_growth(runs):
    result = rows(runs, "head_logits", run="base", every="100")
    assert [(row["layer"], row["head"], row["step"]) for row in result] == [
        (layer, head, step) for layer in (0, 1) for head in (0, 1) for step in (0, 100)
    ]
    hot = result[5]
    assert (hot["attn_logit_max"], hot["at_step"], hot["growth"]) == (
        550.0,
        199,
        pytest.approx(550 / 12),
    )
    assert column(result, "growth")[:2] == [1.0, 1.0]


def test_first_to_move_is_the_first_alarms_without_those_that_only_drift(runs):
    result = rows(runs, "first_to_move", run="base", step="150")
    assert [
        (row["moved_at"], row["lead"], row["kind"], row["place"], row["statistic"])
        for row in result
    ] == [  # the tensor w was out at step 147 alone, and back: no first mover
        (146, 4, "head", "layer 1 head 0", "attn_logit_max"),
        (150, 0, "step", "whole model", "loss"),
        (150, 0, "step", "whole model", "grad_norm"),
    ]
    assert result[0]["z"] == pytest.approx((20 - 11.5) / (1.4826 * 0.5))
    losses = [3 + 0.01 * (s % 2) for s in range(86) if s != 60]
    # 43 of these 85 are equal, so MAD is 0 and the standard deviation stands in
    assert result[1]["z"] == pytest.approx(
        (6 - statistics.median(losses)) / statistics.pstdev(losses)
    )
    alarms = [
        row for row in rows(runs, "first_alarms", run="base", step=150) if not row["drifting"]
    ]
    assert [(row["step"], row["statistic"]) for row in alarms] == [
        (row["moved_at"], row["statistic"]) for row in result
    ]


def test_first_to_move_needs_a_baseline(runs):
    assert rows(runs, "first_to_move", run="base", step="70", least="16") == []


def test_stale_tensors(runs):
    worst, second = rows(runs, "stale_tensors", run="base", step="150")
    assert (worst["tensor"], worst["rms_t"], worst["rms_t_at"], worst["lead"], worst["alarm"]) == (
        "w",
        3.0,
        147,
        3,
        True,
    )
    assert (worst["staleness"], worst["staleness_at"]) == (1.5, 147)
    assert (second["tensor"], second["alarm"]) == ("b", False)
    assert rows(runs, "stale_tensors", run="base", step="150", within="2")[0]["alarm"] is False


def test_source_loss(runs):
    expected: dict[tuple[int, str], list[float]] = {}
    for s in range(200):
        for slot in range(4):
            sequence, loss = (4 * s + slot) % 14, 3.0 + 0.1 * slot
            if (s, slot) == (150, 2):
                sequence, loss = 11, 9.0
            expected.setdefault(
                (s // 100 * 100, "clean" if sequence < 10 else "damaged"), []
            ).append(loss)
    result = rows(runs, "source_loss", run="base", every="100")
    assert {(row["step"], row["source"]): row["sequences"] for row in result} == {
        key: len(values) for key, values in expected.items()
    }
    for row in result:
        values = expected[row["step"], row["source"]]
        assert row["loss"] == pytest.approx(statistics.mean(values), rel=1e-6)
        assert row["tokens"] == 8 * len(values) and row["share"] == pytest.approx(len(values) / 400)
    assert max(column(result, "worst_loss")) == 9.0
    assert "(made)" in column(rows(runs, "source_loss", run="fork"), "source")


def test_fork_divergence_beside_its_placebos(runs):
    first, second = rows(runs, "fork_divergence", run="fork")
    assert (
        first["step"],
        first["l2"],
        first["placebo_l2"],
        first["chaos_l2"],
        first["effect"],
    ) == (141, 9.0, 2.0, 0.5, 4.5)
    assert (
        first["within_placebos"],
        first["placebos"],
        first["control_level"],
        first["control_bitwise"],
    ) == (False, 3, "exact", True)
    assert (second["effect"], second["within_placebos"], second["loss_gap"]) == (1.0, True, None)


def test_skipstep_would_skip_agrees_with_the_definition_in_plain_python(runs):
    losses = {s: {150: 6.0, 151: 4.0}.get(s, 3 + 0.01 * (s % 2)) for s in range(200) if s != 60}
    norms = {s: {150: 20.0, 180: math.nan}.get(s, 1 + 0.1 * (s % 3)) for s in range(200) if s != 60}
    expected, steps = {}, sorted(losses)
    for i, s in enumerate(steps):
        earlier = steps[max(0, i - 128) : i]
        if len(earlier) < 64:
            continue
        flags = []
        for series in (losses, norms):
            window = [series[at] for at in earlier if math.isfinite(series[at])]
            limit = 6 * statistics.stdev(window)
            flags.append(
                not math.isfinite(series[s]) or series[s] - statistics.mean(window) > limit
            )
        if any(flags):
            expected[s] = tuple(flags)
    result = rows(runs, "skipstep_would_skip", run="base")
    assert {row["step"]: (row["by_loss"], row["by_grad_norm"]) for row in result} == expected
    assert 150 in expected and 180 in expected
    assert result[0]["n"] == 128


def test_a_shorter_window_of_skipstep_judges_from_its_half_on(runs):
    assert [row["step"] for row in rows(runs, "skipstep_would_skip", run="base", window=30)] == [
        150,
        180,
    ]
    with pytest.raises(ForensicsError, match="wanted least of at most window = 30, found 64"):
        rows(runs, "skipstep_would_skip", run="base", window=30, least=64)


def test_document_exposure_agrees_with_a_count_token_by_token(runs):
    starts = {
        0: ("clean", 0, 30),
        1: ("clean", 30, 55),
        2: ("damaged", 0, 12),
        3: ("damaged", 12, 28),
    }
    for document, (source, first, tokens) in starts.items():
        expected = []
        for s in range(200):
            for slot in range(4):
                sequence = 11 if (s, slot) == (150, 2) else (4 * s + slot) % 14
                where = ("clean", sequence) if sequence < 10 else ("damaged", sequence - 10)
                tokens_held = range(where[1] * 8, where[1] * 8 + 9)  # T+1 tokens
                if where[0] == source and set(tokens_held) & set(range(first, first + tokens)):
                    expected.append((s, slot))
        result = rows(runs, "document_exposure", run="base", document=str(document))
        assert [(row["step"], row["slot"]) for row in result] == expected
    for last, latest in (("3", 0), ("4", 3)):  # batch 3 begins the second epoch
        batches = rows(runs, "document_exposure", run="base", document="0", last=last)
        assert max(column(batches, "step")) == latest


def test_a_connection_and_its_cursors_serve_queries_as_a_folder_does(runs):
    con = queries.connect(runs)
    for where in (con, con.cursor()):
        assert queries.run(where, "spikes", {"run": "base"}).equals(
            queries.run(runs, "spikes", {"run": "base"})
        )


def test_a_connection_made_before_a_merge_still_answers(tmp_path):
    from forensics.store.writer import Writer, replace_table

    folder = tmp_path / "r"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    replace_table(folder, "runs", {"name": ["r"]})
    writer = Writer(folder)
    for step in range(40):
        writer.append("steps", step=step, loss=1.0)
        writer.flush()
    con = queries.connect(tmp_path)
    writer.compact("steps")
    assert queries.run(con, "loss_curve", {"run": "r"}).num_rows == 40


@pytest.mark.parametrize(
    "name, params, kind, hint",
    [
        ("spike", {}, "usage", "spikes"),
        ("spikes", {"runn": "base"}, "usage", "run"),
        ("spikes", {}, "usage", "--param run="),
        ("spikes", {"run": "bas"}, "missing", "base"),
        ("spike_neighbourhood", {"run": "base", "step": "early"}, "usage", "middle"),
        ("head_logits", {"run": "base", "every": "0"}, "usage", "steps per row"),
    ],
)
def test_a_wrong_name_or_parameter_is_one_line_with_the_nearest(runs, name, params, kind, hint):
    with pytest.raises(ForensicsError) as error:
        queries.run(runs, name, params)
    assert error.value.kind == kind and hint in error.value.hint and "\n" not in str(error.value)


def test_a_flipped_byte_is_found_by_the_query_that_reads_it_and_by_no_other(tmp_path, runs):
    import shutil

    copy = tmp_path / "runs"
    shutil.copytree(runs, copy)
    part_file = next((copy / "base" / "tables" / "steps").glob("*.parquet"))
    data = bytearray(part_file.read_bytes())
    data[100] ^= 4
    part_file.write_bytes(data)
    assert queries.run(copy, "stale_tensors", {"run": "base", "step": "150"}).num_rows == 2
    for where in (copy, queries.connect(copy)):
        with pytest.raises(ForensicsError, match=part_file.name) as error:
            queries.run(where, "loss_curve", {"run": "base"})
        assert error.value.kind == "integrity"


def test_the_schema_and_its_description_hold_every_column_and_query():
    views = {view["table"]: view for view in queries.schema()}
    text = queries.describe()
    for table in TABLES.values():
        names = [c["name"] for c in views[table.name]["columns"]]
        of_the_data = [table.open_column.name] if table.open_column else []
        assert names == ["run", *(c.name for c in table.columns), *of_the_data]
        assert f"## `{table.name}`" in text and all(f"| `{n}` |" in text for n in names)
    assert "sources" in views and "lineage(of_run)" in text
    for macro in MACROS.values():
        assert macro.call in text and macro.meaning.replace("|", "\\|") in text
    for name, query in queries.catalog().items():
        assert f"## `{name}`" in text and query.sentence in text


def test_what_is_not_finite_neither_poisons_an_aggregate_nor_vanishes(tmp_path):
    recorded(tmp_path / "runs", "poisoned")
    for name, parameters, finite, count in (
        ("loss_band", {"every": "10"}, {"low": 2.0, "high": 4.0, "mean": 3.0}, 2),
        ("loss_band_by100", {}, {"low": 2.0, "high": 4.0, "mean": 3.0}, 2),
        ("source_loss", {"every": "10"}, {"loss": 3.0, "worst_loss": 4.0}, 2),
        ("head_logits", {"every": "10"}, {"attn_logit_max": 4.0, "at_step": 2}, 2),
    ):
        (row,) = rows(tmp_path / "runs", name, run="poisoned", **parameters)
        assert {key: row[key] for key in finite} == finite, name
        assert row["nonfinite"] == count, name


def recorded(runs, name):
    """Record five steps, two of which are not finite; of the others losses and logits are 2, 3,
    4.
    """
    (runs / name).mkdir(parents=True)
    (runs / name / "run.json").write_text("{}")
    with Writer(runs / name) as writer:
        replace_table(runs / name, "runs", {"name": [name], "created": ["2026-01-01T00:00:00Z"]})
        for step, x in enumerate([2.0, 3.0, 4.0, math.nan, math.inf]):
            writer.append("steps", step=step, loss=x)
            writer.append("heads", step=step, layer=0, head=0, attn_logit_max=x)
            writer.append(
                "sequences", step=step, slot=0, sequence=-1, loss=x, weight=1.0, repeat_share=0.0
            )
