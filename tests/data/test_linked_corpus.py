"""A corpus that links to another trainer's token files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from forensics.data import intact
from forensics.data.linked_corpus import bring_in_corpus, located
from forensics.data.made_elsewhere import TokenFiles
from forensics.data.shards import open_corpus
from forensics.errors import ForensicsError
from forensics.sequence_window import window_of
from tests.data.test_token_files import write_lines, write_megatron

PEER = Path(__file__).parents[1] / "fixtures/foreign/olmo1"
STATED = TokenFiles(
    tuple(f"/data/runs/olmo1/data/part-{i}.npy" for i in range(3)), "bare", "uint16", 256, "bytes"
)


def brought(runs, tokens, length=48, window="inside", vocabulary=320):
    return bring_in_corpus(tokens, length, window, vocabulary, runs)


@pytest.fixture
def data(tmp_path):
    return Path(shutil.copytree(PEER / "data", tmp_path / "data"))


def test_links_to_files_where_they_lie_one_source_a_file(tmp_path, data):
    corpus = brought(tmp_path, located(STATED, [data]))
    assert [source.name for source in corpus.sources] == ["part-0", "part-1", "part-2"]
    assert corpus.layout(window_of("inside", 48)).n_sequences == (138, 138, 138)
    assert {path.name for path in corpus.folder.iterdir()} - {intact.STAMPS} == {
        "corpus.json",
        "tokenizer.json",
        "documents.parquet",
    }
    streams = [np.fromfile(data / f"part-{i}.npy", "<u2") for i in range(3)]
    ends = [np.flatnonzero(ids[:-1] == 256) + 1 for ids in streams]
    assert corpus.documents["first_token"].to_pylist() == [
        first for after in ends for first in (0, *after)
    ]
    assert sum(corpus.documents["tokens"].to_pylist()) == sum(map(len, streams))
    assert corpus.documents["path"][1].as_py() == "part-0.npy#1"
    whole = np.concatenate(streams)
    assert "def " in corpus.decode(whole[:20_000].astype(int))


def test_finds_a_file_by_the_folders_above_it_and_names_what_it_lacks(tmp_path):
    for folder in ("web/a", "code/a"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "part-0.npy").write_bytes(b"\1\0" * 100)
    stated = TokenFiles(("s3://x/code/a/part-0.npy", "s3://x/web/a/part-0.npy"), "bare", "uint16")
    assert [path.split("/")[-3] for path in located(stated, [tmp_path]).paths] == ["code", "web"]
    with pytest.raises(ForensicsError, match=r"lacking 1: /gone/part-9\.npy"):
        located(TokenFiles(("/gone/part-9.npy",), "bare"), [tmp_path])


def test_a_file_that_moved_is_linked_again_and_one_that_changed_is_refused(tmp_path, data):
    corpus = brought(tmp_path, located(STATED, [data]))
    moved = data.rename(tmp_path / "moved")
    with pytest.raises(ForensicsError, match="import the run again, with --data"):
        open_corpus(corpus.folder)
    again = brought(tmp_path, located(STATED, [moved]))
    assert again.hash == corpus.hash and again.verify() == []
    changed = bytearray((moved / "part-1.npy").read_bytes())
    changed[40] ^= 1
    (moved / "part-1.npy").write_bytes(changed)
    with pytest.raises(ForensicsError, match="the data changed since it was prepared"):
        open_corpus(corpus.folder).sequences(np.array([140]), window_of("inside", 48))


def test_an_id_beyond_the_table_is_refused_with_its_place(tmp_path, data):
    with pytest.raises(ForensicsError, match=r"part-0\.npy: token 256 at place 3,001; the model"):
        brought(tmp_path, located(STATED, [data]), vocabulary=256)


def test_without_a_tokenizer_text_is_shown_as_ids(tmp_path):
    np.arange(1, 100, dtype=np.uint16).tofile(tmp_path / "x.bin")
    corpus = brought(tmp_path, TokenFiles((str(tmp_path / "x.bin"),), "bare", "uint16"))
    assert corpus.ids_only and corpus.decode([95, 99]) == "95 99" and corpus.eot == -1


def test_pythias_rows_are_read_across_shards(tmp_path):
    rows = np.arange(12 * 9, dtype=np.uint16).reshape(12, 9)
    write_megatron(tmp_path / "document", rows.tolist())
    joined = (tmp_path / "document.bin").read_bytes()
    for n, (start, stop) in enumerate(((0, 70), (70, 150), (150, len(joined)))):
        (tmp_path / f"document-0000{n}-of-00002.bin").write_bytes(joined[start:stop])
    (tmp_path / "document.bin").unlink()
    names = tuple(str(tmp_path / f"document-0000{n}-of-00002.bin") for n in range(3))
    corpus = brought(tmp_path, TokenFiles(names, "megatron", eot=0, joined=True), 8, "separate")
    found = corpus.sequences(np.arange(12), window_of("separate", 8))
    assert (found == rows).all()
    (tmp_path / "document-00001-of-00002.bin").unlink()
    with pytest.raises(ForensicsError, match=r"lacking: .*document-00001-of-00002"):
        brought(tmp_path, TokenFiles(names, "megatron", joined=True), 8, "separate")


def test_ambers_lines_become_a_file_of_ours_each_line_a_document(tmp_path):
    rows = np.random.default_rng(0).integers(0, 300, (6, 9))
    write_lines(tmp_path / "train_0.jsonl", rows.tolist())
    tokens = TokenFiles((str(tmp_path / "train_0.jsonl"),), "jsonl")
    corpus = brought(tmp_path / "runs", tokens, 8, "separate")
    assert (corpus.sequences(np.arange(6), window_of("separate", 8)) == rows).all()
    assert corpus.documents["path"][2].as_py() == "train_0.jsonl:3 c4"
    write_lines(tmp_path / "train_0.jsonl", [[1, 2], [3, 400]])
    with pytest.raises(ForensicsError, match=r"train_0\.jsonl:2: token 400 at place 1"):
        brought(tmp_path / "runs", tokens, 8, "separate")


def test_files_too_large_to_be_read_are_hashed_by_a_sample(tmp_path, data, monkeypatch):
    monkeypatch.setattr("forensics.data.linked_corpus.READ_WHOLE", 1000)
    corpus = brought(tmp_path, located(STATED, [data]))
    assert json.loads((corpus.folder / "corpus.json").read_text())["hashed"] == "sample"
    assert corpus.sources[0].shards[0].hash.startswith(intact.SAMPLED)
    assert corpus.verify() == []


def test_a_file_that_was_read_at_import_is_not_hashed_again(tmp_path, data, monkeypatch):
    for path in data.iterdir():
        os.utime(path, (0, 0))
    monkeypatch.setattr(intact, "SETTLED_S", -60.0)  # the kernel's own time of change is now
    corpus = brought(tmp_path, located(STATED, [data]))
    intact._known.clear()
    monkeypatch.setattr(intact, "hash_file", lambda path: pytest.fail(f"{path} was hashed again"))
    open_corpus(corpus.folder).sequences(np.arange(414), window_of("inside", 48))
