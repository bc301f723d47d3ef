import shutil

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from forensics.config import Data
from forensics.data import tokenize
from forensics.data.corpus import Documents
from forensics.data.shards import open_corpus
from forensics.data.tokenize import (
    bytes_tokenizer,
    end_of_text,
    load_tokenizer,
    prepare,
    train_tokenizer,
)
from forensics.errors import ForensicsError
from forensics.records import DOCUMENTS

TRAINED = train_tokenizer((d.text for d in Documents("stdlib/json")), 600)
BYTES = bytes_tokenizer()


def test_training_twice_gives_the_same_tokenizer():
    again = train_tokenizer((d.text for d in Documents("stdlib/json")), 600)
    assert again.to_str() == TRAINED.to_str()
    assert TRAINED.get_vocab_size() == 600 and end_of_text(TRAINED) == 0


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_every_text_comes_back_from_its_tokens(text):
    for tokenizer in (TRAINED, BYTES):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_the_ids_of_the_bytes_tokenizer_are_the_bytes(text):
    assert BYTES.encode(text).ids == list(text.replace("<|endoftext|>", "").encode())


def test_the_bytes_tokenizer_has_257_ids_and_survives_saving(tmp_path):
    BYTES.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    assert tokenize.vocabulary_of(loaded) == 257 and end_of_text(loaded) == 256
    assert loaded.encode("a\nü").ids == list("a\nü".encode())


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.txt").write_text("one two three\n" * 20)
    (folder / "b.txt").write_text(
        "a text that says <|endoftext|> itself, ünïcödé\n" * 10, encoding="utf-8"
    )
    (folder / "c.txt").write_text("")
    (folder / "d.txt").write_text("la " * 300)
    return folder


def data(source, **settings):
    return Data(**{"source": str(source), "tokenizer": "bytes", "sequence_length": 16, **settings})


def test_shards_are_every_documents_tokens_and_an_end_of_text_after_each(text, tmp_path):
    corpus = prepare(data(text), tmp_path)
    wanted = [t for d in Documents(str(text)) for t in [*d.text.encode(), 256]]
    assert corpus.tokens(0, 0, corpus.sources[0].tokens).tolist() == wanted
    assert (corpus.vocabulary, corpus.eot, corpus.sources[0].documents) == (257, 256, 4)
    assert (tmp_path / "_data" / corpus.hash / "0-0.bin").stat().st_size == 2 * len(wanted)


def test_a_text_that_spells_the_end_of_text_token_does_not_end_there(text, tmp_path):
    for tokenizer in ("bytes", "train"):
        corpus = prepare(data(text, tokenizer=tokenizer, vocabulary=300), tmp_path)
        stream = corpus.tokens(0, 0, corpus.sources[0].tokens)
        assert (stream == corpus.eot).sum() == 4


def test_a_trained_tokenizer_is_stored_beside_its_shards(text, tmp_path):
    corpus = prepare(data(text, tokenizer="train", vocabulary=280), tmp_path)
    assert corpus.vocabulary == 280
    assert corpus.tokens(0, 0, 4).tolist() == corpus.tokenizer.encode("one two three\n").ids[:4]


def test_text_too_small_for_the_vocabulary_gives_a_smaller_one(tmp_path):
    (tmp_path / "a.txt").write_text("ab " * 40)
    corpus = prepare(data(tmp_path / "a.txt", tokenizer="train", vocabulary=5000), tmp_path)
    assert 257 < corpus.vocabulary < 300


def test_the_documents_table_tells_where_each_document_lies_and_what_repeats(text, tmp_path):
    corpus = prepare(data(text), tmp_path)
    table = pq.read_table(corpus.folder / "documents.parquet")
    assert table.schema.equals(DOCUMENTS.arrow_schema())
    rows = table.to_pylist()
    assert [r["path"] for r in rows] == ["a.txt", "b.txt", "c.txt", "d.txt"]
    assert [r["tokens"] for r in rows] == [len(d.text.encode()) + 1 for d in Documents(str(text))]
    assert [r["first_token"] for r in rows] == [
        0,
        *(sum(r["tokens"] for r in rows[:i]) for i in (1, 2, 3)),
    ]
    assert [r["tags"] for r in rows] == ["", "", "", "repeats"]
    assert rows[3]["repeat_share"] == pytest.approx(900 / 901)
    assert [r["document"] for r in rows] == [0, 1, 2, 3]


def test_several_sources_have_their_own_streams_and_documents_counted_over_all(text, tmp_path):
    sources = {"clean": "stdlib/json", "damaged": f"shuffled:{text}"}
    corpus = prepare(data("", sources=sources), tmp_path)
    assert [s.name for s in corpus.sources] == ["clean", "damaged"]
    assert [s.first_document for s in corpus.sources] == [0, corpus.sources[0].documents]
    assert corpus.documents["source"].to_pylist()[-1] == "damaged"
    for i, source in enumerate(corpus.sources):
        wanted = [t for d in Documents(source.spec) for t in [*d.text.encode(), 256]]
        assert corpus.tokens(i, 0, source.tokens).tolist() == wanted


def test_the_same_text_is_tokenised_once_and_one_changed_letter_makes_another_corpus(
    text, tmp_path
):
    first = prepare(data(text), tmp_path)
    before = (first.folder / "0-0.bin").stat().st_mtime_ns
    moved = shutil.copytree(text, tmp_path / "copy")
    again = prepare(data(moved), tmp_path, seed=7)
    assert again.hash == first.hash and (again.folder / "0-0.bin").stat().st_mtime_ns == before
    (moved / "a.txt").write_text("One two three\n" * 20)
    assert prepare(data(moved), tmp_path).hash != first.hash
    assert prepare(data(text, tokenizer="train"), tmp_path).hash != first.hash
    assert prepare(data(text, sequence_length=8), tmp_path).hash == first.hash


def test_the_hash_is_also_of_where_one_document_ends_and_the_next_begins(tmp_path):
    for name, parts in (("x", ("abc", "def" * 20)), ("y", ("abcdef", "def" * 19))):
        (tmp_path / name).mkdir()
        for i, part in enumerate(parts):
            (tmp_path / name / f"{i}").write_text(part)
    assert (
        prepare(data(tmp_path / "x"), tmp_path).hash != prepare(data(tmp_path / "y"), tmp_path).hash
    )


def test_preparing_leaves_nothing_behind_when_it_fails(text, tmp_path, monkeypatch):
    monkeypatch.setattr(
        tokenize,
        "write_header",
        lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(
        ForensicsError, match=r"cannot write the tokenised corpus.*No space left"
    ) as e:
        prepare(data(text), tmp_path)
    assert e.value.kind == "storage" and not list((tmp_path / "_data").iterdir())


def test_text_that_changes_while_it_is_read_is_refused(text, tmp_path):
    def change(done, total):
        (text / "d.txt").write_text("changed")

    with pytest.raises(ForensicsError, match="changed while it was read"):
        prepare(data(text, tokenizer="train", vocabulary=300), tmp_path, progress=change)


def test_progress_counts_the_bytes_of_text_once_for_each_reading(text, tmp_path):
    size = sum(f.stat().st_size for f in text.iterdir())
    for tokenizer, readings in (("bytes", 1), ("train", 2)):
        calls = []
        prepare(
            data(text, tokenizer=tokenizer),
            tmp_path,
            progress=lambda done, total, calls=calls: calls.append((done, total)),
        )
        assert calls == sorted(calls) and calls[-1] == (readings * size, readings * size)


def test_a_source_without_text_or_without_one_sequence_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(ForensicsError, match="found only empty documents"):
        prepare(data(tmp_path / "empty.txt"), tmp_path)
    with pytest.raises(ForensicsError, match="wanted at least 17 tokens for one sequence, found 6"):
        prepare(data(tmp_path / "short.txt"), tmp_path)


def test_files_that_were_left_out_are_named_in_the_corpus(text, tmp_path):
    (text / "image.png").write_bytes(b"\x89PNG\xff")
    assert prepare(data(text), tmp_path).sources[0].left_out == ("image.png: not UTF-8",)


@pytest.mark.parametrize("token", ["<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>"])
def test_a_loaded_tokenizer_ends_documents_with_the_token_it_has(tmp_path, text, token):
    loaded = Tokenizer.from_str(TRAINED.to_str().replace("<|endoftext|>", token))
    loaded.enable_truncation(4)
    loaded.enable_padding(length=64)
    loaded.save(str(tmp_path / "tokenizer.json"))
    corpus = prepare(data(text, tokenizer=str(tmp_path / "tokenizer.json")), tmp_path)
    assert corpus.eot == 0 and corpus.vocabulary == 600
    stream = corpus.tokens(0, 0, corpus.sources[0].tokens)
    assert corpus.decode(stream) == "".join(d.text + token for d in Documents(str(text)))


def test_a_loaded_tokenizer_is_refused_when_it_does_not_fit(tmp_path, text):
    path = tmp_path / "tokenizer.json"
    TRAINED.save(str(path))
    with pytest.raises(
        ForensicsError, match="wanted at least the tokenizer's 600 ids, found 500"
    ) as e:
        prepare(data(text, tokenizer=str(path), vocabulary=500), tmp_path)
    assert e.value.kind == "config"
    assert prepare(data(text, tokenizer=str(path), vocabulary=600), tmp_path).vocabulary == 600
    Tokenizer(models.BPE({"a": 0}, [])).save(str(path))
    with pytest.raises(ForensicsError, match="wanted an end-of-text token, found none"):
        prepare(data(text, tokenizer=str(path)), tmp_path)
    path.write_text("{}")
    with pytest.raises(ForensicsError, match=r"is not a tokenizer\.json"):
        prepare(data(text, tokenizer=str(path)), tmp_path)
    with pytest.raises(ForensicsError, match="found none at") as e:
        prepare(data(text, tokenizer=str(tmp_path / "none.json")), tmp_path)
    assert e.value.kind == "missing"


def test_ids_beyond_16_bits_are_stored_in_32(tmp_path, text):
    vocabulary = {**BYTES.get_vocab(), **{f"x{i}": i for i in range(257, 70_000)}}
    vocabulary["<|endoftext|>"] = 70_000
    del vocabulary["x69999"]  # a hole: the model's vocabulary is the largest id + 1
    big = Tokenizer(models.BPE(vocabulary, []))
    big.pre_tokenizer, big.decoder = BYTES.pre_tokenizer, BYTES.decoder
    big.save(str(tmp_path / "tokenizer.json"))
    corpus = prepare(data(text, tokenizer=str(tmp_path / "tokenizer.json")), tmp_path)
    assert (corpus.vocabulary, corpus.eot) == (70_001, 70_000)
    assert corpus.tokens(0, 280, 281).tolist() == [70_000]
    assert corpus.sources[0].shards[0].tokens * 4 == (corpus.folder / "0-0.bin").stat().st_size


def test_opening_checks_sizes_and_verifying_checks_bytes(text, tmp_path):
    corpus = prepare(data(text), tmp_path)
    assert corpus.verify() == []
    shard = corpus.folder / "0-0.bin"
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    assert [p.split(":")[0] for p in open_corpus(corpus.folder).verify()] == ["0-0.bin"]
    shard.write_bytes(content[:-2])
    with pytest.raises(
        ForensicsError, match=f"wanted {len(content)} bytes, found {len(content) - 2}"
    ) as e:
        open_corpus(corpus.folder)
    assert e.value.kind == "integrity"


def test_a_corpus_that_is_missing_or_damaged_is_told_in_one_line(text, tmp_path):
    with pytest.raises(ForensicsError, match=r"found no corpus\.json") as e:
        open_corpus(tmp_path)
    assert e.value.kind == "missing"
    corpus = prepare(data(text), tmp_path)
    (corpus.folder / "tokenizer.json").unlink()
    assert [p.split(":")[0] for p in corpus.verify()] == ["tokenizer.json"]
    with pytest.raises(ForensicsError, match="found no such file"):
        open_corpus(corpus.folder)
    (corpus.folder / "corpus.json").write_text('{"format": 1}')
    with pytest.raises(ForensicsError, match="is damaged"):
        open_corpus(corpus.folder)
