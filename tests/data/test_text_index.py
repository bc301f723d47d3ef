"""Finding a text in a corpus: exact against reading every document."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from forensics.config import Data
from forensics.data import text_index
from forensics.data.linked_corpus import NO_EOT, bring_in_corpus, ids_tokenizer
from forensics.data.made_elsewhere import TokenFiles
from forensics.data.shards import open_corpus
from forensics.data.text_index import build, is_built
from forensics.data.token_text import token_text
from forensics.data.tokenize import prepare
from forensics.errors import ForensicsError

TEXTS = ["abab üab\n\nab", "aaaa", "", "b" + "ab" * 40 + "ü", "the end. abü\n", "a", "b", "ab" * 30]


def sentencepiece_like(texts):
    """A tokenizer that marks the space before each word, with bytes for the unknown."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    alphabet = sorted(set("abehnd.▁"))
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        limit_alphabet=len(alphabet),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(["ab abab the end."] * 9, trainer)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


@pytest.fixture(scope="module", params=["bytes", "train", "sentencepiece"])
def corpus(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    for name in ("one", "two"):
        lines = [json.dumps({"text": text}) for text in TEXTS * (40 if name == "one" else 2)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    tokenizer = request.param
    if tokenizer == "sentencepiece":
        sentencepiece_like(TEXTS).save(str(folder / "tokenizer.json"))
        tokenizer = str(folder / "tokenizer.json")
    sources = {name: str(folder / f"{name}.jsonl") for name in ("one", "two")}
    data = (
        Data(source="", sources=sources, tokenizer=tokenizer, vocabulary=300, sequence_length=8)
        if tokenizer == "train"
        else Data(source="", sources=sources, tokenizer=tokenizer, sequence_length=8)
    )
    return prepare(data, folder)


@pytest.fixture(scope="module")
def small_blocks():
    before = text_index.BLOCK, text_index.GROUP, text_index.FILTERED
    text_index.BLOCK, text_index.GROUP, text_index.FILTERED = 64, 8, 16
    yield
    text_index.BLOCK, text_index.GROUP, text_index.FILTERED = before


def brute_force(corpus, text):
    """(document, byte) of every place, by reading the bytes of each document's tokens."""
    spelled, needle, places = token_text(corpus), text.encode(), []
    rows = corpus.documents.to_pylist()
    names = [source.name for source in corpus.sources]
    for row in rows:
        source = names.index(row["source"])
        ids = corpus.tokens(source, row["first_token"], row["first_token"] + row["tokens"])
        content = spelled.of(ids)
        ends = spelled.lengths[ids].cumsum()
        for at in range(len(content) - len(needle) + 1):
            if content.startswith(needle, at):
                first = int(np.searchsorted(ends, at, side="right")) + row["first_token"]
                last = int(np.searchsorted(ends, at + len(needle) - 1, side="right"))
                places.append((source, row["document"], first, last + row["first_token"]))
    return sorted(places)


def found(index, text):
    hits = index.find(text)
    return sorted(
        zip(*(column.tolist() for column in (hits.source, hits.document, hits.first, hits.last)))
    )


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.text(st.sampled_from("ab ü\n.the"), min_size=1, max_size=12),
        st.tuples(st.integers(0, 7), st.integers(0, 60), st.integers(1, 90)).map(
            lambda cut: TEXTS[cut[0]][cut[1] : cut[1] + cut[2]] or "ab"
        ),
    )
)
def test_every_place_is_found_and_nothing_else(corpus, small_blocks, text):
    assert found(build(corpus), text) == brute_force(corpus, text)


def test_the_bytes_of_tokens_are_the_text(corpus):
    spelled = token_text(corpus)
    for row, text in zip(corpus.documents.to_pylist(), TEXTS):
        ids = corpus.tokens(0, row["first_token"], row["first_token"] + row["tokens"])
        assert spelled.of(ids).decode().removeprefix(" ") == text


def test_an_index_is_made_once_goes_on_where_it_was_cut_and_is_made_again_when_damaged(
    corpus, small_blocks, monkeypatch
):
    build(corpus)
    folder, made = corpus.folder / "text-index", []
    assert is_built(corpus)
    group = text_index._group
    monkeypatch.setattr(
        text_index, "_group", lambda *args: (made.append(args[2:]), group(*args))[1]
    )
    wanted = found(build(corpus), "ab")
    assert not made
    (folder / "index.json").unlink()
    (folder / "1-0.bin").unlink()
    assert found(build(corpus), "ab") == wanted and made == [(1, 0)]
    content = bytearray((folder / "0-0.bin").read_bytes())
    content[7] ^= 255
    (folder / "0-0.bin").write_bytes(content)
    made.clear()
    assert found(build(open_corpus(corpus.folder)), "ab") == wanted and len(made) > 1
    assert corpus.verify() == []


@pytest.mark.parametrize(
    ("text", "message"), [("", "found 0"), ("x" * 70_000, "found 70,000"), ("\ud800", "surrogate")]
)
def test_a_text_that_cannot_be_looked_for_is_refused(corpus, small_blocks, text, message):
    with pytest.raises(ForensicsError, match=message) as e:
        build(corpus).find(text)
    assert e.value.kind == "usage"


def test_a_text_that_stands_there_too_often_is_refused(corpus, small_blocks, monkeypatch):
    monkeypatch.setattr(text_index, "MOST", 10)
    with pytest.raises(ForensicsError, match="more than 10 times"):
        build(corpus).find("a")


def test_ids_that_are_their_own_text_stand_apart():
    """What a corpus without a tokenizer of its own shows: its ids."""
    corpus = SimpleNamespace(tokenizer=ids_tokenizer(20), vocabulary=20, eot=19)
    spelled = token_text(corpus)
    assert spelled.of(np.array([1, 12, 19, 2])) == b" 1 12 2"
    corpus.eot = NO_EOT
    assert token_text(corpus).of(np.array([1, 12, 19, 2])) == b" 1 12 19 2"


def test_token_files_made_elsewhere_are_searched_too(tmp_path, small_blocks):
    ids = np.random.default_rng(0).integers(0, 12, 3000).astype("<u2")
    ids.tofile(tmp_path / "part.npy")
    tokens = TokenFiles((str(tmp_path / "part.npy"),), "bare", "uint16", 0)
    corpus = bring_in_corpus(tokens, 8, "inside", 12, tmp_path / "runs")
    index = build(corpus)
    for text in (" 7 9", "11", " 1 1 1", "1 2 3 4", " 0"):
        assert found(index, text) == brute_force(corpus, text)
    assert len(index.find(" 7 9")) > 5
