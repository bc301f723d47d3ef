"""torch.save's zip file: its pickle by a closed list, its storages where they lie.

    document = read_torch_zip(Path("ckpt.pt"))     # dicts of plain values and Stored tensors

Layout: NAME/data.pkl, NAME/data/KEY (a storage's bytes, uncompressed), NAME/byteorder
(pytorch/pytorch torch/serialization.py). The form before torch 1.6 has no zip and is refused.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from forensics.errors import ForensicsError
from forensics.formats.containers.closed_pickle import (
    LARGEST_PICKLE,
    ClosedList,
    Record,
    read_pickle,
    record,
)
from forensics.formats.containers.stored import ITEM_BYTES, Stored
from forensics.visible import visible

ZIP_MAGIC = b"PK\x03\x04"
LOCAL_HEADER = struct.Struct("<4s22xHH")  # magic, …, length of the name, length of the extra field
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
DTYPES = {f"torch.{name}": name for name in ITEM_BYTES}
_UNTYPED = "untyped"


class _Storage(NamedTuple):
    stretch: Stretch
    dtype: str  # _UNTYPED where the tensor says it


class Stretch(NamedTuple):
    """Bytes [start, start + length) of a file."""

    file: Path
    start: int
    length: int


class _Slice(io.RawIOBase):
    """A stretch of an open file as a file of its own, for zipfile."""

    def __init__(self, file: io.BufferedReader, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise OSError("a place before the beginning")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        data = self._file.read(max(0, min(len(buffer), self._length - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


@dataclass(frozen=True)
class TorchZip:
    """The entries of one torch zip; `prefix` is the folder that they lie in."""

    stretch: Stretch
    prefix: str
    entries: dict[str, Stretch]  # by their names without the prefix

    def bytes_of(self, name: str) -> bytes:
        """Return an entry's bytes. Errors: data, where it has none of that name."""
        entry = self.entries.get(name)
        if entry is None:
            raise _refused(self.stretch.file, f"a zip without {name}", "is it complete?")
        if entry.length > LARGEST_PICKLE:
            raise _refused(
                entry.file,
                f"{name} of {entry.length:,} bytes",
                f"at most {LARGEST_PICKLE:,} are read",
            )
        with entry.file.open("rb") as file:
            file.seek(entry.start)
            return file.read(entry.length)


def is_torch_zip(path: Path) -> bool:
    """Tell whether a file is a zip with a data.pkl, as torch.save writes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return True  # cut short: reading it says so


def open_torch_zip(path: Path, start: int = 0, length: int | None = None) -> TorchZip:
    """Find the entries of a torch zip that is a file, or [start, start + length) of one.

    Errors: missing, data (no zip, cut short, compressed, big-endian, TorchScript).
    """
    if not path.is_file():
        raise ForensicsError("missing", f"wanted {path}, found no such file", "is it complete?")
    size = path.stat().st_size
    length = size - start if length is None else length
    if start < 0 or length < 0 or start + length > size:
        raise _refused(path, "fewer bytes than its metadata says", "is it complete?")
    with path.open("rb") as file:
        file.seek(start)
        if (magic := file.read(len(ZIP_MAGIC))) != ZIP_MAGIC:
            raise _no_zip(path, magic)
        try:
            with zipfile.ZipFile(_Slice(file, start, length)) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as e:
            raise _refused(
                path, f"a zip that cannot be read: {visible(str(e))[:80]}", "is it complete?"
            ) from None
        placed = {info.filename: _place(path, file, info, start, length) for info in infos}
    roots = [name.removesuffix("data.pkl") for name in placed if name.endswith("/data.pkl")]
    if len(roots) != 1 or roots[0].count("/") != 1:
        raise _refused(path, "a zip without one data.pkl", "is it another program's?")
    prefix = roots[0]
    entries = {n.removeprefix(prefix): e for n, e in placed.items() if n.startswith(prefix)}
    if "constants.pkl" in entries:
        raise _refused(path, "TorchScript, which holds code", "save the tensors with torch.save")
    opened = TorchZip(Stretch(path, start, length), prefix, entries)
    if "byteorder" in entries and (order := opened.bytes_of("byteorder")[:16]) != b"little":
        raise _refused(path, f"byte order {order!r}", "save it on a little-endian machine")
    return opened


def _place(
    path: Path, file: io.BufferedReader, info: zipfile.ZipInfo, start: int, length: int
) -> Stretch:
    """Find an entry's bytes, which torch never compresses."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise _refused(
            path,
            f"a zip whose {visible(info.filename)[:80]} is compressed or locked",
            "torch.save does neither: is it another program's?",
        )
    file.seek(start + info.header_offset)
    header = file.read(LOCAL_HEADER.size)
    if len(header) < LOCAL_HEADER.size or not header.startswith(ZIP_MAGIC):
        raise _refused(path, "a zip whose entries are not where it says", "is it complete?")
    _, name_length, extra_length = LOCAL_HEADER.unpack(header)
    begins = info.header_offset + LOCAL_HEADER.size + name_length + extra_length
    if begins + info.file_size > length:
        raise _refused(path, "a zip whose entries reach beyond its end", "is it complete?")
    return Stretch(path, start + begins, info.file_size)


def _no_zip(path: Path, magic: bytes) -> ForensicsError:
    if magic[:1] == b"\x80":
        return _refused(
            path,
            "a bare pickle (torch's form before 1.6, or another program's)",
            "load it where it was made and save it again with torch 1.6 or newer",
        )
    return _refused(path, f"a file that begins with {magic!r}", "is it complete?")


def _refused(path: Path, found: str, hint: str) -> ForensicsError:
    return ForensicsError("data", f"{path.name}: wanted a torch file, found {found}", hint)


def read_torch_zip(path: Path, more: ClosedList | None = None) -> Any:
    """Return what a torch file holds: plain values, and Stored where it has tensors.

    `more` adds a trainer's own names to the closed list. Errors: missing, data.
    """
    return read_document(open_torch_zip(path), more)


def read_document(opened: TorchZip, more: ClosedList | None = None) -> Any:
    """Return what an opened torch zip holds; as `read_torch_zip`. Errors: data."""
    allowed = ClosedList(
        more.title if more else "a torch file",
        VALUES | dict(more.values if more else {}),
        CALLS | dict(more.calls if more else {}),
        _storages(opened),
    )
    return read_pickle(opened.bytes_of("data.pkl"), allowed, opened.stretch.file.name)


def _storages(opened: TorchZip) -> Callable[[Any], _Storage]:
    def storage(id: Any) -> _Storage:
        if not isinstance(id, tuple) or len(id) != 5 or id[0] != "storage":
            raise ValueError("a persistent id that is no storage")
        _, dtype, key, _, numbers = id
        if not isinstance(dtype, str) or not isinstance(key, str) or not isinstance(numbers, int):
            raise ValueError("a storage without a type or a name")
        entry = opened.entries.get(f"data/{key}")
        if entry is None:
            raise ValueError(f"storage {visible(key)[:20]}, which the zip does not hold")
        if entry.length < numbers * ITEM_BYTES.get(dtype, 1):
            raise ValueError(f"storage {visible(key)[:20]}, of which bytes are missing")
        return _Storage(entry, dtype)

    return storage


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, dtype: str | None = None) -> Stored:
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without a storage")
    if not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise ValueError("a tensor without a shape")
    kind = dtype if storage.dtype == _UNTYPED else storage.dtype
    stored = Stored(*storage.stretch, str(kind), shape, stride, offset)
    stored.check("one of its tensors")
    return stored


def _tensor_v2(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    gradient: Any,
    hooks: Any,
    metadata: Any = None,
) -> Stored:
    return _tensor(storage, offset, shape, stride)


def _tensor_v3(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    gradient: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> Stored:
    return _tensor(storage, offset, shape, stride, dtype)


def _parameter(tensor: Any, *gradient_and_hooks: Any) -> Stored:
    if not isinstance(tensor, Stored):
        raise ValueError("a parameter without a tensor")
    return tensor


def _of_type(function: Any, kind: Any, arguments: Any, state: Any) -> Stored:
    """Rebuild a tensor that carried attributes, which are dropped."""
    if function != "torch._utils._rebuild_tensor_v2" or kind not in TENSOR_CLASSES:
        raise ValueError("a tensor of a class of its own")
    return _tensor_v2(*arguments)


def _items(pairs: Iterable[Any] = ()) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for key, item in pairs:
        if not isinstance(key, (str, int)):
            raise ValueError("a key that is no text")
        made[key] = item
    return made


def _bytes(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8"):
        raise ValueError("an encoding of its own")
    return text.encode(encoding)


def _tuple(items: Any = ()) -> tuple[Any, ...]:
    if not isinstance(items, (tuple, list)):
        raise ValueError("a size that is no list")
    return tuple(items)


TENSOR_CLASSES = ("torch.Tensor", "torch.nn.parameter.Parameter")
VALUES: dict[str, Any] = {
    **{f"torch.{kind}": dtype for kind, dtype in STORAGES.items()},
    **{f"torch.storage.{kind}": dtype for kind, dtype in STORAGES.items()},
    "torch.storage.UntypedStorage": _UNTYPED,
    **DTYPES,
    **{name: name for name in TENSOR_CLASSES},
    **{
        f"{module}.{name}": name
        for module in ("builtins", "__builtin__")
        for name in ("dict", "list")
    },
}
CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _items,
    "collections.defaultdict": lambda factory=None, pairs=(): _items(pairs),
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.Size": _tuple,
    "torch.device": record("torch.device"),
    "torch.serialization._get_layout": str,
    "_codecs.encode": _bytes,
    # states of random number generators, beside what is asked for
    **{
        f"numpy.{module}.multiarray.{name}": record(f"numpy.{name}")
        for module in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    },
    "numpy.ndarray": record("numpy.ndarray"),
    "numpy.dtype": record("numpy.dtype"),
    # settings of a trainer, as plain fields
    "argparse.Namespace": record("argparse.Namespace"),
    **{f"pathlib.{name}": record("pathlib.Path") for name in ("PosixPath", "PurePosixPath")},
}


def plain_fields(document: Any) -> dict[Any, Any]:
    """Return a dictionary, or an object's fields (argparse's); of anything else an empty one."""
    if isinstance(document, Record):
        return document.state if isinstance(document.state, dict) else {}
    return document if isinstance(document, dict) else {}
