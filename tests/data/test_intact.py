"""A corpus that changed on disk cannot be read, whoever reads it, and costs no second hashing."""

from __future__ import annotations

import os
import shutil
import time

import numpy as np
import pytest

from forensics.data import intact
from forensics.data.shards import open_corpus
from forensics.errors import ForensicsError
from forensics.sequence_window import window_of
from forensics.train.loop import train
from forensics.train.run import open_run


@pytest.fixture
def copied(tiny_run, tmp_path):
    """A folder of runs with a copy of `tiny` that a test may damage."""
    runs = tmp_path / "runs"
    shutil.copytree(tiny_run.folder, runs / "tiny")
    corpus = tiny_run.corpus.folder
    shutil.copytree(
        corpus, runs / "_data" / corpus.name, ignore=shutil.ignore_patterns(intact.STAMPS)
    )
    return open_run(runs, "tiny")


def flip(path, keep_times=False):
    """Change one byte; the size stays, and the time of the last change where asked."""
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    if keep_times:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def read_some(run):
    return run.corpus.sequences(np.arange(2), window_of("shared", 32))


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_shard_that_changed_is_refused_by_whoever_reads_it(copied, keep_times, recipe_of):
    read_some(copied)
    flip(copied.corpus.folder / "0-0.bin", keep_times)
    fresh = open_run(copied.runs, "tiny")
    train_again = {"recipe_name": "tiny", "runs": copied.runs}
    for read in (
        lambda: read_some(fresh),
        lambda: fresh.batch_at(3),
        lambda: fresh.state_at(5),
        lambda: fresh.batches.held_out(),
        lambda: train(recipe_of(), name="tiny", resume=True, **train_again),
        lambda: train(recipe_of(), name="new", **train_again),
    ):
        with pytest.raises(ForensicsError, match="changed since it was prepared") as e:
            read()
        assert e.value.kind == "integrity" and "0-0.bin" in e.value.message
    assert not (copied.runs / "new").exists()
    fresh.state_at(10)  # a saved state reads no data


@pytest.mark.parametrize("file", ["tokenizer.json", "documents.parquet"])
def test_the_tokenizer_and_the_documents_are_guarded_too(copied, file):
    flip(copied.corpus.folder / file)
    corpus = open_run(copied.runs, "tiny").corpus
    with pytest.raises(ForensicsError, match=file):
        corpus.decode([1, 2]) if file == "tokenizer.json" else corpus.spans(
            np.arange(2), window_of("shared", 32)
        )


def test_a_file_is_hashed_once_and_then_known_by_its_stamp(copied, monkeypatch):
    folder = copied.corpus.folder
    hashed = []
    monkeypatch.setattr(
        intact,
        "hash_file",
        lambda path, hash_file=intact.hash_file: hashed.append(path.name) or hash_file(path),
    )
    monkeypatch.setattr(intact, "_known", {})
    later = time.time() + 10  # a file that was just written could change within one tick
    monkeypatch.setattr(intact.time, "time", lambda: later)
    open_corpus(folder).require_intact()
    assert sorted(hashed) == ["0-0.bin", "documents.parquet", "tokenizer.json"]
    open_corpus(folder).require_intact()
    monkeypatch.setattr(intact, "_known", {})  # another process
    open_corpus(folder).require_intact()
    assert len(hashed) == 3
    flip(folder / "0-0.bin", keep_times=True)
    with pytest.raises(ForensicsError, match=r"0-0\.bin"):
        open_corpus(folder).require_intact()


def test_a_file_that_was_just_written_is_hashed_again_by_the_next(copied, monkeypatch):
    folder = copied.corpus.folder
    (folder / "0-0.bin").touch()
    open_corpus(folder).require_intact()
    assert "0-0.bin" not in intact._written(folder), "it could change within one tick"


def test_a_folder_that_holds_another_corpus_is_refused(copied, runs):
    path = copied.corpus.folder / "corpus.json"
    path.write_text(path.read_text().replace(copied.header.corpus, "0" * 32))
    with pytest.raises(ForensicsError, match="was trained on corpus"):
        open_run(copied.runs, "tiny").batch_at(0)
