"""Orders of other trainers: the peers' own files and tokens are the truth."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from forensics import config
from forensics.data.batches import own_stream
from forensics.data.foreign_order import olmo, order_of
from forensics.data.linked_corpus import bring_in_corpus, located
from forensics.data.made_elsewhere import ForeignOrder, ReadSoFar, TokenFiles
from forensics.data.token_files.megatron import read_index as megatron_index
from forensics.errors import ForensicsError

PEERS = Path(__file__).parents[1] / "fixtures/foreign"
OLMO = ForeignOrder("olmo", 11, 0, PEERS / "olmo1/train_data/global_indices.npy")
CORE_FILE = PEERS / "olmo_core" / "work" / "global_indices_dataset_size416_epoch1_seed78_v1.npy"
CORE = ForeignOrder("olmo_core", 78, 1, CORE_FILE)
B, T = 4, 48


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    tokens = {
        name: TokenFiles(
            tuple(f"data/part-{i}.npy" for i in range(files)), "bare", "uint16", 256, "bytes"
        )
        for name, files in (("olmo1", 3), ("olmo_core", 2))
    }
    return {
        name: bring_in_corpus(located(files, [PEERS / name / "data"]), T, "inside", 384, runs)
        for name, files in tokens.items()
    }


def stream_of(corpus, order_file):
    data = {"sequence_length": T, "window": "inside", "order_file": order_file, "held_out": 0}
    recipe = config.from_dict({"data": data, "train": {"batch": B}})
    return own_stream(corpus, recipe.data, recipe.train)


def made(corpus, order, steps=8, read=()):
    return order_of(order, corpus, T, "inside", B, steps, read)


@pytest.mark.parametrize("given", ["file", "seed"])
@pytest.mark.parametrize(("name", "order"), [("olmo1", OLMO), ("olmo_core", CORE)])
def test_every_token_of_every_batch_is_what_the_trainer_saw(corpora, name, order, given):
    order = order if given == "file" else replace(order, file=None)
    result = made(corpora[name], order, read=[ReadSoFar(0, 0), ReadSoFar(4, 16), ReadSoFar(8, 32)])
    stream = stream_of(corpora[name], result.order_file)
    for step, seen in enumerate(json.loads((PEERS / name / "seen.json").read_text())):
        ids = seen["ids"] if isinstance(seen, dict) else seen
        assert (stream.batch_at(step).tokens.numpy() == np.array(ids)).all()
    assert ("equals" if given == "file" else "made again") in result.notes[0]


def test_a_second_epoch_has_an_order_of_its_own_and_reads_every_sequence_once(corpora):
    stream = stream_of(corpora["olmo_core"], made(corpora["olmo_core"], CORE, 200).order_file)
    first, second = (
        np.concatenate([stream.order.sequence_ids(step) for step in range(at, at + 104)])
        for at in (0, 104)
    )
    assert len(set(first)) == len(set(second)) == 416 and (first != second).any()
    ids = np.arange(416, dtype=np.uint32)
    np.random.Generator(np.random.PCG64(80)).shuffle(ids)
    assert (second == ids).all()


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_each_epoch_of_olmo_is_shuffled_by_its_own_seed(epoch):
    ids = np.arange(50, dtype=np.uint32)
    np.random.Generator(np.random.PCG64(11 + epoch)).shuffle(ids)
    assert olmo(50, 11, epoch, 4, True).tolist() == ids[:48].tolist()
    assert olmo(50, 11, epoch, 4, False).tolist() == [*ids.tolist(), *ids[:2].tolist()]


def test_an_order_that_differs_from_its_seed_is_refused_with_both_ids(corpora, tmp_path):
    ids = np.fromfile(CORE_FILE, "<u4")
    ids[[7, 8]] = ids[[8, 7]]
    ids.tofile(tmp_path / "order.npy")
    with pytest.raises(ForensicsError, match=f"differ first at entry 7: {ids[7]} and {ids[8]}"):
        made(corpora["olmo_core"], replace(CORE, file=tmp_path / "order.npy"))


def test_an_order_longer_than_the_data_names_its_first_id_and_where_it_stands(corpora, tmp_path):
    np.array([3, 416, 500], "<u4").tofile(tmp_path / "order.npy")
    with pytest.raises(ForensicsError, match="ids from 0 to 415, found 416 at entry 1"):
        made(corpora["olmo_core"], ForeignOrder("file", file=tmp_path / "order.npy"))


def test_a_resumed_run_goes_on_from_where_its_state_says(corpora):
    result = made(corpora["olmo_core"], CORE, read=[ReadSoFar(2, 8), ReadSoFar(4, 40)])
    order = stream_of(corpora["olmo_core"], result.order_file).order
    ids = np.fromfile(CORE_FILE, "<u4")
    assert (order.sequence_ids(1) == ids[4:8]).all()
    assert (order.sequence_ids(4) == ids[40:44]).all()
    with pytest.raises(ForensicsError, match="not known: state 4 had read 40 sequences"):
        order.sequence_ids(3)
    assert "batches 2 to 3 are not known" in result.notes[1]


def write_logs(folder, ids, ranks, first=1):
    for rank in range(ranks):
        lines = [
            "\t".join(map(str, [first + step, *batch[rank::ranks]]))
            for step, batch in enumerate(ids.reshape(-1, B).tolist())
        ]
        path = folder / f"rank{rank}.tsv.gz"
        path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return tuple(folder / f"rank{rank}.tsv.gz" for rank in range(ranks))


def test_the_ranks_logs_are_held_against_the_order(corpora, tmp_path):
    ids = np.fromfile(CORE_FILE, "<u4")[: 8 * B]
    logs = write_logs(tmp_path, ids, 2)
    notes = made(corpora["olmo_core"], replace(CORE, rank_logs=logs)).notes
    assert notes[-1] == "the ranks' logs hold the order's sequences at all of 8 logged steps"
    assert made(corpora["olmo_core"], replace(CORE, rank_logs=logs[1:])).notes == notes  # a part
    ids[9] = 0
    with pytest.raises(ForensicsError, match="batch 2: the ranks' logs hold sequence 0"):
        made(corpora["olmo_core"], replace(CORE, rank_logs=write_logs(tmp_path, ids, 2)))


def test_a_state_at_an_epochs_end_may_say_so_in_either_way(corpora):
    for state in (ReadSoFar(104, 416, 1), ReadSoFar(104, 0, 2)):
        result = made(corpora["olmo_core"], CORE, 120, [ReadSoFar(50, 200, 1), state])
        assert not any("not known" in note for note in result.notes)


def test_the_ranks_logs_are_the_order_where_nothing_else_is(corpora, tmp_path):
    ids = np.fromfile(CORE_FILE, "<u4")[: 8 * B]
    unknown = ForeignOrder("unknown", rank_logs=write_logs(tmp_path, ids, 2, first=4))
    result = made(corpora["olmo_core"], unknown)
    order = stream_of(corpora["olmo_core"], result.order_file).order
    assert (order.sequence_ids(3) == ids[:4]).all()
    with pytest.raises(ForensicsError, match="not known: the ranks' logs do not hold it"):
        order.sequence_ids(0)


def test_an_order_that_cannot_be_recovered_says_why_and_what_is_known(corpora):
    result = made(
        corpora["olmo1"],
        ForeignOrder("unknown", why_unknown="drawn by chance", still_known="all of chunk 0"),
    )
    assert not result.known and result.notes == ("drawn by chance", "all of chunk 0")


def test_rows_are_read_as_they_lie_and_not_past_their_end(corpora):
    order = stream_of(
        corpora["olmo1"], made(corpora["olmo1"], ForeignOrder("rows"), 120).order_file
    ).order
    assert (order.sequence_ids(5) == np.arange(20, 24)).all()
    with pytest.raises(ForensicsError, match="the data end there"):
        order.sequence_ids(110)


def test_sequences_that_a_run_does_not_read_are_those_it_may_be_probed_on(corpora, tmp_path):
    corpus, ids = corpora["olmo_core"], np.fromfile(CORE_FILE, "<u4").astype(np.int64)
    stream = stream_of(corpus, made(corpus, CORE).order_file)
    unread = stream.untrained(8, 16)
    assert sorted(ids[-16:]) == unread.tolist()  # it reads every sequence: the last ones
    assert not len(stream.untrained(104, 16))  # a whole epoch leaves none
    ids[:40].astype("<u4").tofile(tmp_path / "short.npy")
    order_file = made(corpus, ForeignOrder("file", file=tmp_path / "short.npy")).order_file
    unread = stream_of(corpus, order_file).untrained(8, 16)
    assert len(unread) == 16 and not np.isin(unread, ids[:40]).any()


MEGATRON = PEERS / "megatron_order"
MAPS = next(MEGATRON.glob("*-shuffle_index.npy"), None)
BY_SEED = ForeignOrder("megatron", 1234, documents=(0, 40), samples=96)


def megatron(tmp_path, order, steps=24):
    tokens = TokenFiles((str(MEGATRON / "data"),), "megatron", eot=0)
    corpus = bring_in_corpus(tokens, 16, "shared", 300, tmp_path, order=order)
    result = order_of(order, corpus, 16, "shared", 4, steps)
    data = {"sequence_length": 16, "order_file": result.order_file, "held_out": 0}
    recipe = config.from_dict({"data": data, "train": {"batch": 4}})
    return own_stream(corpus, recipe.data, recipe.train), result


@pytest.mark.parametrize("order", [BY_SEED, replace(BY_SEED, file=MAPS)], ids=["seed", "both"])
def test_megatrons_documents_and_samples_are_shuffled_as_megatron_does(tmp_path, order):
    stream, _ = megatron(tmp_path, order)
    seen = np.array(json.loads((MEGATRON / "seen.json").read_text()))
    found = np.concatenate([stream.batch_at(step).tokens.numpy() for step in range(3)])
    assert (found == seen).all()
    ids = np.fromfile(MEGATRON / "data.bin", "<u2")
    index = megatron_index(MEGATRON / "data.idx")
    for row, spans in enumerate(stream.provenance(stream.batch_at(0))):
        for span in spans:  # a document's name says which of the .bin it is
            number = int(span.path.rpartition("#")[2])
            at = int(index.first_tokens()[number]) + span.offset
            assert (
                found[row][span.start : span.stop] == ids[at : at + span.stop - span.start]
            ).all()


def test_an_index_map_of_another_seed_is_refused_and_one_alone_suffices(tmp_path):
    with pytest.raises(ForensicsError, match="made again from seed 7 differ first at entry 0"):
        megatron(tmp_path, replace(BY_SEED, seed=7, file=MAPS))
    _, result = megatron(tmp_path, ForeignOrder("megatron", file=MAPS))
    assert result.notes == ("the order of its samples is read from its index maps",)
    with pytest.raises(ForensicsError, match="which documents its split holds"):
        megatron(tmp_path, ForeignOrder("neox", 1234))
