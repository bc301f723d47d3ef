"""OLMo's encoded names are decoded without unpickling; its safetensors are read where they lie."""

import base64
import json
import pickle
import struct

import pytest
import torch
from safetensors.torch import save_file

from forensics.errors import ForensicsError
from forensics.formats.containers.olmo_keys import EncodedKey, decode_key, read_encoded
from forensics.formats.containers.safetensors_file import read_safetensors


def encoded(path, pickled=False, protocol=4):
    """Encode a name as OLMo does."""
    return base64.urlsafe_b64encode(pickle.dumps((path, pickled), protocol)).decode()


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    "path",
    [
        ("transformer.wte.weight",),
        ("state", "transformer.blocks.0.att_proj.weight", "exp_avg"),
        ("state", 3, "step"),
        ("param_groups",),
        ("same", "same", "same"),  # a memo stands for what was written before
    ],
)
def test_names_as_olmo_writes_them_are_decoded(path, protocol):
    assert decode_key(encoded(path, False, protocol)) == EncodedKey(path, False)
    assert decode_key(encoded(path, True, protocol)) == EncodedKey(path, True)


def test_plain_names_are_none_of_olmos():
    assert decode_key("model.embed_tokens.weight") is None
    assert (
        decode_key("lm_head.weight") is None and decode_key("ä") is None and decode_key("") is None
    )


def test_a_name_that_would_run_a_command_is_refused():
    class Evil:
        def __reduce__(self):
            return eval, ("1",)

    for data in (Evil(), ((Evil(),), False), {"a": 1}, (("a",), 1), ((1.5,), False)):
        with pytest.raises(ForensicsError):
            decode_key(base64.urlsafe_b64encode(pickle.dumps(data, 4)).decode())


def test_an_encoded_file_gives_its_tensors_and_its_plain_values(tmp_path):
    groups = [{"params": [0, 1], "param_names": ["a", "b"], "lr": 0.1, "betas": (0.9, 0.95)}]
    held = torch.frombuffer(bytearray(pickle.dumps(groups)), dtype=torch.uint8)
    tensors = {
        encoded(("state", 0, "exp_avg")): torch.arange(6.0).reshape(2, 3),
        encoded(("state", 0, "step")): torch.tensor(4.0),
        encoded(("param_groups",), True): held,
    }
    save_file(tensors, tmp_path / "optim.safetensors")
    read = read_encoded(tmp_path / "optim.safetensors")
    assert set(read.tensors) == {("state", 0, "exp_avg"), ("state", 0, "step")}
    assert torch.equal(read.tensors["state", 0, "exp_avg"].read(), torch.arange(6.0).reshape(2, 3))
    assert read.value("param_groups") == groups and read.value("none") is None


def test_a_plain_safetensors_file_is_no_encoded_one(tmp_path):
    save_file({"model.norm.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ForensicsError, match="Hugging Face"):
        read_encoded(tmp_path / "model.safetensors")


def test_safetensors_of_every_dtype_are_equal_and_keep_their_writers_words(tmp_path):
    tensors = {
        str(d): torch.ones(2, 3).to(d)
        for d in (
            torch.float32,
            torch.bfloat16,
            torch.float16,
            torch.int64,
            torch.uint8,
            torch.bool,
        )
    }
    tensors["number"] = torch.tensor(2.0)
    save_file(tensors, tmp_path / "a.safetensors", metadata={"by": "me"})
    read = read_safetensors(tmp_path / "a.safetensors")
    assert read.metadata == {"by": "me"}
    for name, tensor in tensors.items():
        found = read.tensors[name].read()
        assert found.dtype == tensor.dtype and torch.equal(found, tensor)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "4 bytes"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, "beyond the end"),
        ({"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}, "no place"),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]}}, "shape"),
        ({"a": {"dtype": "F32", "shape": "no", "data_offsets": [0, 8]}}, "no place"),
        ({"a": 3}, "no place"),
        ([], "no JSON object"),
    ],
)
def test_headers_that_lie_are_refused_in_one_line(tmp_path, header, says):
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\x00" * 8)
    with pytest.raises(ForensicsError, match=says) as e:
        read_safetensors(path)
    assert "\n" not in str(e.value)
    for data in (b"", b"abc", struct.pack("<Q", 1 << 60), struct.pack("<Q", 9) + b"{" * 9):
        path.write_bytes(data)
        with pytest.raises(ForensicsError):
            read_safetensors(path)
