"""Where a text stands and when it was read, against reading every batch; forks without it."""

from __future__ import annotations

import json

import pytest

from forensics import config, identity
from forensics.errors import ForensicsError
from forensics.store.sandbox import run_sandboxed
from forensics.train.loop import train
from replay.forks.spec import build
from replay.interventions.corpus_search import documents_holding
from replay.interventions.registry import from_dict, to_dict
from replay.lineage import open_trajectory
from replay.where import where_of

NEEDLE = "a needle in hay"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run over 40 documents with metadata, five of which hold the needle, one twice."""
    folder = tmp_path_factory.mktemp("where")
    with (folder / "text.jsonl").open("w") as file:
        for i in range(40):
            held = f" {NEEDLE}." * (i % 8 == 3) * (1 + (i == 11))
            text = f"document {i} has some hay{held} and then it ends with words {i * i}"
            record = {"text": text, "quality": i / 40, "tags": ["odd"] if i % 2 else []}
            file.write(json.dumps(record) + "\n")
    recipe = config.from_dict(
        {
            "data": {
                "source": str(folder / "text.jsonl"),
                "tokenizer": "bytes",
                "sequence_length": 24,
                "held_out": 4,
            },
            "model": {"layers": 1, "width": 16, "heads": 2},
            "train": {"steps": 20, "batch": 4, "warmup": 2, "threads": 1, "device": "cpu"},
            "checkpoint": {"every": 10},
            "record": {"dense": ["0:20"], "every": {"sequences": 2}},
        }
    )
    identity.enable_determinism(1)
    train(recipe, name="a", recipe_name="a", runs=folder / "runs")
    return folder / "runs"


def test_documents_and_readings_are_those_of_every_batch(runs):
    run = open_trajectory(runs, "a")
    found = where_of(runs, "a", NEEDLE)
    assert [(d.document, d.times) for d in found.documents] == [
        *((11, 2), (3, 1), (19, 1), (27, 1), (35, 1))
    ]
    assert (found.times, found.in_documents, found.steps, found.unsearched) == (6, 5, 20, 0)
    whole = []
    for step in range(20):
        batch = run.batch_at(step)
        for slot in range(4):
            text = "".join(chr(min(token, 255)) for token in batch.tokens[slot].tolist())
            at = text.find(NEEDLE)
            while at >= 0:
                whole.append((step, slot, at))
                at = text.find(NEEDLE, at + 1)
    assert [(r.step, r.slot, r.position) for r in found.readings if r.whole] == whole
    assert found.times_read_whole == len(whole) > 0 and found.times_read > found.times_read_whole
    for reading in found.readings:
        batch = run.batch_at(reading.step)
        assert batch.sequence[reading.slot] == reading.sequence
        stop = reading.position + reading.tokens
        held = run.corpus.decode(batch.tokens[reading.slot, reading.position : stop].tolist())
        assert held in NEEDLE


def test_the_loss_of_a_reading_is_the_recorded_one_and_the_texts_own(runs):
    run = open_trajectory(runs, "a")
    sequences = {(r["step"], r["slot"]): r["loss"] for r in run.table("sequences").to_pylist()}
    tokens = {
        (r["step"], r["slot"], r["position"]): r["loss"] for r in run.table("tokens").to_pylist()
    }
    readings = where_of(runs, "a", NEEDLE).readings
    assert {reading.loss is None for reading in readings} == {True, False}
    for r in readings:
        assert r.loss == sequences.get((r.step, r.slot))
        targets = range(max(r.position, 1) - 1, r.position + r.tokens - 1)
        own = [tokens[r.step, r.slot, target] for target in targets]
        assert r.text_loss == (pytest.approx(sum(own) / len(own)) if own else None)


def test_a_text_that_is_nowhere_is_an_answer(runs):
    found = where_of(runs, "a", "no such words")
    assert (found.times, found.documents, found.readings, found.times_read) == (0, (), (), 0)


def test_a_fork_leaves_out_all_documents_that_hold_a_text(runs):
    run = open_trajectory(runs, "a")
    keys = {"from": 2, "to": 12, "intervention": [{"kind": "remove-documents", "text": NEEDLE}]}
    spec = build(runs, run, keys)
    (intervention,) = spec.interventions
    assert list(intervention.documents) == documents_holding(run, NEEDLE) == [3, 11, 19, 27, 35]
    assert from_dict(to_dict(intervention)) == intervention
    assert "5 documents that hold 'a needle in hay'" in intervention.sentence()
    stream = intervention.stream(run.stream, run)
    for step in range(2, 12):
        for row in stream(step).tokens.tolist():
            assert "needle" not in run.corpus.decode(row)
    keys["intervention"][0]["text"] = "nowhere"
    with pytest.raises(ForensicsError, match="that hold 'nowhere', found none"):
        build(runs, run, keys)


def test_everything_below_a_quality_is_one_select(runs):
    sql = "select document from documents where attributes.quality < 0.3"
    run = open_trajectory(runs, "a")
    keys = {"from": 2, "to": 12, "intervention": [{"kind": "remove-documents", "sql": sql}]}
    (intervention,) = build(runs, run, keys).interventions
    assert list(intervention.documents) == list(range(12))
    tagged = "select count(*) as n from documents where list_contains(attributes.tags, 'odd')"
    assert run_sandboxed(runs, tagged).to_pylist() == [{"n": 20}]
