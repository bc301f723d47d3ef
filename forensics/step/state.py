"""`TrainState`: everything that the next step depends on, and its digest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import torch
import xxhash
from torch import Tensor

from forensics.step.skip_step import SkipWindow


@dataclass(frozen=True)
class Counters:
    """Count batches, schedule steps and updates.

    step: batches consumed; schedule: the learning rate's own counter; updates: Adam's (bias
    correction).
    """

    step: int = 0
    schedule: int = 0
    updates: int = 0


class Nonfinite(NamedTuple):
    """How many numbers of a state are NaN or infinite, and the first tensor that holds one."""

    numbers: int
    first: str | None  # kind/name, in order of name; None: the state is finite


@dataclass
class TrainState:
    """Parameters, moments, counters and SkipStep's window. `advance` changes it in place.

    A state that was saved elsewhere without its moments has none: both are empty, never zeros.
    """

    params: dict[str, Tensor]
    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]
    counters: Counters = field(default_factory=Counters)
    window: SkipWindow = field(default_factory=SkipWindow)

    @classmethod
    def start(cls, params: dict[str, Tensor]) -> TrainState:
        """Return state 0: zero moments."""
        exp_avg, exp_avg_sq = (
            {name: torch.zeros_like(param) for name, param in params.items()} for _ in range(2)
        )
        return cls(dict(params), exp_avg, exp_avg_sq)

    @property
    def has_moments(self) -> bool:
        """Whether the optimizer's moments are known, without which no update can be made."""
        return bool(self.exp_avg) or not self.params

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (kind/name, tensor) of all parameters and moments, in order of name."""
        for kind in ("exp_avg", "exp_avg_sq", "params"):
            for name, tensor in sorted(getattr(self, kind).items()):
                yield f"{kind}/{name}", tensor

    def clone(self) -> TrainState:
        """Copy the state, tensors included."""
        params, exp_avg, exp_avg_sq = (
            {name: tensor.clone() for name, tensor in group.items()}
            for group in (self.params, self.exp_avg, self.exp_avg_sq)
        )
        return TrainState(params, exp_avg, exp_avg_sq, self.counters, self.window)

    def rest(self) -> dict[str, object]:
        """Return all that is not a tensor, as plain JSON."""
        return {"counters": asdict(self.counters), "window": asdict(self.window)}

    def nonfinite(self) -> Nonfinite:
        """Count the numbers of parameters and moments that are NaN or infinite."""
        numbers, first = 0, None
        for name, tensor in self.tensors():
            found = tensor.numel() - int(torch.isfinite(tensor).sum())
            first = first or (name if found else None)
            numbers += found
        return Nonfinite(numbers, first)

    def digest(self) -> str:
        """Compute the xxh3_128 of the whole state.

        It runs over (name, dtype, shape, bytes) of every tensor in order of name, then counters and
        windows.
        """
        hasher = xxhash.xxh3_128()
        for name, tensor in self.tensors():
            hasher.update(header(name, tensor))
            hasher.update(as_bytes(tensor))
        hasher.update(json.dumps(self.rest(), sort_keys=True, separators=(",", ":")).encode())
        return hasher.hexdigest()


def header(name: str, tensor: Tensor) -> bytes:
    """Return what is hashed before a tensor's bytes: its name, dtype and shape."""
    return f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode()


def as_bytes(tensor: Tensor) -> memoryview:
    """Return the tensor's bytes, without a copy where it lies contiguous in host memory."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data
