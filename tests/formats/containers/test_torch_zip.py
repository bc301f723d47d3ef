"""torch.save's zips are read where they lie: every tensor equal to torch's own, nothing loaded."""

import io
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch

from forensics.errors import ForensicsError
from forensics.formats.containers.stored import Stored
from forensics.formats.containers.torch_zip import is_torch_zip, open_torch_zip, read_torch_zip

STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
)
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def saved(path, document, **options):
    torch.save(document, path, **options)
    return path


def archive(path, pickled, entries=(("data/0", b"\x00" * 16),), **options):
    """Write a torch zip by hand."""
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("archive/data.pkl", pickled)
        for name, data in entries:
            file.writestr(f"archive/{name}", data)
    return path


def refusal(path, read=read_torch_zip):
    with pytest.raises(ForensicsError) as e:
        read(path)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_every_dtype_view_and_parameter_comes_back_equal(tmp_path):
    matrix = torch.arange(24.0).reshape(4, 6)
    document = OrderedDict(
        plain=matrix,
        rows=matrix[1:3],
        turned=matrix.T,
        steps=matrix[:, ::2],
        empty=torch.empty(0, 3),
        number=torch.tensor(7.0),
        parameter=torch.nn.Parameter(matrix[0].clone()),
        buffer=torch.nn.Parameter(matrix[1].clone(), requires_grad=False),
        **{
            str(dtype): torch.ones(3, dtype=dtype)
            for dtype in (
                *(torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32),
                *(
                    torch.int16,
                    torch.int8,
                    torch.uint8,
                    torch.bool,
                    torch.uint16,
                    torch.float8_e5m2,
                ),
            )
        },
    )
    document["number_beside"] = 3
    read = read_torch_zip(saved(tmp_path / "a.pt", document))
    assert read["number_beside"] == 3
    for name, tensor in document.items():
        if isinstance(tensor, torch.Tensor):
            assert isinstance(read[name], Stored), name
            found = read[name].read()
            assert found.dtype == tensor.dtype and tuple(found.shape) == tuple(tensor.shape), name
            assert torch.equal(found.double(), tensor.detach().double()), name


def test_storages_that_are_shared_lie_at_one_place_and_are_mapped_not_copied(tmp_path):
    matrix = torch.arange(12.0).reshape(3, 4)
    path = saved(tmp_path / "a.pt", {"a": matrix, "b": matrix[1]})
    read = read_torch_zip(path)
    assert read["a"].start == read["b"].start and read["b"].offset == 4
    size = path.stat().st_size
    read["a"].read().fill_(9.0)  # its own copy of the page, never the file's
    assert torch.equal(read["a"].read(), matrix) and path.stat().st_size == size


def test_a_modules_state_with_an_optimizers_is_read(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    path = saved(tmp_path / "a.pt", {"m": model.state_dict(), "o": optimizer.state_dict()})
    read = read_torch_zip(path)
    assert torch.equal(read["m"]["weight"].read(), model.weight)
    state = optimizer.state_dict()["state"][0]["exp_avg_sq"]
    assert torch.equal(read["o"]["state"][0]["exp_avg_sq"].read(), state)
    assert read["o"]["param_groups"][0]["params"] == [0, 1]


def test_a_zip_inside_another_file_is_read_in_its_place(tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(5)}, buffer)
    path = tmp_path / "b.distcp"
    path.write_bytes(b"x" * 77 + buffer.getvalue() + b"y" * 5)
    opened = open_torch_zip(path, 77, len(buffer.getvalue()))
    assert opened.entries["data/0"].length == 40


def test_what_is_no_torch_file_is_refused_in_one_line(tmp_path):
    legacy = saved(
        tmp_path / "legacy.pt", {"a": torch.ones(2)}, _use_new_zipfile_serialization=False
    )
    assert "before 1.6" in refusal(legacy) and not is_torch_zip(legacy)
    whole = saved(tmp_path / "whole.pt", {"a": torch.ones(64)}).read_bytes()
    for end in (0, 3, 30, 200, len(whole) - 40, len(whole) - 1):
        cut = tmp_path / "cut.pt"
        cut.write_bytes(whole[:end])
        assert "cut.pt" in refusal(cut)
    page = tmp_path / "page.pt"
    page.write_text("<html>404</html>")
    assert "begins with" in refusal(page)
    assert "missing" in refusal(tmp_path / "none.pt") or "no such file" in refusal(
        tmp_path / "none.pt"
    )
    assert "without one data.pkl" in refusal(
        archive(tmp_path / "two.pt", b"\x80\x02N.", [("../other/data.pkl", b"")])
    )


def test_a_module_saved_whole_is_refused_by_its_class_and_not_built(tmp_path):
    path = saved(tmp_path / "module.pt", torch.nn.Linear(2, 2))
    assert "torch.nn.modules.linear.Linear" in refusal(path)


def test_a_pickle_that_runs_a_command_is_refused_by_name(tmp_path):
    class Evil:
        def __reduce__(self):
            import os

            return os.system, (f"touch {tmp_path / 'evil'}",)

    path = archive(tmp_path / "evil.pt", pickle.dumps({"model": Evil()}, 2))
    assert "posix.system" in refusal(path) or "os.system" in refusal(path)
    assert not (tmp_path / "evil").exists()


def test_a_compressed_zip_is_refused_before_it_is_inflated(tmp_path):
    path = archive(
        tmp_path / "bomb.pt",
        b"\x80\x02N.",
        [("data/0", b"\x00" * 10_000_000)],
        compression=zipfile.ZIP_DEFLATED,
    )
    assert path.stat().st_size < 20_000 and "compressed" in refusal(path)


def tensor_pickle(
    offset=b"K\x00", shape=b"K\x02K\x02\x86", stride=b"K\x02K\x01\x86", storage=STORAGE
):
    return b"\x80\x02" + REBUILD + b"(" + storage + offset + shape + stride + b"\x89}tR."


@pytest.mark.parametrize(
    ("pickled", "says"),
    [
        (tensor_pickle(offset=b"K\x01"), "reaches beyond its storage of 4"),
        (tensor_pickle(shape=b"K\x02K\x03\x86"), "reaches beyond"),
        (tensor_pickle(stride=b"K\x02K\x02\x86"), "reaches beyond"),
        (tensor_pickle(stride=b"K\x00K\x00\x86", shape=b"K\xffK\xff\x86"), "reaches beyond"),
        (tensor_pickle(offset=b"J\xff\xff\xff\xff"), "none"),  # −1
        (tensor_pickle(stride=b"J\xff\xff\xff\xffK\x01\x86"), "none"),
        (tensor_pickle(stride=b"K\x01\x85"), "none"),  # fewer strides than sizes
        (tensor_pickle(shape=b"X\x01\x00\x00\x002\x85"), "none"),  # a size that is text
        (tensor_pickle(shape=b"K\x02"), "without a shape"),
        (tensor_pickle(storage=b"K\x07"), "without a storage"),
        (tensor_pickle(storage=b"K\x07Q"), "no storage"),
        (
            tensor_pickle(storage=STORAGE.replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x009")),
            "storage 9",
        ),
        (tensor_pickle(storage=STORAGE.replace(b"K\x04t", b"K\x05t")), "bytes are missing"),
        (
            tensor_pickle(storage=STORAGE.replace(b"FloatStorage", b"EvilStorage")),
            "torch.EvilStorage",
        ),
        (
            tensor_pickle(
                storage=STORAGE.replace(b"X\x01\x00\x00\x000", b"X\x06\x00\x00\x00../../")
            ),
            "does not hold",
        ),
    ],
)
def test_tensors_beyond_their_storage_are_refused(tmp_path, pickled, says):
    assert says in refusal(archive(tmp_path / "a.pt", pickled))


def test_a_tensor_within_its_storage_by_hand_is_read(tmp_path):
    path = archive(tmp_path / "a.pt", tensor_pickle(), [("data/0", b"\x00\x00\x80\x3f" * 4)])
    assert torch.equal(read_torch_zip(path).read(), torch.ones(2, 2))


def test_byte_order_and_torchscript_are_refused(tmp_path):
    big = archive(tmp_path / "a.pt", b"\x80\x02N.", [("byteorder", b"big")])
    assert "byte order" in refusal(big)
    script = archive(tmp_path / "b.pt", b"\x80\x02N.", [("constants.pkl", b"")])
    assert "TorchScript" in refusal(script)
