"""Initial parameters: a tensor's numbers depend on the seed and its name, on no other tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor

from forensics.config import Model
from forensics.model.shape import Shape, parameter_shapes

INTO_STREAM = ("attn.o_proj.weight", "mlp.down.weight")


TABLES = ("embed.weight", "positions.weight")
BY_FAN = ("olmo", "openlm")  # std by the numbers that are summed
BY_FAN_CUTOFF = 3.0  # std, as OLMo 1 and OpenLM cut


@dataclass(frozen=True)
class Initialization:
    """How parameters are drawn: the keys `init…` of a recipe's [model]."""

    scheme: str = "normal"  # normal | scaled | small | olmo | openlm
    std: float = 0.02
    embedding_std: float | None = None  # None: as the scheme says
    cutoff: float = 0.0  # std; 0: no bound

    @classmethod
    def of(cls, model: Model) -> Initialization:
        """Take the keys of a recipe."""
        return cls(model.init, model.init_std, model.init_embedding_std, model.init_cutoff)


def initialize(shape: Shape, how: Initialization | str, seed: int) -> dict[str, Tensor]:
    """Draw fp32 parameters on the CPU; a scheme alone is with the usual numbers.

    `normal`: one std everywhere. `scaled`: that, and std/√(2L) for maps into the stream
    (Megatron-LM). `small`: std √(2/(5D)), and that/√(2L) for maps into the stream (arXiv
    1910.05895, 2312.16903). `olmo`: 1/√fan_in, and 1/√(2·fan_in·(layer+1)) for maps into the
    stream, cut at 3 std (OLMo 1); `openlm`: embeddings too, 1/√D. Norms' gains are 1, biases 0.
    """
    if isinstance(how, str):
        how = Initialization(how)
    return {
        name: _tensor(name, size, shape, how, seed)
        for name, size in parameter_shapes(shape).items()
    }


def _tensor(
    name: str, size: tuple[int, ...], shape: Shape, how: Initialization, seed: int
) -> Tensor:
    if name.endswith(".bias"):
        return torch.zeros(size)
    if "norm" in name:
        return torch.ones(size)
    generator = torch.Generator().manual_seed(
        xxhash.xxh3_64_intdigest(f"{seed}/initialize/{name}".encode()) >> 1
    )
    std, cutoff = _std(name, size, shape, how), how.cutoff
    if how.scheme == "openlm" or (how.scheme == "olmo" and name not in TABLES):
        cutoff = cutoff or BY_FAN_CUTOFF
    x = torch.empty(size)
    if cutoff:
        return torch.nn.init.trunc_normal_(
            x, 0.0, std, -cutoff * std, cutoff * std, generator=generator
        )
    return x.normal_(0.0, std, generator=generator)


def _std(name: str, size: tuple[int, ...], shape: Shape, how: Initialization) -> float:
    if name in TABLES:
        if how.embedding_std is not None:
            return how.embedding_std
        if how.scheme == "openlm":
            return 1 / math.sqrt(shape.width)
    into_stream = name.endswith(INTO_STREAM)
    if how.scheme in BY_FAN and name not in TABLES:
        depth = int(name.split(".")[1]) + 1 if into_stream else 0
        return 1 / math.sqrt(size[1] * (2 * depth if into_stream else 1))
    std = math.sqrt(2 / (5 * shape.width)) if how.scheme == "small" else how.std
    shrinks = how.scheme in ("scaled", "small") and into_stream
    return std / math.sqrt(2 * shape.layers) if shrinks else std
