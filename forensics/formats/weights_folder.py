"""The tensors of a Hugging Face folder where they lie: an index's shards, or one file.

stored = stored_tensors(Path("OLMo-2-1124-13B"))     # 0.1 s, whatever its size
stored["model.norm.weight"].read()

What an index does not name is no part of the model (a backup, an adapter, consolidated weights).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forensics.errors import ForensicsError, first_line
from forensics.formats.containers.safetensors_file import read_safetensors
from forensics.formats.containers.stored import Stored
from forensics.formats.foreign_run import LazyTensor

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
BESIDE = re.compile(r"(optimizer|consolidated.*|adapter_model.*)\.safetensors")  # no weights of it
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.ckpt.index")
SHOWN = 4  # names in one sentence
BYTES_AT_ONCE = 1 << 24  # of two tensors that are compared


@dataclass(frozen=True)
class PlacedTensor(LazyTensor):
    """A stored tensor, of which it is known where its bytes begin."""

    place: Stored | None = None

    def same_bytes(self, other: PlacedTensor) -> bool:
        """Tell whether two tensors of one dtype and shape hold the same bytes; little is held."""
        assert self.place is not None and other.place is not None, "made by `_placed`"
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        with self.file.open("rb") as first, other.file.open("rb") as second:
            first.seek(self.place.start)
            second.seek(other.place.start)
            left = self.place.length
            while left > 0:
                size = min(left, BYTES_AT_ONCE)
                if first.read(size) != second.read(size):
                    return False
                left -= size
        return True


def json_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object. Errors: data."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise ForensicsError(
            "data", f"{path} cannot be read: {first_line(e)}", "is it complete?"
        ) from None
    if not isinstance(document, dict):
        raise ForensicsError(
            "data",
            f"{path}: wanted a JSON object, found {type(document).__name__}",
            "is it complete?",
        )
    return document


def stored_tensors(folder: Path) -> dict[str, PlacedTensor]:
    """Find every tensor of the model, none of them read. Errors: missing, data."""
    index = _index(folder)
    if index is not None:
        return _by_index(folder, index)
    return {
        name: _placed(name, stored)
        for file in _files_without_index(folder)
        for name, stored in read_safetensors(file).tensors.items()
    }


def has_weights(folder: Path) -> bool:
    """Tell whether a folder holds safetensors of a model, or an index of them."""
    return _index(folder) is not None or any(
        not BESIDE.fullmatch(file.name) for file in folder.glob("*.safetensors")
    )


def _index(folder: Path) -> Path | None:
    if (folder / INDEX).is_file():
        return folder / INDEX
    if (folder / WHOLE).is_file():
        return None
    return next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)


def _by_index(folder: Path, index: Path) -> dict[str, PlacedTensor]:
    file_of = json_object(index).get("weight_map")
    if not isinstance(file_of, dict) or not file_of:
        raise ForensicsError(
            "data", f"{index.name}: wanted a weight_map, found none", "is it complete?"
        )
    for name in set(file_of.values()):
        if not isinstance(name, str) or Path(name).name != name or name in (".", ".."):
            raise ForensicsError(
                "data",
                f"{index.name} names a file outside of its folder: {name!r}"[:200],
                "give the folder of one model",
            )
    files = sorted(set(file_of.values()))
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise ForensicsError(
            "missing",
            f"{folder}: wanted {listed(missing)}, which {index.name} names, found "
            f"{len(files) - len(missing)} of {len(files)} files",
            "fetch what is missing, and put it beside the others",
        )
    stored = {name: read_safetensors(folder / name).tensors for name in files}
    absent = [tensor for tensor, file in file_of.items() if tensor not in stored[file]]
    if absent:
        raise ForensicsError(
            "data",
            f"{folder}: wanted {listed(absent)} where {index.name} says, found no such tensor",
            "do index and files belong together?",
        )
    return {tensor: _placed(tensor, stored[file][tensor]) for tensor, file in file_of.items()}


def _placed(name: str, stored: Stored) -> PlacedTensor:
    lazy = stored.lazy(name)
    return PlacedTensor(name, lazy.shape, lazy.dtype, lazy.file, lazy.read, stored)


def _files_without_index(folder: Path) -> list[Path]:
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    files = sorted(f for f in folder.glob("*.safetensors") if not BESIDE.fullmatch(f.name))
    if not files:
        pickled = [name for name in PICKLED if (folder / name).is_file()]
        raise ForensicsError(
            "missing",
            f"wanted *.safetensors in {folder}, found "
            + (f"only {listed(pickled)}" if pickled else "none"),
            "convert the weights to safetensors" + "; no pickle is opened here" * bool(pickled),
        )
    shards = [SHARD.fullmatch(file.name) for file in files]
    if len(files) == 1 and shards[0] is None:
        return files
    first = shards[0]
    if first is None or any(s is None or s["stem"] != first["stem"] for s in shards):
        raise ForensicsError(
            "data",
            f"{folder}: wanted {WHOLE} or {INDEX}, found {listed(file.name for file in files)}",
            "leave the files of one model there",
        )
    count = first["count"]
    names = [f"{first['stem']}-{i + 1:05}-of-{count}.safetensors" for i in range(int(count))]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ForensicsError(
            "missing",
            f"{folder}: wanted {listed(missing)}, found {len(files)} of {count} files",
            "fetch what is missing, and put it beside the others",
        )
    return [folder / name for name in names]


def listed(names: Iterable[str]) -> str:
    """Name the first few, and count the others."""
    every = list(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more
