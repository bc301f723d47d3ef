"""A probe loss as a differentiable number, by the training step's own forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from forensics.errors import ForensicsError
from forensics.model.step_model import StepModel
from forensics.step.batch import Batch
from forensics.step.observer import Site
from forensics.step.policy import StepPolicy
from forensics.step.result import StepResult
from forensics.step.state import TrainState
from forensics.train.advance import advance, token_losses
from forensics.train.run import Run
from replay.compare.probe_sequences import Probe

# a differentiable number of the parameters, such as a probe loss
TargetFunction = Callable[[dict[str, Tensor]], Tensor]


class _Gradients:
    """An observer that keeps a step's gradients."""

    wants: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.grads: dict[str, Tensor] = {}

    def begin(self, state: TrainState, policy: StepPolicy) -> None: ...
    def tap(self, site: Site, x: Tensor) -> None: ...
    def end(self, state: TrainState, result: StepResult) -> None: ...

    def gradients(self, state: TrainState, grads: dict[str, Tensor], result: StepResult) -> None:
        self.grads = grads


# a forward and backward that moves nothing: of these fields only z_loss, frozen, precision and
# update are read
_MEASURE = StepPolicy(
    0.0, (0.0, 0.0), 1.0, 0.0, 0.0, 0.0, frozenset(), "fp32", "zero", False, False
)


class _MeanLoss(torch.autograd.Function):
    """The loss of a batch with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, batch: Batch, model: StepModel, names: tuple[str, ...], *tensors: Tensor
    ) -> Tensor:  # type: ignore[override]
        state = TrainState(dict(zip(names, (tensor.detach() for tensor in tensors))), {}, {})
        watch = _Gradients()
        with torch.enable_grad():
            result = advance(state, batch, _MEASURE, model, watch)
        assert result.loss is not None
        ctx.grads = [watch.grads[name] for name in names]
        return torch.tensor(result.loss, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        scale = float(grad)
        return (None, None, None, *(tensor_grad * scale for tensor_grad in ctx.grads))


def probe_target(run: Run, batch: Batch) -> TargetFunction:
    """Return the mean loss on the counted tokens of `batch`, nats, as a differentiable function.

    It goes a micro-batch at a time. Errors: missing, where no token counts.
    """
    counted = float(batch.weight.sum())
    if not counted:
        raise ForensicsError(
            "missing", "wanted probe sequences with counted tokens, found none", "give a probe set"
        )
    probe = replace(batch, denominator=counted)
    B = len(batch.tokens)
    size = next(n for n in range(min(run.model.micro_batch, B), 0, -1) if B % n == 0)
    model = replace(run.model, micro_batch=size)

    def target(params: dict[str, Tensor]) -> Tensor:
        if torch.is_grad_enabled() and any(param.requires_grad for param in params.values()):
            return _MeanLoss.apply(probe, model, tuple(params), *params.values())
        ce = token_losses(params, probe, model, "fp32")
        return (ce.double() * probe.weight.to(ce.device)).sum() / counted

    return target


def held_out_batch(run: Run) -> Batch:
    """Return the run's held-out sequences. Errors: missing, where it holds none out."""
    batch = Probe(run).batch
    if batch is None:
        raise ForensicsError(
            "missing",
            f"{run.name} holds no sequences out, so there is nothing to measure it on",
            "train with --set data.held_out=64, or give a target",
        )
    return batch
