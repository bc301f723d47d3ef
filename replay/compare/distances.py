"""How a replay stands to what was recorded, and how far two arms are apart.

`Witness` holds a replayed control against its parent's rows, bit for bit. `distances` and `Probe`
measure fork − control, as docs/formulas.md defines it: never fork − recorded parent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forensics.step import sums


@dataclass
class Distance:
    """Of one arm from the control: the whole (""), each tensor, and each layer (`layers.<i>.*`)."""

    l2: dict[str, float] = field(default_factory=dict)
    cosine: dict[str, float] = field(default_factory=dict)


@torch.no_grad()
def distance(
    arm: dict[str, Tensor], control: dict[str, Tensor], start: dict[str, Tensor]
) -> Distance:
    """‖θ_arm − θ_control‖₂, and the cosine of the two displacements from the start; NaN where one
    has not moved. Over the control's tensors: an arm may have more.
    """
    distances = Distance()
    sums_of: dict[str, np.ndarray] = {"": np.zeros(4)}
    for name in control:
        mine = np.zeros(4)
        for a, c, s in sums.blocks(arm[name], control[name], start[name]):
            moved_a, moved_c = a - s, c - s
            mine += [
                _sum((a - c).square_()),
                _sum(moved_a * moved_c),
                _sum(moved_a.square_()),
                _sum(moved_c.square_()),
            ]
        sums_of[name] = mine
        sums_of[""] += mine
        layer = layer_of(name)
        if layer is not None:
            layer_sums = sums_of.setdefault(f"layers.{layer}.*", np.zeros(4))
            layer_sums += mine
    for name, parts in sums_of.items():
        distances.l2[name], distances.cosine[name] = math.sqrt(parts[0]), _cosine(parts)
    return distances


def layer_of(tensor: str) -> int | None:
    """Return the layer that a tensor's name names.

    None for embeddings, the last norm and the empty name.
    """
    return int(tensor.split(".")[1]) if tensor.startswith("layers.") else None


def _sum(x: Tensor) -> float:
    return float(x.sum(1, dtype=torch.float64).sum())


def _cosine(parts: np.ndarray) -> float:
    size = math.sqrt(parts[2] * parts[3])
    return float(parts[1] / size) if 0 < size < math.inf else math.nan


def first_difference(arm: dict[str, Tensor], control: dict[str, Tensor]) -> dict[str, Any] | None:
    """Return the first tensor, in the order of the forward, that differs in a bit, and its first
    such element.
    """
    for name in control:
        if not torch.equal(arm[name], control[name]):
            element = int((arm[name] != control[name]).reshape(-1).nonzero()[0])
            return {"tensor": name, "layer": layer_of(name), "element": element}
    return None
