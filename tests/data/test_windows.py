"""The three ways to cut a stream into sequences, against slicing it by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from forensics.config import Data, Train
from forensics.data import tokenize
from forensics.data.batches import own_stream
from forensics.data.corpus import Documents
from forensics.data.tokenize import prepare
from forensics.model.decoder import unembedding
from forensics.sequence_window import KINDS, window_of
from forensics.tokens.exposure import ledger
from replay.interventions.corpus_search import holding, sequences_of
from replay.lineage import open_trajectory

T = 31
SOURCES = {"clean": "stdlib/json", "odd": "shuffled:stdlib/json/scanner"}
DATA = Data(sources=SOURCES, tokenizer="bytes", sequence_length=T, held_out=0)
LENGTH = {"shared": T + 1, "separate": T + 1, "inside": T}
STRIDE = {"shared": T, "separate": T + 1, "inside": T}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenize, "SHARD_TOKENS", 1000)  # many borders between shards
        return prepare(DATA, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def streams():
    return [
        [t for d in Documents(spec) for t in [*d.text.encode(), 256]] for spec in SOURCES.values()
    ]


def rows_of(streams, kind):
    length, stride = LENGTH[kind], STRIDE[kind]
    return [s[i : i + length] for s in streams for i in range(0, len(s) - length + 1, stride)]


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_are_slices_of_their_source_and_cross_no_border(corpus, streams, kind):
    cut, wanted = window_of(kind, T), rows_of(streams, kind)
    layout = corpus.layout(cut)
    assert sum(layout.n_sequences) == len(wanted)
    assert (corpus.sequences(np.arange(len(wanted)), cut) == wanted).all()
    for source, count, tail in zip(corpus.sources, layout.n_sequences, layout.tail):
        assert (count - 1) * STRIDE[kind] + LENGTH[kind] + tail == source.tokens
    ids = np.array([0, 3, layout.first_sequence[1], len(wanted) - 1])
    for row, spans in zip(ids, corpus.spans(ids, cut)):
        assert (spans[0].start, spans[-1].stop) == (0, LENGTH[kind])
        here = spans[0]
        document = list(Documents(SOURCES[here.source]))
        first = corpus.sources[list(SOURCES).index(here.source)].first_document
        text = [*document[here.document - first].text.encode(), 256]
        assert text[here.offset :][: here.stop] == wanted[row][: here.stop]


@pytest.mark.parametrize(
    ("kind", "counts"),  # of 0, 3, 4, 5, 8, 9 and 10 tokens, T = 4
    [
        ("shared", [0, 0, 0, 1, 1, 2, 2]),
        ("separate", [0, 0, 0, 1, 1, 1, 2]),
        ("inside", [0, 0, 1, 1, 2, 2, 2]),
    ],
)
def test_a_stream_holds_as_many_sequences_as_fit_to_the_last_token(kind, counts):
    assert [window_of(kind, 4).count(tokens) for tokens in (0, 3, 4, 5, 8, 9, 10)] == counts


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_has_a_target_for_every_token_but_the_first(corpus, kind):
    batches = own_stream(corpus, replace(DATA, window=kind), Train(batch=4))
    batch = batches.batch_at(0)
    targets = LENGTH[kind] - 1
    assert batch.tokens.shape == (4, LENGTH[kind]) and batch.weight.shape == (4, targets)
    assert batch.denominator == 4 * targets


@pytest.mark.parametrize(
    ("over", "wanted"),
    # 5 sequences of 448 tokens, two of them the same letter 448 times
    [("targets", 5 * 447), ("tokens", 5 * 448), ("unmasked", 3 * 447 + 2 * 448)],
)
def test_what_the_loss_is_divided_by(tmp_path, over, wanted):
    rng = np.random.default_rng(0)
    noise = rng.choice(list(b"abcdefghijklmnop"), 3 * 448 - 1).astype(np.uint8).tobytes().decode()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("x" * 896 + noise)
    data = Data(
        source=str(tmp_path / "text"),
        tokenizer="bytes",
        sequence_length=448,
        window="inside",
        held_out=0,
        mask_repeats=True,
    )
    batches = own_stream(prepare(data, tmp_path), data, Train(batch=5, loss_over=over))
    batch = batches.make(np.arange(5))
    assert batch.weight.sum(1).tolist() == [0, 0, 447, 447, 447]
    assert batch.denominator == wanted
    assert batches.held_out().denominator == 0


@pytest.fixture(scope="module", params=KINDS)
def run(request, train_run, runs):
    name = f"cut-{request.param}"
    train_run(
        name,
        **{
            "data.window": request.param,
            "data.sequence_length": T,
            "data.held_out": 0,
            "model.layers": 1,
            "model.width": 16,
            "train.steps": 6,
            "train.held_out_every": 0,
            "train.loss_over": "tokens" if request.param == "inside" else "targets",
        },
    )
    return open_trajectory(runs, name)


def test_searches_find_what_reading_every_sequence_finds(run):
    cut = run.recipe.data.cut
    count = sum(run.corpus.layout(cut).n_sequences)
    tokens = run.corpus.sequences(np.arange(count), cut)
    for token in (ord("{"), 256):
        wanted = np.flatnonzero((tokens[:, 1:] == token).any(1))
        assert holding(run, token).tolist() == wanted.tolist()
    spans = run.corpus.spans(np.arange(count), cut)
    for document in (0, 2, len(run.corpus.documents) - 1):
        wanted = [i for i in range(count) if document in {span.document for span in spans[i]}]
        assert sequences_of(run, frozenset({document})).tolist() == wanted


def test_exposure_counts_what_reading_every_batch_counts(run):
    found, met = ledger(run, 6), {}
    inputs, targets = (np.zeros(run.shape.vocabulary, np.int64) for _ in range(2))
    for step in range(6):
        batch = run.batch_at(step)
        spans = run.corpus.spans(batch.sequence.numpy(), run.recipe.data.cut)
        tokens = batch.tokens.numpy()
        np.add.at(inputs, tokens[:, :-1], 1)
        np.add.at(targets, tokens[:, 1:], 1)
        for row, parts in zip(tokens, spans):
            for span in parts:
                for token in row[span.start : span.stop].tolist():
                    met.setdefault(token, set()).add(span.document)
    assert (found.exposure_in == inputs).all() and (found.exposure_out == targets).all()
    assert {t: len(d) for t, d in met.items()} == {
        t: n for t, n in enumerate(found.documents.tolist()) if n
    }


def test_the_loss_that_is_logged_is_over_what_the_recipe_says(run):
    batch, row = run.batch_at(0), run.table("steps").to_pylist()[0]
    over = {"inside": 4 * T, "separate": 4 * T, "shared": 4 * T}[run.recipe.data.window]
    assert batch.denominator == over
    params = run.load(0).params
    hidden = run.model.decoder.hidden(params, batch.tokens[:, :-1])
    ce = torch.nn.functional.cross_entropy(
        (hidden @ unembedding(params).T).flatten(0, 1),
        batch.tokens[:, 1:].flatten(),
        reduction="sum",
    )
    assert row["loss"] == pytest.approx(float(ce) / over, rel=1e-5)
