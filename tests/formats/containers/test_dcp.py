"""Distributed checkpoints are read by their metadata: what torch itself writes, and what lies."""

import io
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from forensics.errors import ForensicsError
from forensics.formats.containers.dcp import is_dcp, read_dcp

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
MATRIX = torch.arange(24.0).reshape(4, 6)


def zipped(tensor):
    buffer = io.BytesIO()
    torch.save(tensor.clone(), buffer)
    return buffer.getvalue()


def write_chunks(folder, chunks, shape=(4, 6), dtype=torch.float32, path="__0_0.distcp", **fields):
    """Write one tensor, "w", in chunks (offsets, tensor), as ranks write theirs."""
    data, storage, blocks = b"", {}, []
    for offsets, tensor in chunks:
        payload = zipped(tensor)
        at = torch.Size(offsets)
        blocks.append(ChunkStorageMetadata(at, tensor.shape))
        storage[MetadataIndex("w", at)] = _StorageInfo(path, len(data), len(payload), **fields)
        data += payload
    described = TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(shape), blocks)
    folder.mkdir(exist_ok=True)
    (folder / "__0_0.distcp").write_bytes(data)
    metadata = Metadata(state_dict_metadata={"w": described}, storage_data=storage)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder


HALVES = [((0, 0), MATRIX[:, :2]), ((0, 2), MATRIX[:, 2:])]


def refusal(folder):
    with pytest.raises(ForensicsError) as e:
        read_dcp(folder).tensors["w"].read()
    assert "\n" not in str(e.value)
    return str(e.value)


def test_what_torch_writes_comes_back_equal(tmp_path):
    state = {
        "model": {"a": MATRIX.clone(), "b": torch.ones(3, dtype=torch.bfloat16)},
        "lr": 0.5,
        "betas": (0.9, 0.95),
        "names": ["a", "b"],
    }
    dcp.save(state, checkpoint_id=tmp_path / "c", no_dist=True)
    folder = read_dcp(tmp_path / "c")
    assert is_dcp(tmp_path / "c") and not is_dcp(tmp_path)
    assert torch.equal(folder.tensors["model.a"].read(), MATRIX)
    assert torch.equal(folder.tensors["model.b"].read(), torch.ones(3, dtype=torch.bfloat16))
    assert folder.tensors["model.b"].lazy("b").dtype == "bfloat16"
    assert folder.value("lr") == 0.5
    flat = {name: folder.value(name) for name in folder.pickled}
    assert {"lr", "betas", "names"} & {name.split(".")[0] for name in flat} == {
        "lr",
        *{name.split(".")[0] for name in flat if name != "lr"},
    }


def test_chunks_of_several_ranks_are_put_together(tmp_path):
    folder = read_dcp(write_chunks(tmp_path / "c", HALVES))
    lazy = folder.tensors["w"].lazy("w")
    assert lazy.shape == (4, 6) and torch.equal(lazy.read(), MATRIX)


@pytest.mark.parametrize(
    ("chunks", "fields", "says"),
    [
        (HALVES[:1], {}, "cover"),  # half of it is missing
        ([((0, 0), MATRIX), ((0, 2), MATRIX[:, 2:])], {}, "cover"),  # more than all of it
        ([((0, 1), MATRIX)], {}, "cover"),  # beyond its end
        (HALVES, {"path": "../secret"}, "of its own folder"),
        (HALVES, {"path": "/etc/passwd"}, "of its own folder"),
        (HALVES, {"path": ".."}, "of its own folder"),
        (HALVES, {"path": "__9_9.distcp"}, "no such file"),
        (HALVES, {"transform_descriptors": ["zstd"]}, "transformed"),
        (HALVES, {"dtype": torch.complex64}, "complex64"),
        (HALVES, {"dtype": torch.float64}, "wanted 64 bytes"),
    ],
)
def test_metadata_that_lies_is_refused_in_one_line(tmp_path, chunks, fields, says):
    assert says in refusal(write_chunks(tmp_path / "c", chunks, **fields))


def test_a_file_cut_short_is_refused(tmp_path):
    folder = write_chunks(tmp_path / "c", HALVES)
    file = folder / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-100])
    assert "fewer bytes than its metadata says" in refusal(folder)
    file.write_bytes(b"x" * 5000)
    assert "begins with" in refusal(folder)
    metadata = (folder / ".metadata").read_bytes()
    (folder / ".metadata").write_bytes(metadata[:-20])
    assert "hold together" in refusal(folder)


def test_a_metadata_that_runs_a_command_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            import os

            return os.system, (f"touch {tmp_path / 'evil'}",)

    folder = tmp_path / "c"
    folder.mkdir()
    described = {"w": BytesStorageMetadata(), "x": Evil()}
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata(described, storage_data={})))
    assert "system" in refusal(folder) and not (tmp_path / "evil").exists()
    (folder / ".metadata").write_bytes(pickle.dumps({"not": "metadata"}))
    assert "wanted a Metadata" in refusal(folder)
    (folder / ".metadata").unlink()
    assert ".metadata" in refusal(folder)
