"""AdamW by torch's arithmetic (arXiv 1711.05101); its implementation is part of a run's identity.

With t = updates + 1, g̃ the clipped gradient, m and v the moments, η the learning rate, λ the
decay (0 for a tensor that does not decay):

    m ← β₁m + (1−β₁)g̃        v ← β₂v + (1−β₂)g̃²        m̂ = m/(1−β₁ᵗ)    v̂ = v/(1−β₂ᵗ)
    θ ← θ·(1 − ηλ) − η·m̂/(√v̂ + ε)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from forensics.step.policy import StepPolicy
from forensics.step.state import TrainState
from forensics.train.optimizers.rule import Adjoint, Moments, UpdateRule


@torch.no_grad()
def update(
    state: TrainState,
    grads: dict[str, Tensor],
    policy: StepPolicy,
    decayed: frozenset[str],
    implementation: str,
) -> None:
    """Apply one AdamW update in place."""
    for decays in (True, False):
        names = [name for name in grads if (name in decayed) == decays]
        if not names:
            continue
        hold, fused = policy.update == "hold", implementation == "fused"
        params = [state.params[name] for name in names]
        device = params[0].device
        adamw(
            [param.clone() for param in params] if hold else params,
            [grads[name] for name in names],
            [state.exp_avg[name] for name in names],
            [state.exp_avg_sq[name] for name in names],
            [],
            # counts before this update; the optimizer adds one to each of them, and only the fused
            # one reads them on the GPU
            list(
                torch.full(
                    (len(names),), float(state.counters.updates), device=device if fused else "cpu"
                ).unbind()
            ),
            foreach=implementation == "foreach",
            fused=fused,
            capturable=False,
            differentiable=False,
            amsgrad=False,
            maximize=False,
            beta1=policy.betas[0],
            beta2=policy.betas[1],
            lr=policy.learning_rate,
            weight_decay=policy.weight_decay if decays else 0.0,
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
    """Apply the transposed Jacobian of `update`. With r = √v̂:

        m̄ ← m̄ − η·θ̄ / ((1−β₁ᵗ)(r+ε))       v̄ ← v̄ + η·θ̄·m̂ / (2(1−β₂ᵗ)·r·(r+ε)²)    (θ held: neither)
        ḡ = (1−β₁)m̄ + 2(1−β₂)·g̃·v̄      then    θ̄ ← θ̄(1−ηλ)    m̄ ← β₁m̄    v̄ ← β₂v̄

    Where v = 0 no gradient ever came and m = 0 too: v̄'s term is 0 there, not 0/0.
    """
    (beta1, beta2), rate = policy.betas, policy.learning_rate
    first, second = bias_corrections(policy.betas, updates + 1)
    gradients = {}
    for name, grad in grads.items():
        theta, m, v = adjoint.params[name], adjoint.exp_avg[name], adjoint.exp_avg_sq[name]
        if policy.update != "hold":
            root = (moments[1][name] / second).sqrt_()
            slope = theta * (-rate / first) / (root + policy.eps)  # dθ̄/dm
            m.add_(slope)
            share = (moments[0][name] / root).masked_fill_(root == 0, 0.0)
            v.addcmul_(slope.mul_(share), 1 / (root + policy.eps), value=-0.5 / second)
            theta.mul_(1 - rate * (policy.weight_decay if name in decayed else 0.0))
        gradients[name] = (m * (1 - beta1)).addcmul_(grad, v, value=2 * (1 - beta2))
        m.mul_(beta1)
        v.mul_(beta2)
    return gradients


def bias_corrections(betas: tuple[float, float], updates: int) -> tuple[float, float]:
    """(1 − β₁ᵗ, 1 − β₂ᵗ) after `updates` updates."""
    return 1 - betas[0] ** updates, 1 - betas[1] ** updates


RULE = UpdateRule("AdamW", "the means of g̃ and of g̃²", update, pull_back)
