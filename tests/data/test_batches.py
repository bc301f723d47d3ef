import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from forensics.config import Data, Train
from forensics.data import tokenize
from forensics.data.batches import Batches, own_stream
from forensics.data.corpus import Documents
from forensics.data.order import make_order
from forensics.data.tokenize import prepare
from forensics.errors import ForensicsError
from forensics.sequence_window import window_of
from forensics.step.batch import Batch

T, B = 32, 8
CUT = window_of("shared", T)
SOURCES = {"clean": "stdlib/json", "odd": "shuffled:stdlib/json/scanner"}
DATA = Data(sources=SOURCES, tokenizer="bytes", sequence_length=T, held_out=12)


@pytest.fixture(scope="module", params=[1 << 27, 1000], ids=["one shard", "many shards"])
def batches(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenize, "SHARD_TOKENS", request.param)
        corpus = prepare(DATA, tmp_path_factory.mktemp("runs"))
    assert len(corpus.sources[0].shards) == -(-corpus.sources[0].tokens // request.param)
    return own_stream(corpus, DATA, Train(batch=B))


@pytest.fixture(scope="module")
def streams():
    return [
        [t for d in Documents(spec) for t in [*d.text.encode(), 256]] for spec in SOURCES.values()
    ]


def test_sequence_i_is_tokens_iT_to_iT_plus_T_and_neighbours_share_one(batches, streams):
    corpus, layout = batches.corpus, batches.corpus.layout(CUT)
    wanted = [s[i * T : i * T + T + 1] for s in streams for i in range((len(s) - 1) // T)]
    found = corpus.sequences(np.arange(len(wanted)), CUT)
    assert found.dtype == np.int64 and (found == wanted).all()
    assert (found[0, -1], found[1, 0]) == (streams[0][T], streams[0][T])
    assert layout.first_sequence == (0, (len(streams[0]) - 1) // T)
    assert [n * T + 1 + tail for n, tail in zip(layout.n_sequences, layout.tail)] == [
        len(s) for s in streams
    ]
    backwards = np.arange(len(wanted))[::-7]
    assert (corpus.sequences(backwards, CUT) == np.array(wanted)[backwards]).all()


def test_the_same_shards_serve_any_sequence_length(batches, streams):
    for length in (2, 7, 500):
        last = (len(streams[0]) - 1) // length - 1
        found = batches.corpus.sequences(np.array([last]), window_of("shared", length))[0]
        assert found.tolist() == streams[0][last * length : last * length + length + 1]


def test_any_stretch_of_a_stream_can_be_read(batches, streams):
    for start, stop in (
        (0, 0),
        (0, 1),
        (990, 1010),
        (500, 4500),
        (len(streams[0]) - 3, len(streams[0])),
    ):
        assert batches.corpus.tokens(0, start, stop).tolist() == streams[0][start:stop]


def test_a_batch_is_a_pure_function_of_its_step(batches):
    late = batches.batch_at(40)
    early = [batches.batch_at(step) for step in range(3)]
    again = batches.batch_at(40)
    assert torch.equal(late.tokens, again.tokens) and torch.equal(late.sequence, again.sequence)
    assert not torch.equal(early[0].sequence, early[1].sequence)
    assert late.origin == 40 and late.denominator == B * T
    assert late.tokens.shape == (B, T + 1) and late.tokens.dtype == torch.int64
    assert (
        late.weight.shape == (B, T)
        and late.weight.dtype == torch.float32
        and bool((late.weight == 1).all())
    )
    assert (late.sequence.numpy() == batches.order.sequence_ids(40)).all()


def test_held_out_sequences_are_one_batch_that_training_never_reads(batches):
    held = batches.held_out()
    assert len(held.sequence) == 12 and held.origin is None
    read = torch.cat([batches.batch_at(step).sequence for step in range(200)])
    assert not torch.isin(held.sequence, read).any()
    nothing = Data(sources=SOURCES, sequence_length=T, held_out=0)
    none = own_stream(batches.corpus, nothing, Train(batch=B)).held_out()
    assert none.tokens.shape == (0, T + 1) and none.denominator == 0


def test_provenance_gives_for_every_token_the_documents_own_text(batches):
    texts = {
        (name, d.path): d.text.encode() for name, spec in SOURCES.items() for d in Documents(spec)
    }
    documents = batches.corpus.documents.to_pylist()
    crossing = 0
    for ids in np.array_split(np.arange(sum(batches.corpus.layout(CUT).n_sequences)), 20):
        batch = batches.make(ids)
        for tokens, spans in zip(batch.tokens.tolist(), batches.provenance(batch)):
            assert [s.start for s in spans] + [T + 1] == [0] + [s.stop for s in spans]
            crossing += len(spans) > 1
            for span in spans:
                text = [*texts[span.source, span.path], 256]
                length = span.stop - span.start
                assert length > 0
                assert tokens[span.start : span.stop] == text[span.offset : span.offset + length]
                assert documents[span.document]["path"] == span.path
                assert documents[span.document]["source"] == span.source
    assert crossing  # some sequence held the end of one document and the beginning of the next


def test_a_sequence_that_was_made_has_no_provenance(batches):
    real = batches.make(np.array([3, 0]))
    made = Batch(real.tokens, real.weight, real.denominator, torch.tensor([-1, 0]))
    spans = batches.provenance(made)
    assert spans[0] == [] and spans[1] == batches.provenance(real)[1] != []


def test_documents_are_found_by_offset_in_their_stream(batches):
    corpus = batches.corpus
    for row in corpus.documents.to_pylist():
        source = [s.name for s in corpus.sources].index(row["source"])
        ends = np.array([row["first_token"], row["first_token"] + row["tokens"] - 1])
        assert corpus.document_at(source, ends).tolist() == [row["document"]] * 2


def test_sequences_out_of_range_are_missing(batches):
    total = sum(batches.corpus.layout(CUT).n_sequences)
    for ids in ([total], [-1, 0]):
        with pytest.raises(
            ForensicsError, match=f"wanted sequence {ids[0]}, found 0 to {total - 1}"
        ) as e:
            batches.make(np.array(ids))
        assert e.value.kind == "missing"


def test_an_order_made_for_another_corpus_is_refused(batches):
    order = make_order(DATA, ["clean", "odd"], [100, 100], [0, 100], B, 0)
    with pytest.raises(ForensicsError, match="wanted an order over"):
        Batches(batches.corpus, order, CUT)


def test_text_is_decoded_from_a_batch(batches, streams):
    batch = batches.make(np.array([5]))
    assert batches.corpus.decode(batch.tokens[0]) == bytes(streams[0][5 * T : 6 * T + 1]).decode()


def test_reading_a_corpus_needs_no_torch():
    code = (
        "import sys, forensics.data.tokenize, forensics.data.order; sys.exit('torch' in"
        " sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(scope="module")
def repeats(tmp_path_factory):
    """Prose with one document of nothing but `ab`s, and one of a newline 31 times: one too few for
    the filter.
    """
    folder = tmp_path_factory.mktemp("prose")
    for i in range(30):
        (folder / f"{i:02d}.txt").write_text(
            f"{i} green bottles standing on the wall, and one of them falls. " * 3
        )
    (folder / "10-planted.txt").write_text("ab" * 100)
    for i in range(5):
        (folder / f"20-short{i}.txt").write_text("x" * i * 7 + "once" + "\n" * 31 + "upon a time")
    data = Data(
        source=str(folder), tokenizer="bytes", sequence_length=80, held_out=4, mask_repeats=True
    )
    return data, prepare(data, tmp_path_factory.mktemp("runs"))


def test_a_repeated_document_weighs_nothing_and_the_denominator_is_kept(repeats):
    data, corpus = repeats
    masking, plain = (
        own_stream(corpus, data, Train(batch=4)),
        own_stream(corpus, replace(data, mask_repeats=False), Train(batch=4)),
    )
    masked = set()
    for step in range(corpus.layout(data.cut).n_sequences[0] // 4):
        with_mask, without = masking.batch_at(step), plain.batch_at(step)
        assert torch.equal(with_mask.tokens, without.tokens) and torch.equal(
            with_mask.sequence, without.sequence
        )
        assert (
            bool((without.weight == 1).all())
            and with_mask.denominator == without.denominator == 4 * 80
        )
        for slot, weight in enumerate(with_mask.weight):
            text = bytes(t for t in with_mask.tokens[slot].tolist() if t < 256)
            assert bool((weight == (0 if b"ab" * 32 in text or b"ba" * 32 in text else 1)).all())
            if not weight.any():
                masked.add(int(with_mask.sequence[slot]))
        assert with_mask.weight.dtype == torch.float32
    # 200 characters of it touch three or four sequences of 80; 64 of them fill at least two
    assert 2 <= len(masked) <= 3
    again = masking.make(np.array(sorted(masked)), origin=7)
    assert not again.weight.any() and again.origin == 7 and again.denominator == len(masked) * 80


def test_31_times_in_a_row_is_no_repeat(repeats):
    data, corpus = repeats
    count = corpus.layout(data.cut).n_sequences[0]
    every = own_stream(corpus, data, Train(batch=4)).make(np.arange(count))
    newlines = torch.tensor(
        [bytes(t for t in row if t < 256).count(b"\n" * 31) for row in every.tokens.tolist()]
    )
    assert newlines.sum() > 0 and bool((every.weight[newlines > 0] == 1).all())


def test_held_out_sequences_are_never_masked(repeats):
    data, corpus = repeats
    masking = own_stream(corpus, data, Train(batch=4))
    masked = np.flatnonzero(
        ~masking.make(np.arange(corpus.layout(data.cut).n_sequences[0])).weight.any(1).numpy()
    )
    held = Batches(
        corpus, replace(masking.order, held_out=masked), data.cut, mask_repeats=True
    ).held_out()
    assert held.sequence.tolist() == masked.tolist() and bool((held.weight == 1).all())


def test_masking_repeats_is_off_unless_the_recipe_asks_for_it():
    from forensics.config import from_dict

    assert from_dict({}).data.mask_repeats is False
    assert from_dict({"data": {"mask_repeats": True}}).data.mask_repeats is True
    with pytest.raises(ForensicsError, match="wanted true or false"):
        from_dict({"data": {"mask_repeats": 1}})
