"""NAdam with decoupled decay, by torch's arithmetic (Dozat 2016; torch.optim.NAdam).

With t = updates + 1, μₜ = β₁(1 − ½·0.96^(ψt)), Pₜ = Π μᵢ over i ≤ t and D = √(v/(1−β₂ᵗ)) + ε:

    m ← β₁m + (1−β₁)g̃        v ← β₂v + (1−β₂)g̃²
    θ ← θ·(1 − ηλ) − η·(1−μₜ)/(1−Pₜ)·g̃/D − η·μₜ₊₁/(1−Pₜ₊₁)·m/D

The product P is a function of t, so it is no part of the state.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.nadam import nadam

from forensics.step.policy import StepPolicy
from forensics.step.state import TrainState
from forensics.train.optimizers.adamw import bias_corrections
from forensics.train.optimizers.rule import Adjoint, Moments, UpdateRule

MOMENTUM_DECAY = 4e-3  # ψ, per update: Dozat's and torch's
NOTHING = 2.0**-60  # a product below this leaves 1 − P at 1 in float64


@torch.no_grad()
def update(
    state: TrainState,
    grads: dict[str, Tensor],
    policy: StepPolicy,
    decayed: frozenset[str],
    implementation: str,
) -> None:
    """Apply one NAdamW update in place; torch has no fused one, so `fused` is its foreach."""
    product = _product(policy.betas[0], state.counters.updates)
    for decays in (True, False):
        names = [name for name in grads if (name in decayed) == decays]
        if not names:
            continue
        params = [state.params[name] for name in names]
        count = len(names)
        nadam(
            [param.clone() for param in params] if policy.update == "hold" else params,
            [grads[name] for name in names],
            [state.exp_avg[name] for name in names],
            [state.exp_avg_sq[name] for name in names],
            list(torch.full((count,), product, dtype=torch.float64).unbind()),
            list(torch.full((count,), float(state.counters.updates)).unbind()),
            decoupled_weight_decay=True,
            foreach=implementation != "loop",
            beta1=policy.betas[0],
            beta2=policy.betas[1],
            lr=policy.learning_rate,
            weight_decay=policy.weight_decay if decays else 0.0,
            momentum_decay=MOMENTUM_DECAY,
            eps=policy.eps,
        )


@torch.no_grad()
def pull_back(
    adjoint: Adjoint,
    moments: Moments,
    grads: dict[str, Tensor],
    updates: int,
    policy: StepPolicy,
    decayed: frozenset[str],
) -> dict[str, Tensor]:
    """Apply the transposed Jacobian of `update`. With n = c_g·g̃ + c_m·m, the step being n/D:

        m̄ ← m̄ − c_m·θ̄/D       v̄ ← v̄ + θ̄·n / (2(1−β₂ᵗ)·√v̂·D²)       (θ held: neither)
        ḡ = −c_g·θ̄/D + (1−β₁)m̄ + 2(1−β₂)·g̃·v̄   then   θ̄ ← θ̄(1−ηλ)   m̄ ← β₁m̄   v̄ ← β₂v̄

    Where v = 0 no gradient ever came: v̄'s term is 0 there, not 0/0.
    """
    (beta1, beta2), c = policy.betas, _coefficients(policy, updates + 1)
    second = bias_corrections(policy.betas, updates + 1)[1]
    gradients = {}
    for name, grad in grads.items():
        theta, m, v = adjoint.params[name], adjoint.exp_avg[name], adjoint.exp_avg_sq[name]
        direct = torch.zeros_like(grad)
        if policy.update != "hold":
            root = (moments[1][name] / second).sqrt_()
            slope = theta / (root + policy.eps)
            numerator = grad * c.gradient + moments[0][name] * c.momentum
            share = (numerator / root).masked_fill_(root == 0, 0.0)
            m.add_(slope, alpha=-c.momentum)
            v.addcmul_(slope * share, 1 / (root + policy.eps), value=0.5 / second)
            direct = slope.mul_(-c.gradient)
            theta.mul_(1 - policy.learning_rate * (policy.weight_decay if name in decayed else 0.0))
        gradients[name] = direct.add_(m, alpha=1 - beta1).addcmul_(grad, v, value=2 * (1 - beta2))
        m.mul_(beta1)
        v.mul_(beta2)
    return gradients


class _Coefficients(NamedTuple):
    gradient: float  # of g̃/D in the step
    momentum: float  # of m/D


def _coefficients(policy: StepPolicy, t: int) -> _Coefficients:
    beta1, rate = policy.betas[0], policy.learning_rate
    product = _product(beta1, t)
    following = _mu(beta1, t + 1)
    return _Coefficients(
        rate * (1 - _mu(beta1, t)) / (1 - product), rate * following / (1 - product * following)
    )


def _mu(beta1: float, t: int) -> float:
    return beta1 * (1.0 - 0.5 * 0.96 ** (t * MOMENTUM_DECAY))


@functools.lru_cache(4)
def _product(beta1: float, t: int) -> float:
    product = 1.0
    for i in range(1, t + 1):
        product *= _mu(beta1, i)
        if product < NOTHING:
            return 0.0
    return product


RULE = UpdateRule("NAdamW", "the means of g̃ and of g̃²", update, pull_back)
