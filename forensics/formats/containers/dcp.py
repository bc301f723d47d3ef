"""A folder of torch.distributed.checkpoint: what its .metadata says lies where, and the chunks.

    folder = read_dcp(Path("step1000/model_and_optim"))
    folder.tensors["model.embeddings.weight"].lazy("model.embeddings.weight").read()

`.metadata` is a pickle (torch 2.1 … 2.13, OLMo-core's own writer too), read by a closed list; a
chunk is a torch zip inside a .distcp file, whose storage is read where it lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forensics.errors import ForensicsError
from forensics.formats.containers.closed_pickle import (
    LARGEST_PICKLE,
    ClosedList,
    Record,
    read_pickle,
    record,
)
from forensics.formats.containers.stored import ITEM_BYTES, Stored
from forensics.formats.containers.torch_zip import (
    CALLS,
    DTYPES,
    Stretch,
    open_torch_zip,
    read_document,
)
from forensics.formats.foreign_run import LazyTensor
from forensics.visible import visible

if TYPE_CHECKING:
    from torch import Tensor

METADATA = ".metadata"
_MODULE = "torch.distributed.checkpoint.metadata"
_CLASSES = (
    *(
        f"{_MODULE}.{name}"
        for name in (
            "Metadata",
            "TensorStorageMetadata",
            "TensorProperties",
            "ChunkStorageMetadata",
            "BytesStorageMetadata",
            "MetadataIndex",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    # plans that Megatron-core keeps beside: what was to be written, not where it is
    *(
        f"torch.distributed.checkpoint.planner.{name}"
        for name in (
            "SavePlan",
            "WriteItem",
            "WriteItemType",
            "TensorWriteData",
            "BytesIOWriteData",
        )
    ),
    "megatron.core.dist_checkpointing.strategies.torch.MCoreSavePlan",
    "megatron.core.dist_checkpointing.strategies.torch.MCoreMetadata",
    "torch.distributed._shard.sharded_tensor.metadata.TensorProperties",
    "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING",
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "olmo_core.distributed.checkpoint.filesystem._StorageInfo",
)
_SHARED = ("torch.Size", "torch.serialization._get_layout", "collections.OrderedDict")
_PATHS = ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
ALLOWED = ClosedList(
    "the metadata of a distributed checkpoint",
    values=DTYPES | {"torch.strided": "strided", "torch.memory_format": "memory_format"},
    calls={name: record(name.rpartition(".")[2]) for name in _CLASSES}
    | {name: CALLS[name] for name in _SHARED}
    # where it was written to, and which plan wrote it: not needed, not followed
    | {f"pathlib.{name}": record("Path") for name in _PATHS}
    | {f"pathlib._local.{name}": record("Path") for name in _PATHS}
    | {"collections.defaultdict": CALLS["collections.defaultdict"]},
)


@dataclass(frozen=True)
class Chunk:
    """A block of a tensor: where it begins in each dimension, how far it goes, where it lies."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    stretch: Stretch


@dataclass(frozen=True)
class ChunkedTensor:
    """A tensor in chunks that cover it exactly."""

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]

    def lazy(self, name: str) -> LazyTensor:
        """Return it as a reader hands it on."""
        return LazyTensor(name, self.shape, self.dtype, self.chunks[0].stretch.file, self.read)

    def read(self) -> Tensor:
        """Return the tensor: mapped where it is one chunk, put together where it is several.

        Errors: missing, data.
        """
        import torch

        if len(self.chunks) == 1:
            return self._stored(self.chunks[0]).read()
        whole = torch.empty(self.shape, dtype=getattr(torch, self.dtype))
        for chunk in self.chunks:
            place = tuple(slice(at, at + size) for at, size in zip(chunk.offsets, chunk.sizes))
            whole[place] = self._stored(chunk).read()
        return whole

    def _stored(self, chunk: Chunk) -> Stored:
        """Find the chunk's storage; its zip's own pickle is not needed, and not opened."""
        opened = open_torch_zip(*chunk.stretch)
        storage = opened.entries.get("data/0")
        wanted = prod(chunk.sizes) * ITEM_BYTES[self.dtype]
        if storage is None or storage.length != wanted:
            found = "none" if storage is None else f"{storage.length:,} bytes"
            raise _refused(
                chunk.stretch.file,
                f"wanted {wanted:,} bytes in the zip at {chunk.stretch.start:,}, found {found}",
                "is it complete, and of the same checkpoint as its .metadata?",
            )
        return Stored(*storage, self.dtype, chunk.sizes)


@dataclass(frozen=True)
class DcpFolder:
    """A distributed checkpoint: its tensors, and what it pickled, by name."""

    path: Path
    tensors: dict[str, ChunkedTensor]
    pickled: dict[str, Stretch]

    def value(self, name: str) -> Any:
        """Return one plain value that it pickled, by torch's closed list. Errors: missing, data."""
        return read_document(open_torch_zip(*self.pickled[name]))


def is_dcp(folder: Path) -> bool:
    """Tell whether a folder holds a .metadata that is a pickle and names torch's metadata."""
    path = folder / METADATA
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _MODULE.encode() in file.read(256)


def read_dcp(folder: Path) -> DcpFolder:
    """Read a folder's .metadata and find its chunks. Errors: missing, data."""
    path = folder / METADATA
    if not path.is_file():
        raise ForensicsError(
            "missing", f"wanted a distributed checkpoint, found no {METADATA} in {folder}", ""
        )
    if (size := path.stat().st_size) > LARGEST_PICKLE:
        raise _refused(path, f"found {size:,} bytes", f"at most {LARGEST_PICKLE:,} are read")
    root = read_pickle(path.read_bytes(), ALLOWED, str(path))
    described = _fields(root, "Metadata", path, ("state_dict_metadata", "storage_data"))
    places = _places(folder, described["storage_data"], path)
    tensors: dict[str, ChunkedTensor] = {}
    pickled: dict[str, Stretch] = {}
    for name, what in described["state_dict_metadata"].items():
        if isinstance(what, Record) and what.kind == "BytesStorageMetadata":
            if (name, None) in places:
                pickled[name] = places[name, None]
        else:
            tensors[name] = _tensor(name, what, places, path)
    return DcpFolder(folder, tensors, pickled)


_Places = dict[tuple[str, tuple[int, ...] | None], Stretch]


def _places(folder: Path, storage: dict[Any, Any], path: Path) -> _Places:
    """Turn the storage's records into (name, offsets) → bytes of a file of the folder."""
    places: _Places = {}
    for index, info in storage.items():
        where = _fields(index, "MetadataIndex", path, ("fqn",))
        fields = _fields(info, "_StorageInfo", path, ("relative_path", "offset", "length"))
        file, start, length = (fields[name] for name in ("relative_path", "offset", "length"))
        if not isinstance(file, str) or "/" in file or "\\" in file or file in ("", ".", ".."):
            raise _refused(
                path,
                f"wanted a file of its own folder, found {visible(str(file))[:80]!r}",
                "a checkpoint lies in one folder: is it whole?",
            )
        if not _whole(start) or not _whole(length):
            raise _refused(path, f"found no place of {where['fqn']!r}", "is it complete?")
        if fields.get("transform_descriptors"):
            raise _refused(
                path,
                f"found {where['fqn']!r} compressed or otherwise transformed",
                "save the checkpoint without transforms",
            )
        offset = where.get("offset")
        places[where["fqn"], None if offset is None else _ints(offset, path)] = Stretch(
            folder / file, start, length
        )
    return places


def _tensor(name: str, what: Any, places: _Places, path: Path) -> ChunkedTensor:
    fields = _fields(what, "TensorStorageMetadata", path, ("properties", "size", "chunks"))
    dtype, shape = _dtype(fields["properties"], path), _ints(fields["size"], path)
    chunks = []
    for chunk in fields["chunks"]:
        block = _fields(chunk, "ChunkStorageMetadata", path, ("offsets", "sizes"))
        offsets, sizes = _ints(block["offsets"], path), _ints(block["sizes"], path)
        stretch = places.get((name, offsets))
        if stretch is None:
            raise _refused(
                path, f"wanted the place of a chunk of {name}, found none", "is it whole?"
            )
        chunks.append(Chunk(offsets, sizes, stretch))
    # no chunk reaches beyond the tensor, no two begin at one place, and together they have its size
    inside = all(
        len(c.offsets) == len(c.sizes) == len(shape)
        and all(at + size <= end for at, size, end in zip(c.offsets, c.sizes, shape))
        for c in chunks
    )
    covered = sum(prod(chunk.sizes) for chunk in chunks)
    if not chunks or not inside or covered != prod(shape):
        raise _refused(
            path,
            f"wanted chunks that cover {visible(name)[:80]} of shape {shape}, found {covered:,} of"
            f" {prod(shape):,} numbers",
            "is the checkpoint whole?",
        )
    return ChunkedTensor(dtype, shape, tuple(chunks))


def _dtype(properties: Any, path: Path) -> str:
    """Read the dtype, which its class keeps as the first of a tuple, or as a field."""
    state = properties.state if isinstance(properties, Record) else None
    dtype = state[0] if isinstance(state, tuple) and state else None
    if isinstance(state, dict):
        dtype = state.get("dtype")
    if dtype not in ITEM_BYTES:
        raise _refused(
            path, f"found a tensor of dtype {str(dtype)[:40]}", f"read: {', '.join(ITEM_BYTES)}"
        )
    return str(dtype)


def _fields(what: Any, kind: str, path: Path, wanted: tuple[str, ...]) -> dict[str, Any]:
    """Return an object's fields, the wanted ones among them. Errors: data."""
    fields = what.state if isinstance(what, Record) and what.kind == kind else None
    if not isinstance(fields, dict) or not all(name in fields for name in wanted):
        raise _refused(
            path, f"wanted a {kind} with {', '.join(wanted)}, found none", "is it whole?"
        )
    return fields


def _ints(sizes: Any, path: Path) -> tuple[int, ...]:
    if not isinstance(sizes, tuple) or not all(map(_whole, sizes)):
        raise _refused(path, "found a size that is no list of whole numbers", "is it whole?")
    return sizes


def _whole(number: Any) -> bool:
    return isinstance(number, int) and 0 <= number < 1 << 62


def _refused(path: Path, found: str, hint: str) -> ForensicsError:
    return ForensicsError("data", f"{path.parent.name}/{path.name}: {found}", hint)
