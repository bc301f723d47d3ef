"""Statistics of each parameter tensor around one update: in cache-sized stretches on CPU, in two
kernels on a GPU.

One pass before the update and one after it find a few numbers of each tensor; the entries of
statistics/tensors.py, where the symbols are defined, make the columns of them. Nothing is read from
a GPU until `columns`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from forensics.statistics.tensors import STATISTICS, TensorNumbers
from forensics.step import sums
from forensics.step.gpu_kernels import load_kernels

KERNELS = "forensics.observe.tensor_kernels"

if TYPE_CHECKING:
    from forensics.step.policy import StepPolicy
    from forensics.step.state import TrainState

GSS = 5000.0  # g̃² over v̂ that counts as a spike (SPAM, arXiv 2501.06842)
Numbers = dict[str, float]  # of one tensor


class TensorProbe:
    """Built between gradient and update; `measure` after the update, then `columns`."""

    @torch.no_grad()
    def __init__(
        self,
        state: TrainState,
        grads: dict[str, Tensor],
        grad_norms: dict[str, float],
        clip_scale: float,
        policy: StepPolicy,
    ) -> None:
        self.names = list(grads)
        self.grads = grads  # the very tensors: clipping scales them in place
        self.sizes = tuple(g.numel() for g in grads.values())
        self.grad_norms = grad_norms
        self.clip_scale = clip_scale
        self.policy = policy
        self.updates = state.counters.updates
        self.kernels = load_kernels(KERNELS) if next(iter(grads.values())).is_cuda else None
        self.bias_before = 1 - policy.betas[1] ** self.updates
        self.threshold = GSS / self.bias_before if self.bias_before > 0 else math.inf
        second = [state.exp_avg_sq[name] for name in self.names]
        if self.kernels is not None:
            self.theta = dict(
                zip(
                    self.names,
                    torch._foreach_mul([state.params[name].detach() for name in self.names], 1.0),
                )
            )
            self.before: Tensor | list[Numbers] = self.kernels.before(
                list(grads.values()), second, min(self.threshold, 3e38), clip_scale
            )
        else:
            self.theta = {name: state.params[name].detach().clone() for name in self.names}
            self.before = [
                _before(g, v, self.threshold, clip_scale) for g, v in zip(grads.values(), second)
            ]

    @torch.no_grad()
    def measure(self, state: TrainState, decayed: frozenset[str], applied: bool) -> TensorProbe:
        """Look at the state that the update left; returns itself."""
        self.applied = applied
        # within what fp32 can hold, so that an extreme ε gives an extreme ratio and no error
        policy = self.policy
        floor = min(max(policy.eps * policy.eps * self._bias_after, 1e-45), 3e38)
        decays = [
            min(policy.rate(name, self.theta[name].ndim) * policy.weight_decay, 3e38)
            if name in decayed
            else 0.0
            for name in self.names
        ]
        groups = [
            [self.grads[n] for n in self.names],
            [self.theta[n] for n in self.names],
            *(
                [group[n].detach() for n in self.names]
                for group in (state.params, state.exp_avg, state.exp_avg_sq)
            ),
        ]
        if self.kernels is not None:
            self.after: Tensor | list[Numbers] = self.kernels.after(*groups, decays, floor)
        else:
            self.after = [
                _after(g, old, new, m, v, decay_of, floor, applied)
                for (g, old, new, m, v), decay_of in zip(zip(*groups), decays)
            ]
        self.theta, self.grads = {}, {}
        return self

    @property
    def _bias_after(self) -> float:
        return 1 - self.policy.betas[1] ** (self.updates + 1)

    def found(self) -> dict[str, Tensor]:
        """Return what was measured and still lies on a GPU, for `columns`."""
        both = {"tensors before": self.before, "tensors after": self.after}
        return {name: numbers for name, numbers in both.items() if isinstance(numbers, Tensor)}

    def columns(self, fetched: dict[str, Tensor] | None = None) -> dict[str, list]:
        """Columns of table `tensors`, one row a tensor; the update's own are NULL where none was
        applied.
        """
        before, after = self._numbers(fetched or self.found())
        rows = [
            self._row(name, size, *of_both)
            for name, size, *of_both in zip(self.names, self.sizes, before, after)
        ]
        return {"tensor": self.names, **{c: [row[c] for row in rows] for c in rows[0]}}

    def _numbers(self, fetched: dict[str, Tensor]) -> tuple[list[Numbers], list[Numbers]]:
        if isinstance(self.before, list) and isinstance(self.after, list):
            return self.before, self.after
        assert self.kernels is not None and isinstance(self.before, Tensor)
        kernels, device = self.kernels, str(self.before.device)
        fetched_pair = (fetched["tensors before"], fetched["tensors after"])
        before = [
            dict(zip(kernels.BEFORE, row))
            for row in kernels.by_tensor(fetched_pair[0], self.sizes, device, (0,)).tolist()
        ]
        after = [
            dict(zip(kernels.AFTER, row))
            for row in kernels.by_tensor(fetched_pair[1], self.sizes, device).tolist()
        ]
        for numbers in before:
            if numbers["nans"]:
                numbers["grad_max"] = math.nan
        for numbers in after:
            numbers |= {
                key: math.sqrt(numbers[key]) for key in ("theta", "delta", "free", "m", "v")
            }
        return before, after

    def _row(
        self, name: str, elements: int, before: Numbers, after: Numbers
    ) -> dict[str, float | None]:
        numbers = TensorNumbers(
            elements,
            self.grad_norms[name],
            self.clip_scale,
            self.bias_before,
            self._bias_after,
            self.applied,
            before,
            after,
        )
        return {statistic.column: statistic.value(numbers) for statistic in STATISTICS}


# Comparing and counting cost ten times an addition on CPU, and hardly any stretch holds what is
# looked for: one pass of cheap arithmetic tells which do, and those are counted as defined.


def _before(grad: Tensor, v: Tensor, threshold: float, clip: float) -> Numbers:
    low, high = torch.aminmax(grad)
    numbers = {"grad_max": max(-float(low), float(high))}
    if threshold == math.inf:
        return numbers
    second, bursts = [], 0
    scale = 1.0001 * clip / math.sqrt(threshold)  # beyond what rounding could hide
    spare = torch.empty(sums.stretch(grad), device=grad.device)
    for gradient, old in sums.blocks(grad, v):
        second.append(old.sum(1))
        room = torch.mul(gradient, scale, out=spare[: gradient.numel()].view(gradient.shape))
        if not float(torch.addcmul(old, room, room, value=-1, out=room).amin()) >= 0:
            # before squaring: the square of a large g is inf in fp32; a second moment of 0 is no
            # burst but a first gradient
            clipped = torch.mul(gradient, clip, out=room).square_()
            bursts += int(torch.count_nonzero((clipped > old * threshold).logical_and_(old > 0)))
    return numbers | {"second": float(sums.total(_joined(second).double())), "bursts": bursts}


def _after(
    grad: Tensor,
    old: Tensor,
    new: Tensor,
    m: Tensor,
    v: Tensor,
    decay: float,
    floor: float,
    applied: bool,
) -> Numbers:
    norms: dict[str, list[Tensor]] = {key: [] for key in ("theta", "delta", "free", "m", "v")}
    ratio, nonzero = [], 0
    spare = torch.empty(sums.stretch(grad), device=grad.device)
    for gradient, before, after, first, second in sums.blocks(grad, old, new, m, v):
        norms["theta"].append(torch.linalg.vector_norm(before, dim=1))
        norms["m"].append(torch.linalg.vector_norm(first, dim=1))
        norms["v"].append(torch.linalg.vector_norm(second, dim=1))
        least = float(second.amin())
        nonzero += second.numel() if least > 0 else int(torch.count_nonzero(second))
        if applied:
            delta = torch.sub(after, before, out=spare[: gradient.numel()].view(gradient.shape))
            norms["delta"].append(torch.linalg.vector_norm(delta, dim=1))
            if decay:
                norms["free"].append(
                    torch.linalg.vector_norm(delta.add_(before, alpha=decay), dim=1)
                )
            # where v is 0, g̃ is too: such elements add nothing, and the mean is over the others
            # v̂ = v/bias: bias is taken out of the sum
            ratio.append(
                torch.square(gradient, out=delta)
                .div_(second if least >= floor else second.clamp_min(floor))
                .sum(1)
            )
    numbers = {
        key: math.sqrt(float(sums.total(_joined(parts).double().square_())))
        for key, parts in norms.items()
        if parts
    }
    if applied:
        numbers.setdefault("free", numbers["delta"])
        numbers["ratio"] = float(sums.total(_joined(ratio).double()))
    return numbers | {"seen": nonzero}


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
