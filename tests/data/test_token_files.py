"""Token files of other trainers, written here byte by byte as their writers do."""

from __future__ import annotations

import gzip
import json
import struct

import numpy as np
import pytest

from forensics.data.made_elsewhere import TokenFiles
from forensics.data.token_files.description import described, row_length
from forensics.data.token_files.token_file import open_all
from forensics.errors import ForensicsError

CODES = {"u1": 1, "i1": 2, "<i2": 3, "<i4": 4, "<i8": 5, "<u2": 8}


def write_megatron(prefix, sequences, dtype="<u2", documents=None):
    """PREFIX.bin and PREFIX.idx as NVIDIA/Megatron-LM megatron/core/datasets/indexed_dataset.py
    writes them.
    """
    lengths = [len(sequence) for sequence in sequences]
    width = np.dtype(dtype).itemsize
    places = [width * sum(lengths[:i]) for i in range(len(lengths))]
    documents = list(range(len(sequences) + 1)) if documents is None else documents
    prefix.parent.mkdir(exist_ok=True)
    ids = np.concatenate([np.array(sequence, dtype) for sequence in sequences])
    prefix.with_suffix(".bin").write_bytes(ids.tobytes())
    prefix.with_suffix(".idx").write_bytes(
        b"MMIDIDX\0\0"
        + struct.pack("<QBQQ", 1, CODES[dtype], len(sequences), len(documents))
        + np.array(lengths, "<i4").tobytes()
        + np.array(places, "<i8").tobytes()
        + np.array(documents, "<i8").tobytes()
    )
    return ids


def one(path, kind, dtype=None, **more):
    (file,) = open_all(TokenFiles((str(path),), kind, dtype, **more))
    return file


def test_a_bare_memory_map_is_read_as_its_type_says_and_never_guessed(tmp_path):
    ids = np.arange(300, dtype=np.uint32)
    ids.tofile(tmp_path / "g.npy")
    assert (one(tmp_path / "g.npy", "bare", "uint32").map() == ids).all()
    with pytest.raises(ForensicsError, match=r"no NumPy header: a bare memory map.*--dtype uint32"):
        one(tmp_path / "g.npy", "bare")
    with pytest.raises(ForensicsError, match="looks like uint32"):
        one(tmp_path / "g.npy", "bare", "uint16")
    (tmp_path / "odd.npy").write_bytes(b"\1\2\3")
    with pytest.raises(ForensicsError, match=r"wanted a multiple of 2 bytes.*found 3"):
        one(tmp_path / "odd.npy", "bare", "uint16")
    with pytest.raises(ForensicsError, match="wanted the type of token ids, found 'float32'"):
        one(tmp_path / "g.npy", "bare", "float32")


def test_a_real_npy_says_its_own_type(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(40, dtype=np.int32))
    assert (one(tmp_path / "ids.npy", "bare").map() == np.arange(40)).all()
    with pytest.raises(ForensicsError, match="wanted uint16, found int32 in its own header"):
        one(tmp_path / "ids.npy", "numpy", "uint16")


def test_documents_stand_in_the_csv_beside_a_file(tmp_path):
    np.arange(30, dtype=np.uint16).tofile(tmp_path / "part.npy")
    rows = "0,10,a,web.json.gz,1\n10,30,b,web.json.gz,2\n"
    (tmp_path / "part.csv.gz").write_bytes(gzip.compress(rows.encode()))
    boundaries = one(tmp_path / "part.npy", "bare", "uint16").boundaries()
    assert boundaries.first_token.tolist() == [0, 10]
    assert boundaries.paths == ["web.json.gz:1", "web.json.gz:2"]
    (tmp_path / "part.csv.gz").write_bytes(gzip.compress(b"0,10\nten,30\n"))
    with pytest.raises(ForensicsError, match="in line 2"):
        one(tmp_path / "part.npy", "bare", "uint16").boundaries()


@pytest.mark.parametrize("dtype", list(CODES))
def test_megatrons_index_says_type_and_documents(tmp_path, dtype):
    ids = write_megatron(tmp_path / "d", [[1, 2, 3], [4, 5], [6]], dtype, documents=[0, 2, 3])
    file = one(tmp_path / "d", "megatron")
    assert file.dtype == np.dtype(dtype) and (file.map() == ids).all()
    assert file.boundaries().first_token.tolist() == [0, 5]


def test_megatrons_files_that_are_not_whole_are_refused_by_name(tmp_path):
    write_megatron(tmp_path / "d", [[1, 2, 3], [4, 5]])
    whole = (tmp_path / "d.idx").read_bytes()
    (tmp_path / "d.idx").write_bytes(whole[:-3])
    with pytest.raises(ForensicsError, match=r"d\.idx: wanted .* bytes for its 2 sequences"):
        one(tmp_path / "d.bin", "megatron")
    (tmp_path / "d.idx").write_bytes(b"TNTIDX\0\0" + whole)
    with pytest.raises(ForensicsError, match="an old TNTIDX index"):
        one(tmp_path / "d.bin", "megatron")
    (tmp_path / "d.idx").write_bytes(whole[:17] + b"\6" + whole[18:])
    with pytest.raises(ForensicsError, match=r"code 6 .floating-point"):
        one(tmp_path / "d.bin", "megatron")
    (tmp_path / "d.idx").write_bytes(whole)
    (tmp_path / "d.bin").write_bytes(b"\0" * 8)
    with pytest.raises(ForensicsError, match="wanted the 10 bytes that its index names, found 8"):
        one(tmp_path / "d.bin", "megatron")


def test_datatroves_metadata_say_how_wide_an_id_is(tmp_path):
    ids = np.arange(20, dtype=np.uint32)
    ids.tofile(tmp_path / "x.ds")
    np.array([12, 20], "<u8").tofile(tmp_path / "x.ds.index")
    (tmp_path / "x.ds.metadata").write_text("org/tokenizer|4\n20\n20 tokens")
    file = one(tmp_path / "x.ds", "datatrove")
    assert (file.map() == ids).all() and file.boundaries().first_token.tolist() == [0, 12]
    ids[:-1].tofile(tmp_path / "x.ds")
    with pytest.raises(ForensicsError, match="wanted the 20 ids that its metadata name, found 19"):
        one(tmp_path / "x.ds", "datatrove")
    (tmp_path / "x.ds.metadata").unlink()
    with pytest.raises(ForensicsError, match="no metadata beside it"):
        one(tmp_path / "x.ds", "datatrove")


def test_files_are_told_apart_by_what_lies_beside_them(tmp_path):
    write_megatron(tmp_path / "m/document", np.arange(108).reshape(12, 9).tolist())
    shards = [tmp_path / f"m/document-0000{n}-of-00001.bin" for n in range(2)]
    for shard in shards:
        shard.write_bytes((tmp_path / "m/document.bin").read_bytes()[:108])
    single = described([tmp_path / "m/document.bin"])
    assert (single.kind, single.joined, row_length(single)) == ("megatron", False, 9)
    (tmp_path / "m/document.bin").unlink()
    joined = described([tmp_path / "m"])
    assert (joined.kind, joined.joined, len(joined.paths)) == ("megatron", True, 2)
    assert row_length(joined) == 9
    write_lines(tmp_path / "a.jsonl", [[1, 2]])
    assert described([tmp_path / "a.jsonl"]).kind == "jsonl"
    (tmp_path / "text.jsonl").write_text('{"text": "a"}')
    assert described([tmp_path / "text.jsonl"]) is None
    np.save(tmp_path / "x.npy", np.arange(4))
    np.arange(4).tofile(tmp_path / "y.npy")
    assert [described([tmp_path / name]).kind for name in ("x.npy", "y.npy")] == ["numpy", "bare"]


def write_lines(path, rows):
    lines = [json.dumps({"token_ids": row, "source": "c4"}) for row in rows]
    path.write_text("\n".join(lines) + "\n")
