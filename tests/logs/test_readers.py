"""Logs by the trackers' own writers and by hand: every kind gives the numbers that were logged."""

import gzip
import json
import math
import shutil
import sqlite3
import struct
from pathlib import Path

import numpy as np
import pytest

from forensics.errors import ForensicsError
from forensics.logs.read import read_logs, runs_in_logs
from forensics.logs.tensorboard_events import masked_crc

FIXTURES = Path(__file__).parents[1] / "fixtures" / "foreign" / "logs"
LOSS = [4.0, 3.875, 3.75, 3.625, 3.5, 3.375, 3.25, math.nan, math.inf, 2.875, 2.75, 2.625]
TENSORS = "events.out.tfevents.1700000003.tensors"


def same(values, expected):
    return np.array_equal(values, np.array(expected, float), equal_nan=True)


def loss_of(table):
    return table.metrics[table.columns["loss"]].values


def written(tmp_path, text, name="log.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def refusal(path, **hints):
    with pytest.raises(ForensicsError) as caught:
        read_logs([path], **hints)
    assert "\n" not in str(caught.value)
    return caught.value


# ---- by their own writers


def test_a_tensorboard_folder_is_read_with_what_a_resumed_run_took_over():
    table = read_logs([FIXTURES / "tensorboard"])
    assert same(loss_of(table), LOSS[:6] + [value + 10 for value in LOSS[6:]])
    assert same(table.series("grad_norm").values, np.arange(12) / 4)
    assert (table.summary.repeated, table.summary.nonfinite) == (4, 2)
    assert "weights" not in table.metrics  # a histogram is no number


def test_tensors_are_read_and_a_half_written_record_ends_the_file():
    table = read_logs([FIXTURES / TENSORS])
    assert same(loss_of(table), LOSS[:11])
    assert table.summary.notes[0] == f"{TENSORS}: its last record is half written, and left out"


def test_an_offline_run_of_wandb_is_read():
    table = read_logs([FIXTURES / "run-fixture1.wandb"])
    assert table.summary.run == "offline-one"
    assert same(loss_of(table), LOSS)
    assert table.batches("loss").tolist() == list(range(12))
    assert same(table.series("grad_norm").values, np.arange(12) / 4)
    assert "train/note" in table.summary.notes[0]


def test_trackios_runs_are_told_apart(tmp_path):
    path = FIXTURES / "trackio-fixtures.db"
    before = path.read_bytes()
    assert runs_in_logs([path]) == ["first", "second"]
    assert same(loss_of(read_logs([path], run="first")), LOSS)
    assert same(loss_of(read_logs([path], run="second")), [value + 1 for value in LOSS])
    assert "2 in it: first, second" in str(refusal(path))
    assert path.read_bytes() == before
    assert sorted(p.name for p in FIXTURES.glob("trackio*")) == [path.name]  # no -wal, no -shm


def test_what_trackio_has_only_in_its_write_ahead_log_is_read(tmp_path):
    path = tmp_path / "live.db"
    shutil.copyfile(FIXTURES / "trackio-fixtures.db", path)
    writer = sqlite3.connect(path)
    writer.execute("pragma journal_mode=wal")
    writer.execute("pragma wal_autocheckpoint=0")
    writer.execute("update metrics set metrics = '{\"loss\": 9.5}' where step = 3")
    writer.commit()
    assert loss_of(read_logs([path], run="first"))[3] == 9.5
    writer.close()


def test_a_trainers_state_is_read():
    table = read_logs([FIXTURES / "trainer_state.json"])
    assert table.summary.trainer == "transformers"
    assert table.series("loss").steps.tolist() == [10, 20, 30, 40, 50, 60]
    assert same(loss_of(table), [3.875, 3.75, 3.625, 3.5, 3.375, 3.25])
    assert table.summary.every == 10 and table.summary.repeated == 0


def test_a_parquet_history_counts_by_the_trainers_own_step():
    table = read_logs([FIXTURES / "history.parquet"])
    assert table.summary.step_name == "trainer/global_step"
    assert table.series("loss").steps.tolist() == list(range(61_010, 61_022))
    assert same(loss_of(table), LOSS)
    assert table.metrics["eval/loss"].steps.tolist() == [61_015]


# ---- by hand


def test_a_chart_of_wandb_is_parted_into_runs_and_its_bins_are_told(tmp_path):
    path = written(
        tmp_path,
        '"Step","a - train/loss","a - train/loss__MIN","a - train/loss__MAX",'
        '"b - x - train/loss","b - x - train/loss__MIN","b - x - train/loss__MAX"\n'
        '"10","2.5","2.0","3.0","1.5","1.5","1.5"\n"20","2.5","2.5","2.5","","",""\n',
    )
    assert runs_in_logs([path]) == ["a", "b - x"]
    table = read_logs([path], run="a")
    assert same(loss_of(table), [3.0, 2.5])
    assert same(table.metrics["train/loss__MEAN"].values, [2.5, 2.5])
    assert table.summary.sampled == 1 and "bins of several steps" in table.summary.notes[0]
    plain = read_logs([path], run="b - x")
    assert plain.summary.sampled == 0 and same(loss_of(plain), [1.5])


def test_a_chart_over_something_else_than_steps_is_refused(tmp_path):
    path = written(tmp_path, '"Relative Time (Process)","a - loss"\n"0.5","2.5"\n')
    assert "a chart is exported with Step on its x axis" in str(refusal(path))


def test_charts_of_several_metrics_come_together(tmp_path):
    loss = written(tmp_path, "Step,a - loss\n1,2.5\n2,2.25\n", "loss.csv")
    norm = written(tmp_path, "Step,a - grad_norm\n2,0.5\n", "norm.csv")
    table = read_logs([loss, norm])
    assert table.columns == {"loss": "loss", "grad_norm": "grad_norm"}
    assert table.series("grad_norm").steps.tolist() == [2]


@pytest.mark.parametrize("packed", [False, True])
def test_json_lines_hold_texts_for_what_is_not_finite(tmp_path, packed):
    text = '{"step": 1, "loss": "NaN"}\n\n{"step": 2, "loss": -Infinity, "lr": {"a": 0.5}}\n'
    path = tmp_path / ("log.jsonl.gz" if packed else "log.jsonl")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    table = read_logs([path])
    assert same(loss_of(table), [math.nan, -math.inf])
    assert table.metrics["lr/a"].values.tolist() == [0.5]


def test_comets_values_are_read(tmp_path):
    rows = [
        {"metricName": "loss", "metricValue": "2.5", "step": 1, "timestamp": 5},
        {"metricName": "lr", "metricValue": "0.1", "step": 1, "timestamp": 5},
        {"metricName": "loss", "metricValue": "NaN", "step": 2, "timestamp": 6},
    ]
    for document in (rows, [rows[:1], rows[1:]]):
        table = read_logs([written(tmp_path, json.dumps(document), "comet.json")])
        assert same(loss_of(table), [2.5, math.nan])
        assert table.summary.kinds == ("comet",)


PRINTED = {
    "nanogpt": (
        "step 0: train loss 10.98, val loss 10.99\niter 0: loss 10.9, time 23.1ms, mfu -100.00%\n"
        "iter 1: loss nan, time 5.50ms, mfu 3.2%\n",
        [10.9, math.nan],
    ),
    "torchtitan": (
        "[rank0]:\x1b[31mstep:  1  \x1b[32mloss:  8.0153  \x1b[33mmemory:  0.5GiB(1%)  tps: 5,020\n"
        "[rank0]:\x1b[31mstep: 10  \x1b[32mloss:  7.5  \x1b[33mmemory:  0.5GiB(1%)  tps: 6,020\n",
        [8.0153, 7.5],
    ),
    "megatron": (
        " iteration        1/  500 | consumed samples:  256 | learning rate: 1.5E-04 | lm loss:"
        " 1.1E+01 | grad norm: 1.5 |\n iteration        2/  500 | consumed samples:  512 |"
        " learning rate: 2.5E-04 | lm loss: 1.0E+01 | grad norm: 1.0 |\n",
        [11.0, 10.0],
    ),
    "olmo": (
        "2026 INFO [step=1/7]\n    train/CrossEntropyLoss=11.42\n    optim/total_grad_norm=2.5\n"
        "2026 INFO [step=2/7]\n    train/CrossEntropyLoss=11.25\n",
        [11.42, 11.25],
    ),
}


@pytest.mark.parametrize("trainer", PRINTED)
def test_what_trainers_print_is_read(tmp_path, trainer):
    text, expected = PRINTED[trainer]
    assert same(loss_of(read_logs([written(tmp_path, text, "train.log")])), expected)


def test_a_table_by_blanks_is_read(tmp_path):
    table = read_logs([written(tmp_path, "step  loss lr\n0  5.5 1e-3\n1  nan 1e-3\n", "x.txt")])
    assert same(loss_of(table), [5.5, math.nan])


def test_a_folder_is_read_with_all_logs_in_it_and_what_is_none_is_told(tmp_path):
    (tmp_path / "config.json").write_text('{"model": {"family": "x"}, "paths": ["a"]}')
    (tmp_path / "losses.json").write_text('[{"step": 1, "train/CE loss": 2.5}]')
    table = read_logs([tmp_path])
    assert same(loss_of(table), [2.5])
    assert "left out, for it is no log: wanted" in table.summary.notes[0]
    (tmp_path / "losses.json").unlink()
    assert "config.json" in str(refusal(tmp_path))


def test_offline_runs_of_wandb_are_found_below_their_folder(tmp_path):
    below = tmp_path / "wandb" / "offline-run-1"
    below.mkdir(parents=True)
    shutil.copyfile(FIXTURES / "run-fixture1.wandb", below / "run-fixture1.wandb")
    assert same(loss_of(read_logs([tmp_path])), LOSS)


# ---- what is not whole


@pytest.mark.parametrize(
    "name, text, expected",
    [
        ("a.csv", "step,loss\n0,1.5\n1,1.25\n2", [1.5, 1.25]),
        (
            "a.jsonl",
            '{"step": 0, "loss": 1.5}\n{"step": 1, "loss": 1.25}\n{"step": 2, "lo',
            [1.5, 1.25],
        ),
        ("a.txt", "step loss\n0 1.5\n1 1.25\n2", [1.5, 1.25]),
    ],
)
def test_a_last_line_that_is_cut_is_left_out_and_told(tmp_path, name, text, expected):
    table = read_logs([written(tmp_path, text, name)])
    assert same(loss_of(table), expected)
    assert table.summary.notes[0] == f"{name}: its last line is cut short, and left out"


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("a.csv", "", "an empty file"),
        ("a.csv", "step,loss\n", "wanted rows in a.csv"),
        ("a.csv", "step,loss\n0,1\n1\n2,3\n", "a.csv:3: wanted 2 values, found 1"),
        ("a.csv", "name,colour\nx,red\n", "counts steps"),
        ("a.jsonl", '{"step": 0, "loss": 1}\n{"st\n{"step": 2}\n', "a.jsonl:2"),
        ("a.json", '[{"step": 1, "loss": 2.0}, {"st', "wanted JSON in a.json"),
        ("a.json", "[1, 2]", "wanted an object in row 1"),
        ("a.json", '{"config": {"lr": "x"}}', "wanted rows with numbers"),
        ("a.json", "[" * 100_000, "wanted JSON in a.json"),
        ("a.txt", "Dear diary\n", "which is none of these"),
    ],
)
def test_what_is_no_log_is_refused_in_one_line(tmp_path, name, text, words):
    assert words in str(refusal(written(tmp_path, text, name)))


def test_names_that_are_no_utf_8_are_read_byte_by_byte(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("step,loss,größe\n0,1.5,2\n1,1.25,3\n".encode("latin-1"))
    table = read_logs([path])
    assert same(loss_of(table), [1.5, 1.25]) and "größe" in table.metrics


def test_bytes_that_are_damaged_are_refused_where_they_lie(tmp_path):
    data = bytearray((FIXTURES / TENSORS).read_bytes())
    data[200] ^= 1
    path = tmp_path / "events.out.tfevents.1.x"
    path.write_bytes(data)
    assert "checksum does not hold" in str(refusal(path))
    offline = bytearray((FIXTURES / "run-fixture1.wandb").read_bytes())
    offline[400] ^= 1
    (tmp_path / "run.wandb").write_bytes(offline)
    assert "checksum does not hold" in str(refusal(tmp_path / "run.wandb"))


@pytest.mark.parametrize("kept", [16, 60, 500, 800])
def test_files_that_are_cut_anywhere_give_rows_or_one_line(tmp_path, kept):
    for source in ("run-fixture1.wandb", TENSORS, "history.parquet", "trackio-fixtures.db"):
        path = tmp_path / source
        path.write_bytes((FIXTURES / source).read_bytes()[:kept])
        try:
            assert len(loss_of(read_logs([path]))) < 12
        except ForensicsError as error:
            assert "\n" not in str(error)


def test_checksums_are_those_of_the_castagnoli_polynomial():
    def unmasked(masked):
        rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
        return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF

    assert unmasked(masked_crc(b"123456789")) == 0xE3069283  # the catalogue's check value
    assert struct.pack("<I", unmasked(masked_crc(bytes(32)))).hex() == "aa36918a"  # RFC 3720, B.4


def test_a_run_that_is_not_there_is_refused_with_the_nearest():
    assert "second" in str(refusal(FIXTURES / "trackio-fixtures.db", run="secund"))


def test_a_missing_file_is_refused(tmp_path):
    assert refusal(tmp_path / "none.csv").kind == "missing"
