"""A run over another trainer's token files, in the order of its file: commands as on any run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from forensics import config
from forensics.data.foreign_order import order_of
from forensics.data.linked_corpus import bring_in_corpus, located
from forensics.data.made_elsewhere import ForeignOrder, TokenFiles
from forensics.probes.runner import probe
from forensics.train import create
from forensics.train.loop import train
from forensics.train.run import open_run
from replay.forks.run import fork
from replay.forks.spec import build
from replay.integrity import examine
from replay.step.batch_contents import batches_at

PEER = Path(__file__).parents[1] / "fixtures/foreign/olmo1"
SETTINGS = {
    "model": {"layers": 1, "width": 16, "heads": 2},
    "train": {"batch": 4, "steps": 8, "warmup": 2, "threads": 1, "held_out_every": 0},
    "checkpoint": {"every": 4},
}


@pytest.fixture(scope="module")
def linked(tmp_path_factory):
    """A folder of runs with the run `linked` over a copy of OLMo's files."""
    runs = tmp_path_factory.mktemp("linked")
    peer = Path(shutil.copytree(PEER, runs / "peer"))
    names = tuple(f"data/part-{i}.npy" for i in range(3))
    tokens = located(TokenFiles(names, "bare", "uint16", 256, "bytes"), [peer / "data"])
    corpus = bring_in_corpus(tokens, 48, "inside", 320, runs)
    file = peer / "train_data/global_indices.npy"
    made = order_of(ForeignOrder("olmo", 11, 0, file), corpus, 48, "inside", 4, 8)
    data = {"sequence_length": 48, "window": "inside", "held_out": 0, "order_file": made.order_file}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(create, "prepare", lambda *_: corpus)
        train(
            config.from_dict({"data": data, **SETTINGS}), name="linked", recipe_name="", runs=runs
        )
    return runs


def test_a_batch_shows_the_text_that_the_trainer_saw(linked):
    seen = json.loads((PEER / "seen.json").read_text())
    for contents, ids in zip(batches_at(linked, "linked", 0, 8).batches, seen):
        rows = {row.slot: row for row in contents.sequences}
        assert [list(rows[slot].tokens) for slot in range(4)] == ids
        texts = [
            bytes(token for token in row if token < 256).decode(errors="replace") for row in ids
        ]
        assert [rows[slot].text.replace("<|endoftext|>", "") for slot in range(4)] == texts


def test_it_is_probed_on_sequences_that_it_does_not_read(linked):
    run = open_run(linked, "linked")
    read = np.concatenate([run.batches.order.sequence_ids(step) for step in range(8)])
    assert not np.isin(run.batches.untrained(8, 64), read).any()
    assert [point["step"] for point in probe(linked, "linked", "loss")["points"]] == [0, 4, 8]


def test_a_fork_takes_out_documents_that_sql_chose(linked):
    sql = "select document from documents where path = 'part-1.npy#0'"
    file = {"from": 0, "to": 4, "intervention": [{"kind": "remove-documents", "sql": sql}]}
    result = fork(build(linked, open_run(linked, "linked"), file), linked)
    assert result.control.level == "exact" and result.final.unseen.sequences


def test_doctor_reads_its_files_again_where_they_lie(linked):
    found = examine(linked, "linked")
    assert not found.problems
    assert {check.what: check.files for check in found.checks}["data"] == 5
    for path in (linked / "peer/train_data/global_indices.npy", linked / "peer/data/part-1.npy"):
        whole = path.read_bytes()
        path.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
        problems = examine(linked, "linked").problems
        path.write_bytes(whole)
        assert any(path.name in problem for problem in problems), problems
