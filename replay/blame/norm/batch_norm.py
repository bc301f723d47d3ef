"""The gradient norm of a batch at a state, which sequences carry it, and its own gradient.

    gradient = BatchNorm(run, state.counters)
    gradient.norm(params, batch)                 ‖g‖₂ before clipping
    gradient.by_token(params, batch)             d‖g‖/d weight of each target, (B, T)
    gradient.target(batch)                       ‖g(batch; θ)‖ as a differentiable number of θ

‖g‖ is homogeneous in the weights of the sequences, so the derivatives by them sum to ‖g‖ itself
(Euler): sequence i carries ⟨g_i, g⟩/‖g‖ of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from forensics.step.batch import Batch
from forensics.step.observer import Site
from forensics.step.policy import StepPolicy
from forensics.step.result import StepResult
from forensics.step.state import Counters, TrainState
from forensics.train.advance import advance
from forensics.train.run import Run
from replay.blame.adjoint import Smooth, directional
from replay.blame.probe_target import TargetFunction

Params = dict[str, Tensor]


class _Measured(NamedTuple):
    norm: float
    grads: Params


class _Gradients:
    """An observer that keeps a step's gradients."""

    wants: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.grads: Params = {}

    def begin(self, state: TrainState, policy: StepPolicy) -> None: ...
    def tap(self, site: Site, x: Tensor) -> None: ...
    def end(self, state: TrainState, result: StepResult) -> None: ...

    def gradients(self, state: TrainState, grads: Params, result: StepResult) -> None:
        self.grads = grads


class BatchNorm:
    """Measures gradient norms as a run's step at these counters does: its z-loss, frozen tensors,
    precision.
    """

    def __init__(self, run: Run, counters: Counters) -> None:
        self.run = run
        self.policy = replace(run.policy(counters), update="zero", skip_step=False)
        self.smooth = Smooth(run.shape, run.model.device)
        self.passes = 0  # forward and backward of a batch

    def norm(self, params: Params, batch: Batch) -> float:
        """Return ‖g‖₂ of the batch, before clipping."""
        return self._measure(params, batch).norm

    def by_token(self, params: Params, batch: Batch) -> Tensor:
        """Return (B, T): by how much ‖g‖₂ moves with each target's weight, to first order."""
        direction = self._direction(params, batch)
        spare = {name: torch.zeros_like(param) for name, param in params.items()}
        return self._along(params, batch, direction, spare) * batch.weight.to(self.run.model.device)

    def target(self, batch: Batch) -> TargetFunction:
        """Return ‖g(batch; θ)‖₂ as a function that can be differentiated by θ once."""

        def target(params: Params) -> Tensor:
            if torch.is_grad_enabled() and any(p.requires_grad for p in params.values()):
                plain = {name: param.detach() for name, param in params.items()}
                norm, grads = self._measure(plain, batch)
                direction = {name: grad / norm for name, grad in grads.items()}
                hessian = {name: torch.zeros_like(param) for name, param in plain.items()}
                # out here, for torch takes no forward derivatives inside a function's forward
                self._along(plain, batch, direction, hessian)
                return _Known.apply(norm, tuple(hessian.values()), *params.values())
            return torch.tensor(self.norm(params, batch), dtype=torch.float64)

        return target

    def _measure(self, params: Params, batch: Batch) -> _Measured:
        self.passes += 1
        watch = _Gradients()
        state = TrainState({name: param.detach() for name, param in params.items()}, {}, {})
        with torch.enable_grad():
            result = advance(state, batch, self.policy, self.run.model, watch)
        assert result.grad_norm is not None, "a step of update zero has a gradient"
        return _Measured(result.grad_norm, watch.grads)

    def _direction(self, params: Params, batch: Batch) -> Params:
        """Return g/‖g‖."""
        norm, grads = self._measure(params, batch)
        return {name: grad / norm if norm > 0 else grad for name, grad in grads.items()}

    def _along(self, params: Params, batch: Batch, direction: Params, hessian: Params) -> Tensor:
        """Return d ℓ of each token along `direction`; add the Hessian times it to `hessian`."""
        self.passes += 2
        return directional(
            params,
            batch,
            direction,
            self.policy.z_loss,
            hessian,
            self.run.model,
            self.smooth,
        )


class _Known(torch.autograd.Function):
    """A number whose gradient is known: here ‖g(θ)‖, with the Hessian times g/‖g‖."""

    @staticmethod
    def forward(ctx: Any, number: float, gradient: tuple[Tensor, ...], *tensors: Tensor) -> Tensor:  # type: ignore[override]
        ctx.grads = gradient
        return torch.tensor(number, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        scale = float(grad)
        return (None, None, *(tensor_grad * scale for tensor_grad in ctx.grads))
