"""The angles of RoPE (arXiv 2104.09864), plain or with wavelengths stretched for longer texts.

Pair j of the R numbers that are turned is (x_j, x_{j+R/2}); it turns by θ^{−2j/R} a position. A
pair makes `original · frequency / 2π` turns over the length that was trained on. Both ways of
stretching leave pairs that turn often as they are, divide the frequency of those that hardly turn
by `rope_factor`, and go over between them:

    llama3   linear in the number of turns, from `rope_slow` to `rope_fast` (Llama 3.1)
    yarn     linear in j, between the pairs that make so many turns, rounded outwards; cos and sin
             times `rope_magnitude` (arXiv 2309.00071, sections 3.2 to 3.4)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from forensics.model.shape import Shape

APART = 0.001  # pairs between two equal ends of YaRN's ramp, so that it can be divided by


class Angles(NamedTuple):
    """Of every position and pair, (T, 1, R/2)."""

    cos: Tensor
    sin: Tensor


def angles_of(shape: Shape, T: int, sliding: bool) -> Angles:
    """Return cos and sin of T positions on the CPU, fp32, in sliding layers or in full ones."""
    frequency = frequencies(shape, sliding)
    angle = torch.outer(torch.arange(T, dtype=torch.int64).float(), frequency)[:, None, :]
    if shape.rope_scaling != "none" and not sliding and shape.rope_magnitude != 1.0:
        return Angles(angle.cos() * shape.rope_magnitude, angle.sin() * shape.rope_magnitude)
    return Angles(angle.cos(), angle.sin())


def frequencies(shape: Shape, sliding: bool, scaled: bool = True) -> Tensor:
    """Return each pair's angle a position, (R/2) fp32; unstretched where `scaled` is not set."""
    pairs = torch.arange(0, shape.rotated, 2, dtype=torch.int64).float() / shape.rotated
    theta = (shape.rope_theta_sliding if sliding else 0.0) or shape.rope_theta
    frequency = 1.0 / theta**pairs
    if shape.rope_scaling == "none" or sliding or not scaled:
        return frequency
    kept = _kept_by_turns(shape, frequency) if shape.rope_scaling == "llama3" else _ramp(shape)
    return frequency * kept + frequency / shape.rope_factor * (1 - kept)


def _kept_by_turns(shape: Shape, frequency: Tensor) -> Tensor:
    """Return the share of each frequency that is kept, by its turns over the original length."""
    turns = shape.rope_original_length * frequency / (2 * math.pi)
    return ((turns - shape.rope_slow) / (shape.rope_fast - shape.rope_slow)).clamp(0, 1)


def _ramp(shape: Shape) -> Tensor:
    """Return the share of each frequency that is kept, by the place of its pair."""
    R = shape.rotated

    def pair_with(turns: float) -> float:
        return (
            R
            * math.log(shape.rope_original_length / (turns * 2 * math.pi))
            / (2 * math.log(shape.rope_theta))
        )

    first = max(math.floor(pair_with(shape.rope_fast)), 0)
    last: float = min(math.ceil(pair_with(shape.rope_slow)), R - 1)
    if first == last:
        last += APART
    return 1 - ((torch.arange(R // 2).float() - first) / (last - first)).clamp(0, 1)


def yarn_magnitude(factor: float, weight: float = 1.0) -> float:
    """Return YaRN's factor of cos and sin, 0.1·weight·ln(factor) + 1 (arXiv 2309.00071, eq. 22)."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
