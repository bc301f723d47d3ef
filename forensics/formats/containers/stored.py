"""A tensor as it lies in a file: where its bytes begin, its dtype, shape and strides."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from forensics.errors import ForensicsError
from forensics.formats.foreign_run import LazyTensor

if TYPE_CHECKING:
    from torch import Tensor

# bytes of a number of each dtype that is read, by torch's name of it
ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "bool": 1,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
}
MOST_DIMENSIONS = 64  # torch's own limit


@dataclass(frozen=True)
class Stored:
    """One tensor in one stretch of a file."""

    file: Path
    start: int  # byte at which its storage begins
    length: int  # bytes of its storage
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None = None  # in numbers; None: row by row, without gaps
    offset: int = 0  # numbers between the storage's beginning and the tensor's

    def check(self, name: str) -> None:
        """Refuse what reaches beyond its storage or its file. Errors: data."""
        if self.dtype not in ITEM_BYTES:
            raise _refused(
                self.file, name, f"of dtype {self.dtype!r}", f"read: {', '.join(ITEM_BYTES)}"
            )
        sizes = (*self.shape, *(self.stride or ()), self.offset, self.start, self.length)
        whole = all(isinstance(size, int) and size >= 0 for size in sizes)
        same = self.stride is None or len(self.stride) == len(self.shape)
        if not whole or not same or len(self.shape) > MOST_DIMENSIONS:
            raise _refused(self.file, name, "whose shape or strides are none", "is it complete?")
        numbers = self.length // ITEM_BYTES[self.dtype]
        if prod(self.shape) > numbers or self._reach() > numbers:
            raise _refused(
                self.file,
                name,
                f"of shape {self.shape} that reaches beyond its storage of {numbers:,} numbers",
                "is the file complete?",
            )
        if self.start + self.length > self.file.stat().st_size:
            raise _refused(
                self.file, name, "that reaches beyond the end of the file", "is it complete?"
            )

    def _reach(self) -> int:
        """Count the numbers of the storage up to the tensor's last."""
        if not prod(self.shape):
            return 0
        if self.stride is None:
            return self.offset + prod(self.shape)
        return self.offset + 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride))

    def read(self) -> Tensor:
        """Return the tensor, its bytes mapped and not copied; writing to it changes no file."""
        import torch

        if not prod(self.shape):
            return torch.empty(self.shape, dtype=getattr(torch, self.dtype))
        raw: np.ndarray = np.memmap(self.file, np.uint8, "c", self.start, (self.length,))
        item = ITEM_BYTES[self.dtype]
        if raw.ctypes.data % item:
            raw = np.array(raw)
        whole = torch.from_numpy(raw)[: self.length // item * item].view(getattr(torch, self.dtype))
        if self.stride is None:
            return whole[self.offset : self.offset + prod(self.shape)].view(self.shape)
        return whole.as_strided(self.shape, self.stride, self.offset)

    def lazy(self, name: str) -> LazyTensor:
        """Return it as a reader hands it on, checked. Errors: data."""
        self.check(name)
        return LazyTensor(name, self.shape, self.dtype, self.file, self.read)


def _refused(file: Path, name: str, found: str, hint: str) -> ForensicsError:
    return ForensicsError("data", f"{file.name}: {name}: found a tensor {found}", hint)
