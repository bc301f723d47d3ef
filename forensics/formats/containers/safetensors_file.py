"""A safetensors file: its header, and each tensor where it lies."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

from forensics.errors import ForensicsError
from forensics.formats.containers.stored import ITEM_BYTES, Stored

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
LARGEST_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True)
class SafetensorsFile:
    """The tensors of one file by their names, and the text that its writer put beside them."""

    tensors: dict[str, Stored]
    metadata: dict[str, str]


def read_safetensors(path: Path) -> SafetensorsFile:
    """Read a file's header; no tensor is read. Errors: missing, data."""
    if not path.is_file():
        raise ForensicsError("missing", f"wanted {path}, found no such file", "is it complete?")
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
        if length > min(LARGEST_HEADER, size - 8):
            raise _refused(path, "a file that does not begin with a header", "is it complete?")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            raise _refused(path, "a header that is no JSON", "is it complete?") from None
    if not isinstance(header, dict):
        raise _refused(path, "a header that is no JSON object", "is it complete?")
    metadata = header.pop("__metadata__", {})
    tensors = {name: _stored(path, name, entry, 8 + length) for name, entry in header.items()}
    return SafetensorsFile(tensors, metadata if isinstance(metadata, dict) else {})


def _stored(path: Path, name: str, entry: object, begins: int) -> Stored:
    try:
        assert isinstance(entry, dict)
        dtype, shape = DTYPES[entry["dtype"]], tuple(map(int, entry["shape"]))
        first, after = map(int, entry["data_offsets"])
    except (AssertionError, KeyError, TypeError, ValueError):
        raise _refused(path, f"no place of its tensor {name[:80]!r}", "is it complete?") from None
    if after - first != prod(shape) * ITEM_BYTES[dtype]:
        raise _refused(
            path, f"{after - first:,} bytes for {name[:80]!r} of shape {shape}", "is it whole?"
        )
    stored = Stored(path, begins + first, after - first, dtype, shape)
    stored.check(name[:80])
    return stored


def _refused(path: Path, found: str, hint: str) -> ForensicsError:
    return ForensicsError("data", f"{path.name}: wanted a safetensors file, found {found}", hint)
