"""A log alone is a run: commands and pages work on it, and say in one line what it lacks."""

import contextlib
import io

import numpy as np
import pytest

from forensics.cli.main import main
from forensics.errors import ForensicsError
from forensics.foreign.logged_run import write_log
from forensics.logs.log_rows import step_span
from forensics.logs.read import read_logs
from forensics.store import reader
from forensics.train.header import Header, now, write_header
from forensics.train.run import open_run
from replay.cli.main import main as replay_main
from replay.integrity import examine
from replay.spike_list import spikes_of

START, ROWS = 61_010, 400
SPIKE, BATCH_SPIKE, NAN = 250, 320, 350  # rows


def called(program, runs, *arguments):
    """What a command writes, and its exit code."""
    written, code = io.StringIO(), 0
    with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
        try:
            program.main(["--runs", str(runs), *arguments])
        except SystemExit as end:
            code = end.code or 0
    return written.getvalue(), code


def log(path, every):
    """A log with a spike of three rows, one of a single row, and one NaN."""
    rng = np.random.default_rng(5)
    loss = 3 - 1e-4 * np.arange(ROWS) + 0.01 * rng.standard_normal(ROWS)
    norm = 0.3 + 0.01 * rng.standard_normal(ROWS)
    loss[SPIKE : SPIKE + 3] += [0.5, 0.3, 0.1]
    loss[BATCH_SPIKE] += 0.4
    norm[SPIKE - 1] += 1
    loss[NAN] = np.nan
    rows = [
        f"{START + every * i},{loss[i]},{norm[i]},{9.5 if i % 50 == 0 else ''}" for i in range(ROWS)
    ]
    path.write_text("\n".join(["step,loss,grad_norm,eval/ppl", *rows]) + "\n")
    return loss


def header(name, first, last):
    """The header of a log alone: no shape, no corpus, no order."""
    return Header(
        name=name,
        recipe="",
        config={},
        first_step=first,
        steps=last,
        corpus="",
        corpus_sources=[],
        order="",
        shape={},
        parameters=0,
        eot=-1,
        device="cpu",
        precision="fp32",
        threads=1,
        fingerprint={"device": "cpu"},
        arguments=[],
        created=now(),
        status="finished",
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logged")
    (folder / "runs").mkdir()
    for name, every in (("each", 1), ("tenth", 10)):
        log(folder / f"{name}.csv", every)
        table = read_logs([folder / f"{name}.csv"])
        write_header(folder / "runs", header(name, *step_span(table)))
        write_log(folder / "runs" / name, table)
    return folder / "runs"


def test_rows_of_steps_and_metrics_hold_the_log_as_it_is(runs, tmp_path):
    loss = log(tmp_path / "again.csv", 1)
    steps = reader.read(runs / "each", "steps", ["step", "loss", "lr"])
    assert steps["step"].to_pylist() == list(range(START, START + ROWS))
    assert np.array_equal(steps["loss"].to_numpy(), loss, equal_nan=True)
    assert steps["lr"].null_count == ROWS  # the log has none
    metrics = reader.read(runs / "each", "metrics").to_pylist()
    assert [row["step"] for row in metrics] == [START + i for i in range(0, ROWS, 50)]
    assert {row["name"] for row in metrics} == {"eval/ppl"}


def test_a_nan_of_a_log_is_found_by_sql(runs):
    with reader.connect(runs) as connection:
        asked = "select step from steps where run = 'each' and isnan(loss)"
        assert connection.execute(asked).fetchall() == [(START + NAN,)]


def test_what_else_was_logged_is_one_query(runs):
    import queries

    with reader.connect(runs) as connection:
        (row,) = connection.execute(queries.load("logged_metrics"), {"run": "each"}).fetchall()
    last = START + ROWS - 50
    assert row == ("eval/ppl", ROWS // 50, 0, START, last, 9.5, 9.5, 9.5)


def test_its_spikes_are_found_by_the_command_and_stand_in_its_events(runs):
    listed = spikes_of(runs, "each", metric="loss")
    assert [(s.step, s.kind) for s in listed.spikes] == [
        (START + SPIKE, "fast"),
        (START + BATCH_SPIKE, "batch"),
        (START + NAN, "batch"),
    ]
    assert listed.every == 1
    events = reader.read(runs / "each", "events").to_pylist()
    spikes = [e["step"] for e in events if e["kind"] == "spike" and e["metric"] == "loss"]
    assert spikes == [s.step for s in listed.spikes]
    assert [e["step"] for e in events if e["kind"] == "nonfinite"] == [START + NAN]


def test_of_a_sampled_log_rows_are_counted_and_no_kind_is_claimed(runs):
    listed = spikes_of(runs, "tenth", metric="loss")
    assert [s.step for s in listed.spikes][:2] == [START + 10 * SPIKE, START + 10 * BATCH_SPIKE]
    assert listed.every == 10 and {s.kind for s in listed.spikes} == {None}
    events = reader.read(runs / "tenth", "events").to_pylist()
    assert {e["spike_kind"] for e in events if e["kind"] == "spike"} == {None}
    output, _ = called(main, runs, "spikes", "tenth")
    assert "It has a row every 10 steps: windows and counts are of rows" in " ".join(output.split())


def test_show_list_note_and_first_bad_step_work_on_it(runs):
    for command, words in (
        (["show", "each"], "steps 61,010 to 61,410, a log alone, finished"),
        (["list"], "a log alone"),
        (["note", "each", "61100", "odd"], "stands at step 61100"),
        (["first-bad-step", "each"], "series over the steps 61010 to 61409"),
        (["query", "run_summary", "--param", "run=each"], "61410"),
    ):
        output, code = called(main, runs, *command)
        assert code == 0 and words in " ".join(output.split()), output


def test_doctor_finds_it_whole(runs):
    found = examine(runs, "each")
    assert not found.problems and not found.differs_from_run
    assert {check.what: check.files for check in found.checks}["tables"] > 0


@pytest.mark.parametrize(
    "program, command",
    [
        (main, ["batch", "each", str(START)]),
        (main, ["export", f"each@{START}", "somewhere"]),
        (main, ["tokens", "each"]),
        (main, ["probe", "each", "loss"]),
        (replay_main, ["verify", "each", str(START), str(START + 2)]),
        (replay_main, ["blame", "each", "--spike", str(START + SPIKE)]),
        (replay_main, ["scan", f"each@{START}", "--batches", f"{START}:{START + 2}"]),
    ],
)
def test_what_takes_a_model_or_data_is_refused_in_one_line(runs, program, command):
    output, code = called(program, runs, *command)
    assert code == 3 and "Traceback" not in output
    assert "a log alone" in output or "without its data" in output


def test_its_shape_and_corpus_are_refused_by_name(runs):
    run = open_run(runs, "each")
    with pytest.raises(ForensicsError, match="the model of each, found a run that is a log alone"):
        _ = run.shape
    with pytest.raises(ForensicsError, match="the data of each"):
        _ = run.corpus


@pytest.mark.parametrize("page", ["spikes", "runs", "batch", "forks", "trace", "blame"])
def test_every_page_opens_on_it_and_claims_nothing_that_was_not_logged(runs, page, monkeypatch):
    from app import browser
    from tests.app.conftest import texts_of

    monkeypatch.setenv("FORENSICS_RUNS", str(runs))
    test = browser.scripted(page, run="tenth")
    test.run()
    assert not test.exception
    text = texts_of(test)
    assert "None" not in text and "not clipped" not in text and "replay " not in text
    assert "log alone" in text


def test_the_number_of_its_first_step_may_be_given(tmp_path):
    log(tmp_path / "log.csv", 1)
    output, code = called(
        main,
        tmp_path / "runs",
        "import",
        str(tmp_path / "log.csv"),
        "--name",
        "based",
        "--log-step-base",
        str(START),
    )
    assert code == 0, output
    steps = reader.read(tmp_path / "runs" / "based", "steps", ["step"])["step"].to_pylist()
    assert steps == list(range(ROWS))
