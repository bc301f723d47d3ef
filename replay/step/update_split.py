"""One update taken apart: by tensor, by what the moments carried against what the data added, and
along its line.

For update S−1, which led to state S: Δθ = Δθ_memory + Δθ_data, where Δθ_memory is the same update
with a gradient of 0. Losses are measured on b_S, the batch that showed the spike, and on the probe
set P.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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

ALPHAS = tuple(np.linspace(0.0, 2.0, 9).tolist())
PROBES = 16  # sequences


@dataclass
class Update:
    """θ before, and the two parts of Δθ, by tensor."""

    theta: dict[str, Tensor]
    memory: dict[str, Tensor]
    data: dict[str, Tensor]

    def moved(self, memory: float, data: float, only: set[str] | None = None) -> dict[str, Tensor]:
        """θ + memory·Δθ_memory + data·Δθ_data, on the tensors of `only`, or on all."""
        return {
            n: t
            if only is not None and n not in only
            else t + memory * self.memory[n] + data * self.data[n]
            for n, t in self.theta.items()
        }


@torch.no_grad()
def split_update(
    before: TrainState, after: TrainState, policy: StepPolicy, model: StepModel, stream: BatchStream
) -> Update:
    """Of the update that took `before` to `after`; `before` is left as it was."""
    still = before.clone()
    optimizer_update(
        still,
        {n: torch.zeros_like(p) for n, p in still.params.items()},
        policy,
        model.decayed,
        model.optimizer,
    )
    memory = {n: still.params[n] - before.params[n] for n in before.params}
    whole = {n: after.params[n] - before.params[n] for n in before.params}
    return Update(before.params, memory, {n: whole[n] - memory[n] for n in whole})


class _Losses:
    """(loss on b_S, loss on P or None) at given parameters."""

    def __init__(self, run: Run, batch: Batch) -> None:
        self.run, self.batch = run, batch
        self.probe = Probe(run, PROBES).batch

    def __call__(self, params: dict[str, Tensor]) -> tuple[float, float | None]:
        own = self._mean(params, self.batch)
        return own, self._mean(params, self.probe) if self.probe is not None else None

    def _mean(self, params: dict[str, Tensor], batch: Batch) -> float:
        ce = token_losses(
            params,
            batch,
            self.run.model,
            self.run.header.precision,
            min(self.run.model.micro_batch, len(batch.tokens)),
        )
        weight = batch.weight.to(ce.device)
        return float(sums.total(ce * weight)) / max(
            float(weight.sum()), 1e-30
        )  # a batch masked whole has loss 0


def layer_blame(
    run: Run, update: Update, batch: Batch, progress: ProgressCallback = silent
) -> dict[str, Any]:
    """The change of loss on b_S and P with one tensor's update alone, with all but it, and by
    memory and data.
    """
    measure = _Losses(run, batch)
    base, whole = measure(update.theta), measure(update.moved(1, 1))
    memory, data = measure(update.moved(1, 0)), measure(update.moved(0, 1))
    rows: list[dict[str, Any]] = []
    names = list(update.theta)
    for i, name in enumerate(names):
        alone = measure(update.moved(1, 1, {name}))
        without = measure(update.moved(1, 1, set(names) - {name}))
        layer = int(name.split(".")[1]) if name.startswith("layers.") else None
        rows.append(
            {
                "tensor": name,
                "layer": layer,
                "alone_batch": alone[0] - base[0],
                "alone_probe": _minus(alone[1], base[1]),
                "without_batch": without[0] - base[0],
                "without_probe": _minus(without[1], base[1]),
            }
        )
        progress(i + 1, len(names), name)
    rows.sort(key=lambda row: -abs(row["alone_batch"]))
    return {
        "rise_batch": whole[0] - base[0],
        "rise_probe": _minus(whole[1], base[1]),
        "memory_batch": memory[0] - base[0],
        "memory_probe": _minus(memory[1], base[1]),
        "data_batch": data[0] - base[0],
        "data_probe": _minus(data[1], base[1]),
        "tensors": rows,
    }


def line_scan(run: Run, update: Update, batch: Batch) -> list[dict[str, Any]]:
    """Losses along θ + α·Δθ, α from 0 to 2: is the step too long, or the direction wrong?"""
    measure = _Losses(run, batch)
    rows = []
    for alpha in ALPHAS:
        own, probe = measure(update.moved(alpha, alpha))
        rows.append({"alpha": alpha, "batch": own, "probe": probe})
    return rows


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
