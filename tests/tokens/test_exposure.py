"""The ledger counts what a step-by-step reading of every batch counts, on runs and forks of every
kind.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from forensics.config import Data, Phase
from forensics.data.order import make_order
from forensics.data.planted import PLANTED
from forensics.errors import ForensicsError
from forensics.model.step_model import StepModel
from forensics.step.state import Counters
from forensics.tokens import exposure
from forensics.tokens.applied_steps import sequence_ids
from forensics.tokens.causes import corpus_counts
from forensics.tokens.exposure import FIELDS, ledger, ledgers
from forensics.tokens.exposure_tally import reachable
from forensics.tokens.vocabulary import vocabulary, write_vocabulary
from forensics.train.advance import documents
from forensics.train.run import Run
from replay.lineage import open_trajectory


def read_one_by_one(run: Run, step: int) -> dict[str, np.ndarray]:
    """The definitions of docs/formulas.md, spelled out token by token."""
    V, T = run.shape.vocabulary, run.recipe.data.sequence_length
    found = {
        name: np.zeros(V, np.int64) for name in ("exposure_in", "exposure_out", "exposure_grad")
    }
    first, last, held = np.full(V, -1), np.full(V, -1), [set() for _ in range(V)]
    windows, each, end = [], run, step
    while each is not None:
        windows.append((each, each.header.first_step, end))
        each, end = each.parent, min(end, each.header.first_step)
    for each, low, high in reversed(windows):
        rows = {
            row["step"]: row
            for row in each.table("steps", ["step", "update", "schedule", "updates"]).to_pylist()
        }
        for s in range(low, high):
            if rows[s]["update"] not in ("apply", "hold"):
                continue
            batch, applied = each.stream(s), rows[s]["update"] == "apply"
            frozen = each.policy(Counters(s, rows[s]["schedule"], rows[s]["updates"])).frozen
            for b in range(len(batch.tokens)):
                tokens, weight = batch.tokens[b].tolist(), batch.weight[b].tolist()
                spans = each.corpus.spans(batch.sequence[b : b + 1].numpy(), each.recipe.data.cut)[
                    0
                ]
                owner = {p: span.document for span in spans for p in range(span.start, span.stop)}
                of = np.cumsum(
                    [0]
                    + [each.shape.document_mask and t == each.header.eot for t in tokens[: T - 1]]
                )
                met = set()
                for p in range(T):
                    if (
                        any(weight[u] != 0 and of[u] == of[p] for u in range(p, T))
                        and "embed.weight" not in frozen
                    ):
                        found["exposure_grad"][tokens[p]] += 1
                    if applied:
                        found["exposure_in"][tokens[p]] += 1
                        found["exposure_out"][tokens[p + 1]] += weight[p] != 0
                        met |= {p, p + 1} if weight[p] != 0 else {p}
                for p in met:
                    first[tokens[p]] = s if first[tokens[p]] < 0 else first[tokens[p]]
                    last[tokens[p]] = s
                    held[tokens[p]] |= {owner[p]} if p in owner else set()
    return {
        **found,
        "documents": np.array([len(d) for d in held]),
        "first_step": first,
        "last_step": last,
    }


def assert_equal(found: exposure.Exposure, expected: dict[str, np.ndarray]) -> None:
    for name in FIELDS:
        differ = np.flatnonzero(getattr(found, name) != expected[name])
        assert not len(differ), f"{name} of {differ[:5]} at {found.step}"


@pytest.mark.parametrize("name", ["base", "masked", "held", "frozen", "edited", "removed", "again"])
def test_the_ledger_of_a_run_or_fork_is_what_reading_every_batch_gives(
    name: str, moved_runs: Path
) -> None:
    run = open_trajectory(moved_runs, name)
    first, last = run.header.first_step, run.last_step()
    steps = [0, 17, last] if name == "base" else [first + 4, last]
    for found in ledgers(run, steps):
        assert_equal(found, read_one_by_one(run, found.step))
    if name == "base":
        assert "skipped" in run.table("steps")["update"].to_pylist(), (
            "SkipStep passed over the damaged batch"
        )


def test_sequences_that_repeat_and_are_masked_count_as_inputs_only(
    train_run, tmp_path: Path
) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("n" * 800 + "The quick brown fox. " * 60)
    run = train_run(
        "repeating",
        **{
            "data.source": str(tmp_path / "text"),
            "data.mask_repeats": True,
            "train.steps": 12,
            "data.held_out": 0,
        },
    )
    found = ledger(run, 12)
    assert_equal(found, read_one_by_one(run, 12))
    assert found.exposure_out[ord("n")] < found.exposure_in[ord("n")]


def test_counting_in_small_stretches_changes_nothing(
    moved_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_trajectory(moved_runs, "base")
    whole = ledger(run, 77)
    monkeypatch.setattr(exposure, "CHUNK", 100)
    monkeypatch.setattr(exposure, "_kept", lambda run, step: None)
    for name in FIELDS:
        assert np.array_equal(getattr(ledger(run, 77), name), getattr(whole, name)), name


def test_what_is_kept_is_the_ledger_and_a_damaged_file_is_counted_again(
    tiny_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ledger(tiny_run, 10)
    path = exposure.path_of(tiny_run, 10)
    assert path.is_file()
    monkeypatch.setattr(exposure, "_count", lambda *_: pytest.fail("it was kept"))
    assert np.array_equal(ledger(tiny_run, 10).documents, found.documents)
    monkeypatch.undo()
    path.write_bytes(path.read_bytes()[:100])
    assert np.array_equal(ledger(tiny_run, 10).documents, found.documents)


def test_inputs_and_targets_add_up_to_the_positions_read(tiny_run: Run) -> None:
    found = ledger(tiny_run, 30)
    assert found.exposure_in.sum() == found.exposure_out.sum() == 30 * 4 * 32
    assert np.array_equal(found.exposure_grad, found.exposure_in)
    assert (found.exposure_in[found.never_met] == 0).all() and len(found.never_met)


def test_a_planted_word_was_seen_as_often_as_it_was_planted(planted_run: Run) -> None:
    layout = planted_run.corpus.layout(planted_run.recipe.data.cut)
    epoch = layout.n_sequences[0]
    read = planted_run.corpus.tokens(0, 0, epoch * 128)
    tail = planted_run.corpus.tokens(
        0, epoch * 128, planted_run.corpus.sources[0].tokens
    )  # in no sequence, as an input
    found, in_corpus = ledger(planted_run, epoch), corpus_counts(planted_run)
    for word, times in PLANTED.items():
        (id,) = planted_run.corpus.tokenizer.encode(f" {word}").ids
        assert in_corpus[0, id] == times and in_corpus[1, id] == 24 * 12
        assert found.exposure_in[id] == (read == id).sum() == times - (tail == id).sum()
        assert (found.first_step[id] < 0) == (found.exposure_in[id] == found.exposure_out[id] == 0)
    assert found.exposure_in.sum() == epoch * 128


def test_reachable_is_the_decoders_own_notion_of_a_document() -> None:
    rng = np.random.default_rng(0)
    inputs, counted = rng.integers(0, 4, (64, 20)), rng.random((64, 20)) < 0.2
    shape = type("Shape", (), {"document_mask": True})()
    model = StepModel(type("Decoder", (), {"shape": shape})(), 1, "fused", frozenset(), "cpu", 0)  # type: ignore[arg-type]
    of = documents(torch.from_numpy(inputs), model)
    assert of is not None
    expected = [
        [any(c[u] and d[u] == d[t] for u in range(t, 20)) for t in range(20)]
        for c, d in zip(counted, of.numpy())
    ]
    assert np.array_equal(reachable(inputs, counted, 0), expected)
    assert np.array_equal(
        reachable(inputs, counted, None), [[c[t:].any() for t in range(20)] for c in counted]
    )


def test_many_batches_ids_at_once_are_those_of_each_in_turn() -> None:
    data = Data(phases=(Phase({"a": 1.0}, 7), Phase({"a": 0.5, "b": 0.5}, 40), Phase({"b": 1.0})))
    order = make_order(data, ["a", "b"], [1000, 700], [0, 1000], 5, 3)
    rng = np.random.default_rng(0)
    for _ in range(60):
        low, high = sorted(rng.integers(0, 100, 2).tolist())
        steps = np.arange(low, high + 1)
        steps = steps[rng.random(len(steps)) < rng.choice([0.5, 0.9, 2.0])]
        if len(steps):
            assert np.array_equal(
                sequence_ids(order, steps),
                np.concatenate([order.sequence_ids(int(s)) for s in steps]),
            )


def test_a_step_that_was_not_trained_is_refused(tiny_run: Run) -> None:
    with pytest.raises(ForensicsError, match="up to step 31, found it trained to 30") as e:
        ledger(tiny_run, 31)
    assert e.value.kind == "missing"


def test_a_states_rows_of_the_vocabulary_are_replaced_whole(train_run) -> None:
    run = train_run("rows", **{"train.steps": 10})
    write_vocabulary(run, 10, indicator=np.arange(257.0), category={65: "OK"})
    write_vocabulary(run, 0)
    write_vocabulary(run, 10, cause={65: "forgotten"})
    rows, found = vocabulary(run, 10).to_pylist(), ledger(run, 10)
    assert run.table("vocabulary").num_rows == 2 * 257 and [row["token"] for row in rows] == list(
        range(257)
    )
    assert rows[65] == {
        "step": 10,
        "token": 65,
        "text": "A",
        "category": "OK",
        "indicator": 65.0,
        "cause": "forgotten",
        "exposure_in": found.exposure_in[65],
        "exposure_out": found.exposure_out[65],
        "exposure_grad": found.exposure_grad[65],
        "documents": found.documents[65],
        "first_seen": found.first_step[65],
        "last_seen": found.last_step[65],
    }
    never = rows[int(found.never_met[0])]
    assert never["first_seen"] is None and never["last_seen"] is None and never["exposure_in"] == 0
