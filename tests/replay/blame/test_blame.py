"""Blame from end to end: planted causes are found, and where there is no data cause none is
named.
"""

from __future__ import annotations

import json
import shutil

import click
import pytest
import torch

from benchmarks import blame_study
from benchmarks.blame_study import AT, KINDS, STEPS
from forensics.train import checkpoint, loop
from forensics.train.advance import fold
from replay.blame import search as searching
from replay.blame import window_memory
from replay.blame.blamed_step import the_spike
from replay.blame.investigate import BlameOptions, blame
from replay.blame.result import BlameResult
from replay.cli import main
from replay.lineage import open_trajectory

SEEDS = (1, 2)  # where a blame takes no training step; `make blame-study` has more of each


@pytest.mark.parametrize("seed", SEEDS[:1])
def test_a_damaged_document_in_half_of_four_batches_is_found_in_the_aftermath(blamed, seed):
    d = blamed("damaged document", seed, "aftermath")
    assert d.verdict == "data" and d.excess.state > 5 * abs(d.excess.data)
    assert d.documents[0].source == "planted" and d.proof.away and d.proof.causal
    assert {c.source for c in d.candidates} == {"planted"} and {
        c.step for c in d.candidates
    } <= set(range(AT, AT + 4))
    assert (
        max(c.replayed_effect or 0 for c in d.candidates) < 0.3 * d.proof.excess_removed
    )  # the cause is joint


@pytest.mark.parametrize("seed", SEEDS)
def test_the_spike_itself_is_the_data_part_of_the_damaged_batch(blamed, seed):
    d = blamed("damaged document", seed, "peak")
    assert d.verdict == "data" and AT <= d.spike.step < AT + 4
    assert d.excess.data > 0.9 * d.excess.total and d.documents[0].source == "planted"
    assert (
        d.proof.share == pytest.approx(1.0, abs=0.1)
        and max(d.proof.random) < 0.1 * d.proof.excess_removed
    )
    assert len(d.proof.null.windows) == 19 and d.p == d.proof.null.least_p == 0.05
    assert d.proof.null.rule == "rank" and all(w.step < AT for w in d.proof.null.windows)


@pytest.mark.parametrize("seed", SEEDS[:1])
def test_rare_tokens_on_stale_moments_are_data_and_state_together_and_the_tensor_is_named(
    blamed, seed
):
    d = blamed("rare tokens", seed, "aftermath")
    assert d.verdict == "data and state" and d.documents[0].source == "planted"
    assert not d.trials.up_to_date.spikes and not any(t.spikes for t in d.trials.other_data)
    stale = d.tensors.stale[0]
    assert (
        stale.times > 5
        and stale.tensor in d.sentence
        and f"staleness {stale.staleness:.2f}" in d.sentence
    )


@pytest.mark.parametrize("seed", SEEDS[:1])
def test_a_document_that_comes_forty_times_is_blamed_as_one(blamed, seed):
    d = blamed("duplicated document", seed, "aftermath")
    assert d.verdict == "data" and d.proof.kind == "document"
    assert d.proof.name.startswith("duplicated-document")
    assert d.documents[0].source == "planted" and d.documents[0].sequences == 40
    assert d.sources[0].source == "planted"


@pytest.mark.parametrize("seed", SEEDS[:1])
def test_a_jump_of_the_learning_rate_is_policy_and_a_fork_can_be_blamed(blamed, seed):
    d = blamed("learning-rate jump", seed, "peak")
    assert d.run.endswith("-fork") and d.verdict == "policy"
    assert all(t.spikes for t in d.trials.other_data)
    assert [(c.field, c.first, c.trial.spikes) for c in d.trials.policy] == [
        ("learning_rate", AT, False)
    ]
    assert d.control.level == "exact" and d.window[1] == d.spike.step


@pytest.mark.parametrize("seed", SEEDS)
def test_a_clean_run_blamed_by_force_cannot_be_told(blamed, seed):
    """On whichever road: most CPUs' bits leave nothing to explain; where a fluctuation stands out
    by chance and its removal looks like more than chance, other data withhold the verdict.
    """
    d = blamed("clean run", seed, "largest fluctuation")
    assert d.verdict == "cannot tell"
    if d.reason == "no spike":
        assert "no spike to explain" in d.sentence and d.p is None and d.proof is None
    else:
        assert d.proof is not None and d.p == d.proof.p
        assert d.reason == "other data spike too" or not (d.proof.causal and d.proof.away)


def test_where_the_control_does_not_spike_the_verdict_is_numerics(
    made, planted_runs, tmp_path, monkeypatch
):
    """The signs of one tensor are flipped in flight at step AT + 4; no replay repeats that."""
    name, _ = made("clean run", 1)
    for folder in (name, "_data"):
        shutil.copytree(planted_runs / folder, tmp_path / folder)
    run = open_trajectory(tmp_path, name)
    shutil.rmtree(run.folder / "checkpoints" / checkpoint.name_of(STEPS))

    def faulty(state, stream, policy, stop, model, watch, after):
        def flipped(state, result):
            after(state, result)
            if result.step == AT + 4:
                with torch.no_grad():
                    state.params["norm.weight"].neg_()

        return fold(state, stream, policy, stop, model, watch, flipped)

    monkeypatch.setattr(loop, "fold", faulty)
    loop.train(run.recipe, name=name, recipe_name="study", runs=tmp_path, resume=True)
    d = blame(tmp_path, name, AT + 5)
    assert d.verdict == "numerics" and d.control.level == "absent"
    assert f"differs from step {AT + 5}" in d.sentence and d.p is None and not d.deletion_curve


def test_the_result_has_the_contracts_keys_is_kept_and_its_rows_replace_only_their_own_spikes(
    blamed, planted_runs
):
    first, second = (
        blamed("damaged document", 1, "peak"),
        blamed("damaged document", 1, "aftermath"),
    )
    contract = {
        "spike",
        "excess",
        "verdict",
        "p",
        "candidates",
        "deletion_curve",
        "tensors",
        "replays",
        "seconds",
    }
    document = second.to_document()
    assert contract <= document.keys() and {"data", "state"} <= document["excess"].keys()
    assert {
        "step",
        "slot",
        "sequence",
        "document",
        "source",
        "influence",
        "replayed_effect",
        "text",
    } <= document["candidates"][0].keys()
    run = open_trajectory(planted_runs, second.run)
    assert BlameResult.read(run.folder / f"blame-{second.spike.step}.json") == second
    rows = run.table("blame").to_pylist()
    assert {r["spike"] for r in rows} == {first.spike.step, second.spike.step}
    mine = [r for r in rows if r["spike"] == second.spike.step]
    assert [r["sequence"] for r in sorted(mine, key=lambda r: r["rank"])] == [
        c.sequence for c in second.candidates
    ]


def test_the_curve_is_replays_of_more_and_more_of_the_strongest(blamed):
    d = blamed("damaged document", 1, "aftermath")
    assert [p.removed for p in d.deletion_curve][:4] == [1, 2, 4, 8]
    assert all(
        p.excess_removed == pytest.approx(d.excess.total - p.data - p.state)
        for p in d.deletion_curve
    )
    assert d.deletion_curve[-1].excess_removed > 3 * abs(d.deletion_curve[0].excess_removed)
    assert d.condition.ok and d.condition.relative_error < 0.1


def test_leave_one_out_finds_the_same_document_by_replays_alone(made, planted_runs):
    name, places = made("rare tokens", 1)
    d = blame(
        planted_runs, name, dict(places)["aftermath"], BlameOptions(3, "leave-one-out", force=True)
    )
    assert d.documents[0].source == "planted" and d.verdict == "data and state"
    state = [c for c in d.candidates if c.part == "state"]
    assert (
        all(c.influence == pytest.approx(c.replayed_effect) for c in state) and d.condition is None
    )


def test_bisection_ends_with_a_small_set_that_takes_the_spike_away(made, planted_runs, monkeypatch):
    monkeypatch.setattr(searching, "BUDGET", 60)  # replays: no more than it needs here
    name, places = made("rare tokens", 1)
    d = blame(
        planted_runs,
        name,
        dict(places)["aftermath"],
        BlameOptions(4, "bisect", placebos=1, null_windows=1, force=True),
    )
    assert d.bisection.excess_removed >= 0.75 * d.excess.total
    assert "planted" in {doc.source for doc in d.documents} and set(d.bisection.steps) <= set(
        range(AT - 2, AT + 2)
    )


def test_an_interrupt_keeps_what_is_known_and_the_command_ends_with_130(
    made, planted_runs, monkeypatch, capsys
):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(searching, "hold_against_random", interrupted)
    name, _ = made("damaged document", 2)
    code, out, err = call(
        "blame",
        name,
        "--runs",
        planted_runs,
        "--json",
        capsys=capsys,
    )
    d = json.loads(out)
    assert code == 130 and "interrupted" in err
    assert (
        d["interrupted"]
        and d["verdict"] == "cannot tell"
        and d["deletion_curve"]
        and d["candidates"]
    )


def test_the_story_tells_verdict_curve_and_suspects_and_no_text_can_drive_the_terminal(
    made, planted_runs, tmp_path, capsys
):
    name, _ = made("damaged document", 1)
    page = tmp_path / "page.html"
    code, out, _err = call("blame", name, "--runs", planted_runs, "--html", page, capsys=capsys)
    assert code == 0 and out.startswith(
        "Cause: data. Removing the document `damaged-document-1.txt` (planted) from "
    )
    assert (
        "removed together" in out
        and "by source" in out
        and "\x1b" not in out
        and "TOLERANCE" not in out
    )
    html = page.read_text()
    assert html.count("<pre>") == html.count("</pre>") > 0 and "<script" not in html


def test_the_peak_is_explained_where_a_step_inside_the_spike_is_asked_for(made, planted_runs):
    name, _ = made("damaged document", 1)
    peak = the_spike(open_trajectory(planted_runs, name), None, False)
    inside = the_spike(open_trajectory(planted_runs, name), AT + 2, False)
    assert inside.step == peak.step and f"Step {AT + 2} belongs to the spike" in inside.remark
    assert the_spike(open_trajectory(planted_runs, name), AT + 2, True).step == AT + 2


def call(*arguments, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    assert isinstance(main.main, click.Group)
    with pytest.raises(SystemExit) as e:
        main.main.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return int(e.value.code or 0), out, err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (
            ["--spike", "100"],
            2,
            "step 100 of damaged-document-1 is no spike of the loss; the nearest is at",
        ),
        (["--spike", "0", "--force"], 3, "wanted a state of damaged-document-1 before step 0"),
        (["--spike", "9999", "--force"], 3, "wanted the loss of damaged-document-1 at step 9999"),
        (["--spike", "160", "--window", "0"], 2, "--window"),
        (["--spike", "160", "--method", "guess"], 2, "--method"),
    ],
)
def test_bad_input_is_told_in_one_line(made, planted_runs, capsys, arguments, code, words):
    name, _ = made("damaged document", 1)
    got, out, err = call("blame", name, *arguments, "--runs", planted_runs, capsys=capsys)
    assert got == code and words in err and len(err.strip().splitlines()) == 1 and not out


def test_a_window_too_long_for_memory_is_refused_with_one_that_fits(
    made, planted_runs, capsys, monkeypatch
):
    name, _ = made("damaged document", 1)
    monkeypatch.setattr(window_memory, "free_memory", lambda run: 20_000_000)
    code, _, err = call("blame", name, "--window", "150", "--runs", planted_runs, capsys=capsys)
    assert code == 1 and "GiB free" in err and ("--window" in err or "--method bisect" in err)


def test_a_run_without_a_spike_says_so(made, planted_runs, capsys):
    name, _ = made("clean run", 1)
    code, _, err = call("blame", name, "--runs", planted_runs, capsys=capsys)
    assert code == 3 and "wanted a spike of the loss" in err and "--force" in err


def test_the_study_counts_what_it_says(blamed):
    def row(cause, where, verdict, top):
        return {"cause": cause, "where": where, "verdict": verdict, "top": top}

    rows = [row("damaged document", "aftermath", "data", i > 0) for i in range(10)]
    rows += [
        row("clean run", "largest fluctuation", "cannot tell", False),
        row("learning-rate jump", "peak", "policy", False),
    ]
    table = blame_study.summary(rows)
    assert table[0]["on top"] == 9 and table[0]["right"] == 10 and blame_study.holds(table)
    assert not blame_study.holds(
        blame_study.summary([*rows, row("clean run", "largest fluctuation", "data", False)])
    )
    assert not blame_study.holds(
        blame_study.summary([*rows[1:9], row("damaged document", "aftermath", "data", False)] * 2)
    )
    assert KINDS["damaged document"].document.length == 4
