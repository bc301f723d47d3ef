"""`TrainState`: everything that the next step depends on, and its digest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import torch
import xxhash
from torch import Tensor

from forensics.step.skip_step import SkipWindow


@dataclass(frozen=True)
class Counters:
    """step: batches consumed; schedule: the learning rate's own counter; updates: Adam's (bias
    correction).
    """

    step: int = 0
    schedule: int = 0
    updates: int = 0


@dataclass
class TrainState:
    """Parameters, moments, counters and SkipStep's window. `advance` changes it in place."""

    params: dict[str, Tensor]
    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]
    counters: Counters = field(default_factory=Counters)
    window: SkipWindow = field(default_factory=SkipWindow)

    @classmethod
    def start(cls, params: dict[str, Tensor]) -> TrainState:
        """State 0: zero moments."""
        exp_avg, exp_avg_sq = (
            {name: torch.zeros_like(p) for name, p in params.items()} for _ in range(2)
        )
        return cls(dict(params), exp_avg, exp_avg_sq)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(kind/name, tensor) of all parameters and moments, in order of name."""
        for kind in ("exp_avg", "exp_avg_sq", "params"):
            for name, tensor in sorted(getattr(self, kind).items()):
                yield f"{kind}/{name}", tensor

    def clone(self) -> TrainState:
        params, exp_avg, exp_avg_sq = (
            {n: t.clone() for n, t in group.items()}
            for group in (self.params, self.exp_avg, self.exp_avg_sq)
        )
        return TrainState(params, exp_avg, exp_avg_sq, self.counters, self.window)

    def rest(self) -> dict[str, object]:
        """All that is not a tensor, as plain JSON."""
        return {"counters": asdict(self.counters), "window": asdict(self.window)}

    def digest(self) -> str:
        """xxh3_128 over (name, dtype, shape, bytes) of every tensor in order of name, then counters
        and windows.
        """
        h = xxhash.xxh3_128()
        for name, tensor in self.tensors():
            h.update(header(name, tensor))
            h.update(as_bytes(tensor))
        h.update(json.dumps(self.rest(), sort_keys=True, separators=(",", ":")).encode())
        return h.hexdigest()


def header(name: str, tensor: Tensor) -> bytes:
    return f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode()


def as_bytes(tensor: Tensor) -> memoryview:
    """The tensor's bytes, without a copy where it lies contiguous in host memory."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data
