"""One update taken apart: by tensor, by memory and data, and along its line.

For update S−1, which led to state S: Δθ = Δθ_memory + Δθ_data, where Δθ_memory is the same update
with a gradient of 0, what the moments alone carried. Losses are measured on b_S, the batch that
showed the spike, and on the probe set P.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from forensics.model.step_model import StepModel
from forensics.progress import ProgressCallback, silent
from forensics.step import sums
from forensics.step.batch import Batch, BatchStream
from forensics.step.policy import StepPolicy
from forensics.step.state import TrainState
from forensics.train.advance import token_losses
from forensics.train.optimizer import update as optimizer_update
from forensics.train.run import Run
from replay.compare.probe_sequences import Probe
from replay.step.result import LayerBlame, LinePoint, TensorEffect

ALPHAS = tuple(np.linspace(0.0, 2.0, 9).tolist())
PROBES = 16  # sequences


@dataclass
class Update:
    """θ before, and the two parts of Δθ, by tensor."""

    theta: dict[str, Tensor]
    memory: dict[str, Tensor]
    data: dict[str, Tensor]

    def moved(self, memory: float, data: float, only: set[str] | None = None) -> dict[str, Tensor]:
        """Return θ + memory·Δθ_memory + data·Δθ_data, on the tensors of `only`, or on all."""
        return {
            name: theta
            if only is not None and name not in only
            else theta + memory * self.memory[name] + data * self.data[name]
            for name, theta in self.theta.items()
        }


@torch.no_grad()
def split_update(
    before: TrainState, after: TrainState, policy: StepPolicy, model: StepModel, stream: BatchStream
) -> Update:
    """Split the update that took `before` to `after`; `before` is left as it was."""
    coasting = before.clone()
    no_gradient = {name: torch.zeros_like(param) for name, param in coasting.params.items()}
    optimizer_update(coasting, no_gradient, policy, model.decayed, model.optimizer)
    memory = {name: coasting.params[name] - param for name, param in before.params.items()}
    both = {name: after.params[name] - param for name, param in before.params.items()}
    return Update(before.params, memory, {name: both[name] - memory[name] for name in both})


class _LossPair(NamedTuple):
    """Losses at some parameters, or their change, nats/token."""

    batch: float  # on b_S
    probe: float | None  # on P; None where there are no probe sequences

    def minus(self, base: _LossPair) -> _LossPair:
        probe = None
        if self.probe is not None and base.probe is not None:
            probe = self.probe - base.probe
        return _LossPair(self.batch - base.batch, probe)


class _Losses:
    """Measures the losses on b_S and P at given parameters."""

    def __init__(self, run: Run, batch: Batch) -> None:
        self.run, self.batch = run, batch
        self.probe = Probe(run, PROBES).batch

    def at(self, params: dict[str, Tensor]) -> _LossPair:
        loss = self._mean(params, self.batch)
        return _LossPair(loss, self._mean(params, self.probe) if self.probe is not None else None)

    def _mean(self, params: dict[str, Tensor], batch: Batch) -> float:
        model = self.run.model
        size = min(model.micro_batch, len(batch.tokens))
        ce = token_losses(params, batch, model, self.run.header.precision, size)
        weight = batch.weight.to(ce.device)
        # a batch masked whole has loss 0
        return float(sums.total(ce * weight)) / max(float(weight.sum()), 1e-30)


def layer_blame(
    run: Run, update: Update, batch: Batch, progress: ProgressCallback = silent
) -> LayerBlame:
    """Measure the change of loss on b_S and P by tensor, and by memory and data.

    Of each tensor: with its update alone, and with all but it; the largest on b_S comes first.
    """
    losses = _Losses(run, batch)
    base = losses.at(update.theta)
    rise = losses.at(update.moved(1, 1)).minus(base)
    memory = losses.at(update.moved(1, 0)).minus(base)
    data = losses.at(update.moved(0, 1)).minus(base)
    effects = []
    names = list(update.theta)
    for i, name in enumerate(names):
        alone = losses.at(update.moved(1, 1, {name})).minus(base)
        without = losses.at(update.moved(1, 1, set(names) - {name})).minus(base)
        effects.append(
            TensorEffect(
                name, layer_of(name), alone.batch, alone.probe, without.batch, without.probe
            )
        )
        progress(i + 1, len(names), name)
    effects.sort(key=lambda effect: -abs(effect.alone_batch))
    return LayerBlame(
        rise.batch,
        rise.probe,
        memory.batch,
        memory.probe,
        data.batch,
        data.probe,
        tuple(effects),
    )


def layer_of(tensor: str) -> int | None:
    """Return the layer that a tensor belongs to; None for those outside the layers."""
    return int(tensor.split(".")[1]) if tensor.startswith("layers.") else None


def line_scan(run: Run, update: Update, batch: Batch) -> tuple[LinePoint, ...]:
    """Measure losses along θ + α·Δθ, α from 0 to 2: is the step too long, or the direction off?"""
    losses = _Losses(run, batch)
    return tuple(LinePoint(alpha, *losses.at(update.moved(alpha, alpha))) for alpha in ALPHAS)
