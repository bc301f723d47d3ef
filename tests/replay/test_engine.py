"""The engine: replays are the run itself bit for bit, forks stand beside a control, and the words
follow the rule.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from forensics.errors import ForensicsError
from forensics.store import manifest
from forensics.store.writer import MOST_PARTS, Writer, replace_table
from forensics.train.run import Run
from replay import verify
from replay.compare.probe_sequences import unseen
from replay.experiments import batch_scan
from replay.forks import plan as engine
from replay.forks import run as fork_run
from replay.forks import statement
from replay.forks.result import RESULT_FILE
from replay.forks.run import Fork
from replay.forks.spec import Spec
from replay.interventions.no_update import Skip
from replay.interventions.order import Drop, Swap
from replay.interventions.policy import LearningRate
from replay.interventions.removal import RemoveDocuments
from replay.interventions.selection import DOCUMENTS
from replay.lineage import open_trajectory
from replay.run_diff import RunDiff, between
from replay.step.batch_contents import batch_at
from tests.replay.test_interventions import damaged


def forked(*arguments: Any, **options: Any) -> dict[str, Any]:
    """The result of a fork, as its document."""
    return fork_run.fork(*arguments, **options).to_document()


@pytest.mark.parametrize(("a", "b"), [(0, 10), (13, 31), (50, 51), (75, 100), (99, 100)])
def test_any_window_replays_bit_for_bit(a: int, b: int, runs: Path) -> None:
    report = verify.verify(runs, "base", a, b)
    assert (
        report.bitwise
        and report.level == "exact"
        and report.compared >= b - a
        and report.max_abs_difference == 0
    )
    assert report.verified_to == b and report.first_difference is None
    row = open_trajectory(runs, "base").table("certificates").to_pylist()[-1]
    assert row["bitwise"] and (row["first"], row["last"]) == (a, b)


@pytest.mark.parametrize("start", [0, 25, 50, 75])
def test_a_fork_without_interventions_is_its_parent_from_every_checkpoint(
    start: int, runs: Path, base: Run
) -> None:
    forked(Spec("base", start, start + 12, (), name="same"), runs)
    same = open_trajectory(runs, "same")
    own, theirs = (
        verify.recorded_steps(same, start, start + 12),
        verify.recorded_steps(base, start, start + 12),
    )
    assert own == theirs and len(own) == 12
    assert same.load(start + 12).digest() == theirs[start + 11]["state_digest"]


def test_swapping_twice_is_the_parent(runs: Path, base: Run) -> None:
    result = forked(Spec("base", 75, 90, (Swap(80, 85), Swap(80, 85))), runs)
    assert result["first_difference"] is None and result["final"]["l2"] == 0.0
    assert (
        result["final"]["logit_kl"] == 0.0
        and result["final"]["loss_fork"] == result["final"]["loss_control"]
    )


def test_a_fork_without_the_damaged_documents_is_told_with_its_placebos(
    runs: Path, base: Run
) -> None:
    made = Spec(
        "base",
        78,
        90,
        (RemoveDocuments(80, 82, damaged(base)),),
        placebos=3,
        chaos=1,
        probe_every=3,
    )
    result = forked(made, runs)
    assert result["control"] == {
        "level": "exact",
        "bitwise": True,
        "sentence": result["control"]["sentence"],
    }
    assert result["first_difference"]["step"] == 80
    steps = [row["step"] for row in result["divergence"]]
    assert steps == list(range(79, 91))
    assert [row["l2"] == 0 for row in result["divergence"]] == [True, True] + [False] * 10
    assert [row["step"] for row in result["divergence"] if row["logit_kl"] is not None] == [
        81,
        84,
        87,
        90,
    ]
    final = result["final"]
    assert (
        final["loss_fork"] != final["loss_control"]
        and final["logit_kl"] > 0
        and final["loss_error"] > 0
    )
    assert final["placebos"] == 3 and final["p"] in (0.25, 0.5, 0.75, 1.0)
    (proof,) = open_trajectory(runs, "base").table("certificates").to_pylist()
    assert (proof["first"], proof["last"], proof["bitwise"]) == (78, 90, True)
    assert proof["source"] == "fork" and proof["compared"] == 12
    table = open_trajectory(runs, result["fork"]).table("divergence").to_pylist()
    assert {row["arm"] for row in table} == {
        "fork",
        "placebo-0",
        "placebo-1",
        "placebo-2",
        "chaos-0",
    }
    whole = {(r["step"], r["arm"]): r["l2"] for r in table if r["tensor"] == ""}
    parts = {}
    layers = {}
    for r in table:
        if r["tensor"].endswith(".*"):
            layers[r["step"], r["arm"], r["layer"]] = r["l2"]
        elif r["tensor"]:
            parts[r["step"], r["arm"]] = parts.get((r["step"], r["arm"]), 0.0) + r["l2"] ** 2
    for key, l2 in whole.items():
        assert l2 == pytest.approx(parts[key] ** 0.5, rel=1e-9)
    for (step, arm, layer), l2 in layers.items():
        own = [
            r["l2"]
            for r in table
            if (r["step"], r["arm"], r["layer"]) == (step, arm, layer) and r["tensor"][-1] != "*"
        ]
        assert l2 == pytest.approx(sum(x**2 for x in own) ** 0.5, rel=1e-9)
    assert {layer for _, _, layer in layers} == {0, 1}


def test_a_result_of_another_version_is_told_and_again_makes_it_anew(runs: Path) -> None:
    one = Spec("base", 75, 78, (Skip(76, 77),), name="older")
    result = forked(one, runs)
    path = runs / "older" / RESULT_FILE
    path.write_text(json.dumps({**result, "version": 0}))
    with pytest.raises(ForensicsError, match="wanted a fork of version 2, found version 0") as e:
        forked(one, runs)
    assert "--again" in str(e.value)
    assert forked(one, runs, again=True)["final"]["l2"] == result["final"]["l2"]


def test_a_fork_that_is_done_is_found_and_its_id_tells_what_it_is(runs: Path) -> None:
    one = Spec("base", 75, 80, (Skip(76, 78),))
    first = forked(one, runs)
    marker = runs / one.fork / RESULT_FILE
    before = marker.stat().st_mtime_ns
    assert forked(one, runs) == json.loads(marker.read_bytes()) == first
    assert marker.stat().st_mtime_ns == before
    assert Spec("base", 75, 80, (Skip(76, 79),)).fork != one.fork


def test_arms_are_compared_on_sequences_that_none_of_them_has_consumed(
    runs: Path, base: Run
) -> None:
    made = Spec(
        "base", 78, 90, (RemoveDocuments(80, 82, damaged(base)),), placebos=2, probe_every=6
    )
    fork = Fork(made, base, lambda *_: None)
    fresh = fork.measured.unseen.batch.sequence.tolist()
    consumed = {int(i) for s in range(78) for i in base.stream(s).sequence}
    consumed |= {
        int(i)
        for arm in fork.arms.by_name.values()
        for s in range(78, 90)
        for i in arm.stream(s).sequence
    }
    assert len(set(fresh)) == 32 and not consumed & set(fresh)
    assert not set(fresh) & set(base.batches.order.held_out.tolist())
    result = fork.run_to_end().to_document()
    fresh = result["final"]["unseen"]
    assert (
        fresh["sequences"] == 32
        and fresh["loss_fork"] != fresh["loss_control"]
        and len(fresh["placebo_loss_gaps"]) == 2
    )
    rows = {r["step"]: r for r in result["divergence"]}
    assert (
        rows[90]["unseen_gap"] == fresh["loss_fork"] - fresh["loss_control"]
        and rows[89]["unseen_gap"] is None
    )


def test_a_source_that_has_been_read_whole_offers_nothing_unseen(base: Run) -> None:
    order = base.batches.order
    clean = int(order.drawable[0])
    end = next(s for s in range(0, 10**6, 50) if order.drawn(0, s) >= clean)
    assert len(unseen(base, [base.stream], end, end, 8)) == 0
    assert len(unseen(base, [base.stream], 90, 90, 8)) == 8


def test_the_barrier_is_followed_at_the_chosen_states_for_every_arm(runs: Path) -> None:
    made = Spec("base", 78, 90, (LearningRate(80, 84, 3.0),), placebos=0, chaos=1, barrier=(84, 90))
    result = forked(made, runs)
    assert {(b["step"], b["arm"]) for b in result["barriers"]} == {
        (s, a) for s in (84, 90) for a in ("fork", "chaos-0")
    }
    rows = {r["step"]: r["barrier"] for r in result["divergence"]}
    assert rows[84] is not None and rows[90] is not None and rows[85] is None
    assert (
        forked(dataclasses.replace(made, barrier=()), runs) == result
    )  # done: nothing more is asked
    more = forked(dataclasses.replace(made, barrier=(84, 86, 90)), runs)
    assert {b["step"] for b in more["barriers"]} == {84, 86, 90}
    with pytest.raises(ForensicsError, match="barrier at a state of 78:90, found 78"):
        forked(dataclasses.replace(made, barrier=(78,)), runs)


@pytest.mark.parametrize("stop", [79, 85, 89])
def test_a_fork_that_was_interrupted_goes_on_to_the_same_end(
    stop: int, runs: Path, tmp_path: Path, base: Run
) -> None:
    made = Spec(
        "base",
        78,
        90,
        (RemoveDocuments(80, 82, damaged(base)),),
        placebos=1,
        chaos=1,
        probe_every=4,
        barrier=(84,),
    )
    shutil.copytree(runs, tmp_path / "other")
    whole = forked(made, tmp_path / "other")

    def ctrl_c(done: int, total: int, note: str) -> None:
        if done == stop - 78:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=f"goes on from state {stop}"):
        forked(made, runs, ctrl_c)
    steps = []
    resumed = forked(made, runs, lambda done, total, note: steps.append(done))
    assert steps == list(range(stop - 77, 13))
    assert {k: v for k, v in resumed.items() if k != "seconds"} == {
        k: v for k, v in whole.items() if k != "seconds"
    }
    tables = [open_trajectory(r, made.fork) for r in (runs, tmp_path / "other")]
    for name in ("divergence", "steps", "sequences", "checkpoints"):
        key = ["step", "arm", "tensor"] if name == "divergence" else ["step"]
        mine, theirs = (
            t.table(name).sort_by([(k, "ascending") for k in key]).to_pylist() for t in tables
        )
        drop = {"seconds", "created", "tokens_per_second"}
        assert [{k: v for k, v in r.items() if k not in drop} for r in mine] == [
            {k: v for k, v in r.items() if k not in drop} for r in theirs
        ]
    assert not (runs / made.fork / "halfway").exists()


def flushed(
    runs: Path, base: Run, name: str, seconds: float, watch: list[int], last: int = 90
) -> Fork:
    """A fork of 78:`last` that has run, its clock going on by `seconds` a look; `watch`: the last
    state on disk after each step.
    """
    fork: Fork

    def look(done: int, total: int, note: str) -> None:
        for write in fork.distances.handed_over():
            write.result()
        parts = manifest.load(fork.run.folder, "divergence", fresh=True).parts
        watch.append(parts[-1].last if parts else 0)

    time = itertools.count(step=seconds)
    made = Spec("base", 78, last, (Skip(80, 81),), chaos=1, name=name)
    fork = Fork(made, base, look, clock=lambda: next(time))
    fork.run_to_end()
    return fork


def test_what_a_fork_measures_is_written_each_second_while_it_runs(runs: Path, base: Run) -> None:
    seen: list[int] = []
    slow = flushed(
        runs, base, "slow", 2.0, seen
    )  # each step is followed by a look at the disk, then by its flush
    assert seen == [0, *range(79, 90)], (
        "a step that takes a second or more is on disk before the next"
    )
    seen = []
    flushed(
        runs, base, "quick", 0.25, seen
    )  # a flush looks at the clock twice, else each step once
    assert seen == [0, 79, 79, 79, 79, 83, 83, 83, 83, 87, 87, 87]
    seen = []
    still = flushed(runs, base, "still", 0.0, seen)
    assert seen == [0, *[79] * 11], "where no second passes, only the first"
    one, other = (open_trajectory(runs, f.spec.fork) for f in (slow, still))
    assert one.load(90).digest() == other.load(90).digest()
    assert one.table("divergence").to_pylist() == other.table("divergence").to_pylist()


def test_a_fork_that_is_written_step_by_step_keeps_few_files(runs: Path, base: Run) -> None:
    fork = flushed(runs, base, "long", 2.0, [], last=78 + MOST_PARTS + 10)
    assert 1 < len(list((fork.run.folder / "tables" / "divergence").glob("*.parquet"))) < MOST_PARTS
    assert len(list((fork.run.folder / "tables" / "steps").glob("*.parquet"))) < 8, (
        "the other tables are written as ever"
    )
    assert (
        len({r["step"] for r in open_trajectory(runs, "long").table("divergence").to_pylist()})
        == MOST_PARTS + 10
    )


def test_skipped_steps_have_a_row_with_null_loss(runs: Path) -> None:
    made = Spec("base", 75, 80, (Skip(76, 78),))
    forked(made, runs)
    rows = {r["step"]: r for r in open_trajectory(runs, made.fork).table("steps").to_pylist()}
    assert sorted(rows) == [75, 76, 77, 78, 79]
    assert [rows[s]["loss"] is None for s in sorted(rows)] == [False, True, True, False, False]
    assert [rows[s]["update"] for s in sorted(rows)] == ["apply", "none", "none", "apply", "apply"]


def test_a_fork_of_a_fork_inherits_and_adds(runs: Path, base: Run) -> None:
    first = Spec("base", 75, 90, (Drop(80, 82),), name="one")
    forked(first, runs)
    forked(Spec("one", 78, 95, (Swap(84, 85),), name="two"), runs)
    two = open_trajectory(runs, "two")
    assert [two.stream(s).origin for s in (79, 80, 84, 85, 86)] == [79, 82, 87, 86, 88]
    assert batch_at(runs, "two", 84).origin == 87
    report = verify.verify(runs, "two", 80, 95)
    assert report.bitwise
    below = batch_at(runs, "two", 10)
    assert (
        below.sequences[0].loss is not None
        and below.sequences == batch_at(runs, "base", 10).sequences
    )


def test_a_stream_goes_on_past_its_parents_end(runs: Path) -> None:
    result = forked(Spec("base", 98, 106, (LearningRate(98, 106, 0.5),)), runs)
    assert [row["step"] for row in result["divergence"]] == list(range(99, 107))
    assert result["control"]["bitwise"]


def test_a_control_that_differs_is_said_to_be_tolerance_only(runs: Path, base: Run) -> None:
    rows = base.table("steps").to_pydict()
    rows["loss"][80] += 1e-6
    rows["state_digest"][80] = "0" * 32
    replace_table(base.folder, "steps", rows)
    result = forked(Spec("base", 78, 84, (Skip(83, 84),)), runs)
    assert not result["control"]["bitwise"] and result["control"]["level"] in (
        "reproduces",
        "absent",
    )
    assert "tolerance only" in result["control"]["sentence"]
    report = verify.verify(runs, "base", 78, 84)
    assert (
        not report.bitwise
        and report.first_difference is not None
        and report.first_difference.step == 80
    )
    assert report.max_abs_difference == pytest.approx(1e-6, rel=1e-6)


def test_data_that_changed_on_disk_is_refused_before_any_step(runs: Path, base: Run) -> None:
    shard = next((runs / "_data" / base.header.corpus).glob("*.bin"))
    data = bytearray(shard.read_bytes())
    data[7] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ForensicsError, match="changed since it was prepared") as e:
        forked(Spec("base", 75, 80, ()), runs)
    assert e.value.exit_code == 1


def test_documents_are_chosen_by_sql_and_other_runs_rows_do_not_count(
    runs: Path, base: Run
) -> None:
    sql = "select run, document from documents where source = 'damaged'"
    columns, rows = statement.select(runs, base, sql, DOCUMENTS, (0, 100))
    assert tuple(columns.read(base, rows, 0, 100)) == damaged(base)
    for bad, words in [
        ("select path from documents", "column 'document'"),
        ("select document from documents where false", "selected nothing"),
        ("select 'other' as run, document from documents", "selected nothing"),
    ]:
        with pytest.raises(ForensicsError, match=words):
            statement.select(runs, base, bad, DOCUMENTS, (0, 100))


def test_the_plan_says_what_would_be_touched_and_runs_nothing(runs: Path, base: Run) -> None:
    made = Spec("base", 78, 90, (RemoveDocuments(78, 90, damaged(base)),), placebos=2)
    plan = engine.plan(made, runs)
    assert plan.sequences_by_step.keys() == {80, 81} and plan.arms == 4
    assert plan.steps_to_compute == 4 * 12 + 3
    median = float(np.median(base.table("steps", ["seconds"])["seconds"].to_numpy()))
    rows = plan.probe_readings * 4 * (base.recipe.data.held_out + 32)  # held-out and unseen
    passes = plan.steps_to_compute + rows / 3 / base.recipe.train.batch  # a forward is a third
    assert plan.probe_readings == 12 and plan.hours == pytest.approx(passes * median / 3600)
    assert not (runs / made.fork).exists()


def test_the_scan_puts_the_planted_batches_on_top_and_goes_on_where_it_was(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = batch_scan.of_run(runs, "base", 80)
    before = target.state.digest()
    calls = []
    real = batch_scan._one
    monkeypatch.setattr(batch_scan, "_one", lambda *a: calls.append(1) or real(*a))
    batch_scan.scan(target, 76, 80)
    rows = batch_scan.scan(target, 76, 86)
    assert len(calls) == 10  # four were kept
    assert {row.step for row in rows[:2]} == {80, 81}
    assert target.state.digest() == before
    recorded = open_trajectory(runs, "base").table("steps").to_pydict()
    at = next(row for row in rows if row.step == 80)
    assert at.loss == recorded["loss"][80] and at.grad_norm == recorded["grad_norm"][80]


def test_a_scan_by_sequence_adds_up_to_the_batch(runs: Path) -> None:
    target = batch_scan.of_run(runs, "base", 50)
    whole = batch_scan.scan(target, 50, 51)[0].loss
    each = batch_scan.scan(target, 50, 51, per_sequence=True)
    assert sorted(row.slot for row in each) == list(range(8))
    assert np.mean([row.loss for row in each]) == pytest.approx(whole, rel=1e-6)


def test_any_hugging_face_folder_can_be_scanned_with_a_token_file(
    runs: Path, tmp_path: Path, base: Run
) -> None:
    ids = base.corpus.tokens(0, 0, 32 * 8 + 1)
    np.save(tmp_path / "ids.npy", ids)
    folder = base.folder / "checkpoints" / "step-000050"
    rows = batch_scan.scan(batch_scan.of_folder(folder, tmp_path / "ids.npy", 32, 4, runs), 0, 2)
    direct = batch_scan.scan(
        batch_scan.ScanTarget(
            base.load(50),
            base.model,
            lambda s: base.batches.make(np.arange(s * 4, s * 4 + 4)),
            "fp32",
            None,
            "",
        ),
        0,
        2,
    )
    assert sorted(r.loss for r in rows) == pytest.approx(sorted(r.loss for r in direct), rel=1e-6)
    with pytest.raises(ForensicsError, match="wanted batch 2"):
        batch_scan.scan(batch_scan.of_folder(folder, tmp_path / "ids.npy", 32, 4, runs), 0, 3)


def test_a_bare_token_file_is_scanned_as_its_type_says_and_never_guessed(
    runs: Path, tmp_path: Path, base: Run
) -> None:
    folder = base.folder / "checkpoints" / "step-000050"
    ids = base.corpus.tokens(0, 0, 32 * 4 + 1)
    np.save(tmp_path / "real.npy", ids)
    ids.astype("<u4").tofile(tmp_path / "bare.bin")

    def losses(name: str, dtype: str | None = None) -> list[float]:
        target = batch_scan.of_folder(folder, tmp_path / name, 32, 4, runs, dtype)
        return [row.loss for row in batch_scan.scan(target, 0, 1)]

    assert losses("bare.bin", "uint32") == losses("real.npy")
    with pytest.raises(ForensicsError, match=r"a bare memory map.*--dtype uint32"):
        losses("bare.bin")
    with pytest.raises(ForensicsError, match="looks like uint32"):
        losses("bare.bin", "uint16")
    ids[77] = base.corpus.vocabulary
    np.save(tmp_path / "real.npy", ids)
    with pytest.raises(ForensicsError, match=f"token {base.corpus.vocabulary} at place 77"):
        losses("real.npy")


def test_diff_tells_a_fork_and_two_strangers(runs: Path) -> None:
    made = Spec("base", 75, 82, (Swap(77, 78),))
    forked(made, runs)
    told = between(runs, "base", made.fork)
    first = told.first_difference
    assert first is not None and (first.step, first.tensor) == (77, "embed.weight")
    assert [row.step for row in told.divergence] == list(range(76, 83))
    assert RunDiff.from_document(told.to_document(), "diff") == told
    other = between(runs, made.fork, made.fork)
    assert other.first_difference is None


def test_a_note_written_beside_a_certificate_loses_neither(runs: Path, base: Run) -> None:
    with Writer(base.folder) as writer:
        writer.append("events", step=3, kind="note", text="here", created="now")
    verify.verify(runs, "base", 0, 3)
    assert any(e["text"] == "here" for e in base.table("events").to_pylist())
    assert (
        pq.ParquetFile(
            next((base.folder / "tables" / "certificates").glob("*.parquet"))
        ).metadata.num_rows
        == 1
    )
