"""Rows for the pages: cached until a manifest changes, from one lineage only, on any thread."""

import json
import threading

import pytest

from app import data
from forensics.errors import ForensicsError
from forensics.store.writer import Writer, replace_table


def begin(runs, name, **header):
    folder = runs / name
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"name": name, "corpus_sources": [], "parent": None} | header))
    replace_table(
        folder, "runs", {"name": [name], "parent": [header.get("parent")], "parent_step": [header.get("parent_step")]}
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
    assert [(r["step"], r["low"], r["high"]) for r in rolled] == [(r["step"], r["low"], r["high"]) for r in fine]
    assert max(r["high"] for r in rolled) == 9.0 and rolled[-1]["high"] == 8.0


def test_only_parts_of_the_window_are_hashed_before_a_query(empty_runs):
    with Writer(begin(empty_runs, "a")) as w:
        for first in (0, 100):
            w.append("steps", step=list(range(first, first + 100)), loss=1.0)
            w.flush()
    part = next(p for p in (empty_runs / "a" / "tables" / "steps").glob("*.parquet") if "100" in p.name)
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
            found.append(data.table("steps_around", run="demo", step=step, before=0, after=0)["step"].to_pylist())
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=ask, args=(s,)) for s in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors and sorted(found) == [[s] for s in range(8)]
