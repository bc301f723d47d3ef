"""Is there a wall between two states? The loss along the straight line that joins them.

barrier(theta, other, probe_loss(run)).height
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from forensics.errors import ForensicsError
from forensics.train.run import Run
from replay.compare.probe_sequences import Probe

POINTS = 11
Loss = Callable[[dict[str, Tensor]], float]


@dataclass(frozen=True)
class Barrier:
    """`height` in nats; at least 0, because it is 0 at either end."""

    height: float
    alpha: float  # share of θ where it is reached
    losses: tuple[tuple[float, float], ...]  # (α, ℓ(αθ + (1−α)θ′)), α from 0 to 1


@torch.no_grad()
def barrier(
    theta: dict[str, Tensor], other: dict[str, Tensor], loss: Loss, points: int = POINTS
) -> Barrier:
    """max over α of ℓ(αθ + (1−α)θ′) − αℓ(θ) − (1−α)ℓ(θ′), at equally spaced α (arXiv 2110.06296).

    Errors: usage, where the two are not the same architecture.
    """
    for name in {**theta, **other}:
        if name not in theta or name not in other or theta[name].shape != other[name].shape:
            raise ForensicsError(
                "usage",
                f"wanted two states of one architecture, found {name} to differ",
                "compare a run and its forks",
            )
    assert points >= 3, "the two ends alone have no barrier"
    first, last = loss(other), loss(theta)
    losses = [(0.0, first)]
    for i in range(1, points - 1):
        alpha = i / (points - 1)
        losses.append((alpha, loss({n: other[n] + alpha * (theta[n] - other[n]) for n in theta})))
    losses.append((1.0, last))
    heights = [value - alpha * last - (1 - alpha) * first for alpha, value in losses]
    heights[0] = heights[-1] = 0.0
    top = max(range(points), key=heights.__getitem__)
    return Barrier(heights[top], losses[top][0], tuple(losses))


def probe_loss(run: Run) -> Loss:
    """Mean loss on the run's probe set, nats per token. Errors: data, where the run holds nothing
    out.
    """
    probe = Probe(run)
    if not probe.sequences:
        raise ForensicsError(
            "data",
            f"{run.name} holds no sequence out to probe with",
            "train with data.held_out = 64",
        )
    return lambda params: probe.read(params, {})["control"].loss
