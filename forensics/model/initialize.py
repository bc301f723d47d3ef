"""Initial parameters: a tensor's numbers depend on the seed and its name, on no other tensor."""

from __future__ import annotations

import math

import torch
import xxhash
from torch import Tensor

from forensics.model.shape import Shape, parameter_shapes

INTO_STREAM = ("attn.o_proj.weight", "mlp.down.weight")


def initialize(shape: Shape, scheme: str, seed: int) -> dict[str, Tensor]:
    """fp32 parameters on the CPU.

    `normal`: std 0.02 everywhere. `scaled`: 0.02, and 0.02/√(2L) for maps into the stream
    (Megatron-LM). `olmo`: 1/√fan_in, and 1/√(2·fan_in·(layer+1)) for maps into the stream, cut at 3
    std (OLMo 1). Norms' gains are 1, biases 0.
    """
    return {
        name: _tensor(name, size, shape, scheme, seed)
        for name, size in parameter_shapes(shape).items()
    }


def _tensor(name: str, size: tuple[int, ...], shape: Shape, scheme: str, seed: int) -> Tensor:
    if name.endswith(".bias"):
        return torch.zeros(size)
    if "norm" in name:
        return torch.ones(size)
    generator = torch.Generator().manual_seed(
        xxhash.xxh3_64_intdigest(f"{seed}/initialize/{name}".encode()) >> 1
    )
    into_stream = name.endswith(INTO_STREAM)
    if scheme == "olmo" and name not in ("embed.weight", "positions.weight"):
        depth = int(name.split(".")[1]) + 1 if into_stream else 0
        std = 1 / math.sqrt(size[1] * (2 * depth if into_stream else 1))
        return torch.nn.init.trunc_normal_(
            torch.empty(size), 0.0, std, -3 * std, 3 * std, generator=generator
        )
    std = 0.02 / math.sqrt(2 * shape.layers) if scheme == "scaled" and into_stream else 0.02
    return torch.empty(size).normal_(0.0, std, generator=generator)
