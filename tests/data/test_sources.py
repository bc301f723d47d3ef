"""What a source may hold: records of every form, packed or not, with their metadata; odd files."""

import bz2
import gzip
import json
import lzma
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forensics.config import Data
from forensics.data import encode
from forensics.data.attributes import LONGEST_VALUE, MOST_NAMES, Attributes, flattened
from forensics.data.corpus import Documents
from forensics.data.encode import LONGEST_RUN, Encoder, pieces, without_long_runs
from forensics.data.tokenize import bytes_tokenizer, prepare, train_tokenizer
from forensics.errors import ForensicsError

LINES = b'{"text": "one", "q": 1}\n{"text": "two"}\n'


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(content)
    return sink.getvalue().to_pybytes()


PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def read(spec, **settings):
    return [(d.path, d.text) for d in Documents(str(spec), **settings)]


def refused(spec, message, kind="data", **settings):
    with pytest.raises(ForensicsError, match=message) as e:
        read(spec, **settings)
    assert e.value.kind == kind and e.value.hint


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.json", "a.ndjson"])
def test_json_lines_are_records_packed_or_not_in_a_folder_or_alone(tmp_path, name, packed):
    file = tmp_path / "shards" / (name + packed)
    file.parent.mkdir()
    file.write_bytes(PACK[packed](LINES))
    for spec, prefix in ((file, ""), (tmp_path, "shards/")):
        assert read(spec) == [
            (f"{prefix}{file.name}:1", "one"),
            (f"{prefix}{file.name}:2", "two"),
        ]


def test_a_packed_file_without_a_telling_name_is_records_or_text_by_its_first_line(tmp_path):
    (tmp_path / "00.zst").write_bytes(zstd(LINES))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("Grüße".encode()))
    (tmp_path / "c.zst").write_bytes(zstd(b"plain text"))
    (tmp_path / "d.tar.gz").write_bytes(gzip.compress(bytes(100)))
    documents = Documents(str(tmp_path))
    assert [(d.path, d.text) for d in documents] == [
        ("00.zst:1", "one"),
        ("00.zst:2", "two"),
        ("b.txt.gz", "Grüße"),
        ("c.zst", "plain text"),
    ]
    assert documents.left_out == ["d.tar.gz: binary"]


def test_json_that_is_no_records_stays_text(tmp_path):
    texts = {
        "config.json": '{"name": "x"}\n',
        "pretty.json": '{\n "text": "x"\n}',
        "list.json": "[1, 2]",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "array.json").write_text('[{"text": "a"}, {"text": "b", "n": 2}]')
    assert dict(read(tmp_path)) == texts | {"array.json:1": "a", "array.json:2": "b"}


def test_several_zstd_frames_are_one_file(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(LINES) + zstd(b'{"text": "three"}\n'))
    assert [text for _, text in read(tmp_path)] == ["one", "two", "three"]


@pytest.mark.parametrize("packed", [".gz", ".zst", ".xz", ".bz2"])
def test_a_packed_file_that_is_cut_short_or_no_such_file_is_refused_by_name(tmp_path, packed):
    (tmp_path / f"a.jsonl{packed}").write_bytes(PACK[packed](LINES * 500)[:-9])
    refused(tmp_path, rf"a\.jsonl{packed}: wanted .* data, found it damaged or cut short")
    (tmp_path / f"a.jsonl{packed}").write_bytes(LINES)
    refused(tmp_path, rf"a\.jsonl{packed}: wanted .* data")


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + LINES)
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbftext")
    (tmp_path / "c.json").write_bytes(b"\xef\xbb\xbf" + LINES)
    assert [text for _, text in read(tmp_path)] == ["one", "two", "text", "one", "two"]


def test_a_folder_of_parquet_is_read_though_its_columns_differ(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "x": pa.nulls(1)}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"x": [[1, 2]], "text": ["b"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"text": ["c"], "x": ["z"], "y": [0.5]}), tmp_path / "2.parquet")
    documents = list(Documents(str(tmp_path)))
    assert [d.path for d in documents] == ["0.parquet:0", "1.parquet:0", "2.parquet:0"]
    attributes = [d.attributes for d in documents]
    assert attributes == [None, {"x": ("1", "2")}, {"x": "z", "y": 0.5}]
    pq.write_table(pa.table({"body": ["c"]}), tmp_path / "3.parquet")
    refused(tmp_path, r"3\.parquet: wanted text at 'text', found no such field")


def test_parquet_text_that_is_not_utf8_is_left_out(tmp_path):
    text = pa.array([b"good", b"\xff"]).view(pa.string()) if hasattr(pa.Array, "view") else None
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    documents = Documents(str(tmp_path))
    assert [d.text for d in documents] == ["good"]
    assert documents.left_out[0] == "a.parquet:1: not UTF-8"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deep"),
        ('{"text": "a"', "wanted one JSON object a line"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "ok"}\n' + line + "\n")
    refused(tmp_path, f"a.jsonl:2: .*{message}")


def test_a_whole_number_of_any_size_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "a", "n": ' + "9" * 5000 + ', "m": 12345678901234567890}'
    )
    (document,) = Documents(str(tmp_path))
    assert document.attributes == {"n": float("inf"), "m": 12345678901234567890.0}


def test_pipes_are_left_out_and_links_out_of_the_folder_said(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "x.txt").write_text("from outside")
    (root / "a.txt").write_text("inside")
    (root / "b.txt").symlink_to(outside / "x.txt")
    (root / "c").symlink_to(outside)
    (root / "d.txt").symlink_to(root / "a.txt")
    os.mkfifo(root / "pipe.txt")
    documents = Documents(str(root))
    assert [d.path for d in documents] == ["a.txt", "b.txt", "d.txt"]
    assert documents.left_out == ["c: a link to a folder", "pipe.txt: a pipe, not a file"]
    assert documents.notes == ["b.txt: read through a link out of the folder"]
    refused(root / "pipe.txt", "found a pipe there", kind="missing")


def test_metadata_is_flattened_by_dots_and_typed_over_the_corpus():
    record = {
        "text": "…",
        "meta": {"lang": "en", "scores": {"q": 1}},
        "tags": ["a", 2],
        "nothing": None,
        "objects": [{"a": 1}],
    }
    assert flattened(record, "text") == {
        "meta.lang": "en",
        "meta.scores.q": 1,
        "tags": ("a", "2"),
        "objects": ('{"a": 1}',),
    }
    assert flattened({"text": "…"}, "text") is None
    gathered = Attributes()
    rows = [{"q": 1, "t": "x", "b": True, "URL": "u"}, {"q": 0.5, "t": ("y",), "b": 3, "url": "v"}]
    for row in rows:
        gathered.add(row)
    types = {"q": "DOUBLE", "t": "VARCHAR[]", "b": "VARCHAR", "URL": "VARCHAR"}
    assert gathered.sql_types == types
    assert gathered.row(rows[0]) == {"q": 1.0, "t": ["x"], "b": "true", "URL": "u"}
    assert gathered.row(rows[1]) == {"q": 0.5, "t": ["y"], "b": "3", "URL": "v"}


def test_metadata_beyond_the_limits_is_left_out_and_counted():
    gathered = Attributes()
    gathered.add({"long": "x" * (LONGEST_VALUE + 1), "bad": "\ud800", "many": tuple("x" * 65)})
    for i in range(MOST_NAMES + 1):
        gathered.add({f"n{i}": i})
    assert len(gathered.kinds) == MOST_NAMES and not {"long", "bad", "many"} & gathered.kinds.keys()
    assert len(gathered.left_out) == 4
    assert gathered.row({"long": "x" * 5000}) is None


def data(source, **settings):
    return Data(**{"source": str(source), "tokenizer": "bytes", "sequence_length": 8, **settings})


def test_attributes_are_part_of_a_corpus_and_of_its_hash(tmp_path):
    def corpus(lines):
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
        return prepare(data(tmp_path / "a.jsonl"), tmp_path / "runs")

    bare = corpus([{"text": "some text"}, {"text": "other text"}])
    rated = corpus([{"text": "some text", "quality": 0.2}, {"text": "other text"}])
    other = corpus([{"text": "some text", "quality": 0.3}, {"text": "other text"}])
    assert len({bare.hash, rated.hash, other.hash}) == 3
    assert bare.attributes is None
    assert rated.attributes.to_pylist() == [{"quality": 0.2}, None]
    for each in (bare, rated):
        assert each.documents.column_names == bare.documents.column_names
    assert "notes" not in (bare.folder / "corpus.json").read_text()


def test_a_long_run_is_cut_for_training_and_nothing_else_is():
    assert without_long_runs("a b " * 5000) == ["a b " * 5000]
    for run in ("x", "=", "7", " "):
        text = "before " + run * (3 * LONGEST_RUN) + "after"
        cut = without_long_runs(text)
        assert "".join(cut) == text and len(cut) >= 3
        assert max(map(len, cut)) <= LONGEST_RUN + 8
    assert train_tokenizer(without_long_runs("x" * 300_000), 300).get_vocab_size() < 300


@settings(max_examples=30, deadline=None)
@given(st.text(st.sampled_from("ab .\nü"), min_size=1, max_size=400))
def test_a_long_text_is_encoded_in_pieces_as_it_is_in_one(text):
    before = encode.LONGEST_TEXT, encode.LOOK_BACK
    encode.LONGEST_TEXT, encode.LOOK_BACK = 40, 20
    try:
        assert "".join(pieces(text)) == text and max(map(len, pieces(text))) <= 40
        encoder = Encoder(bytes_tokenizer(), 256, "<u2")
        tokens, first = encoder.encode([text, "b"])
        assert tokens.tolist() == [*text.encode(), 256, ord("b"), 256]
        assert first.tolist() == [0, len(text.encode()) + 1]
    finally:
        encode.LONGEST_TEXT, encode.LOOK_BACK = before


def test_pieces_are_cut_where_the_tokens_stay_the_same(monkeypatch):
    monkeypatch.setattr(encode, "LONGEST_TEXT", 200)
    monkeypatch.setattr(encode, "LOOK_BACK", 60)
    text = "def f(x):\n    return the value of x in words, and more\n" * 40
    tokenizer = train_tokenizer([text], 300)
    tokens, _ = Encoder(tokenizer, 0, "<u2").encode([text])
    assert len(pieces(text)) > 10
    assert tokens.tolist() == [*tokenizer.encode(text).ids, 0]


def test_a_document_in_pieces_is_noted_in_the_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "LONGEST_TEXT", 2000)
    monkeypatch.setattr(encode, "LOOK_BACK", 50)
    (tmp_path / "a.txt").write_text("word " * 50 + "x" * 3000)
    corpus = prepare(data(tmp_path / "a.txt", tokenizer="train", vocabulary=300), tmp_path)
    first, second = corpus.sources[0].notes
    assert first.startswith("a.txt: 3,250 characters, tokenised in")
    assert second.startswith("a.txt: a run of more than 1,024 characters of one kind")


def test_a_tokenizer_is_padded_to_the_vocabulary_that_was_asked_for(tmp_path):
    (tmp_path / "a.txt").write_text("some text " * 20)
    tokenizer = train_tokenizer(["some text " * 20], 260)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    source = data(tmp_path / "a.txt", tokenizer=str(tmp_path / "tokenizer.json"))
    ids = prepare(source, tmp_path).vocabulary
    padded = data(tmp_path / "a.txt", tokenizer=source.tokenizer, vocabulary=384)
    corpus = prepare(padded, tmp_path)
    assert ids < 300 and corpus.vocabulary == 384
    assert corpus.hash != prepare(source, tmp_path).hash
    assert int(corpus.tokens(0, 0, 20).max()) < ids


def test_records_that_cannot_be_opened_are_left_out_as_any_file_is(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    for name in ("b.jsonl", "c.parquet", "d.json", "e.jsonl.gz"):
        (tmp_path / name).symlink_to(tmp_path / "gone")
    documents = Documents(str(tmp_path))
    assert [d.path for d in documents] == ["a.txt"]
    assert [line.split(":")[0] for line in documents.left_out] == [
        *("b.jsonl", "c.parquet", "d.json", "e.jsonl.gz")
    ]
