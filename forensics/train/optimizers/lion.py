"""Lion (arXiv 2302.06675, algorithm 2): the sign of an interpolated momentum, and decoupled decay.

    θ ← θ·(1 − ηλ) − η·sign(β₁m + (1−β₁)g̃)        m ← β₂m + (1−β₂)g̃

β are `train.betas`; the paper's are 0.9 and 0.99. Order and arithmetic are those of LionW in
allenai/OLMo olmo/optim.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
    """Apply one Lion update in place; it has one implementation."""
    beta1, beta2 = policy.betas
    for name, grad in grads.items():
        m, theta = state.exp_avg[name], state.params[name]
        if policy.update != "hold":
            direction = m * beta1 + grad * (1 - beta1)
            if name in decayed:
                theta.mul_(1 - policy.learning_rate * policy.weight_decay)
            theta.add_(direction.sign_(), alpha=-policy.learning_rate)
        m.mul_(beta2).add_(grad, alpha=1 - beta2)


@torch.no_grad()
def pull_back(
    adjoint: Adjoint,
    moments: Moments,
    grads: dict[str, Tensor],
    updates: int,
    policy: StepPolicy,
    decayed: frozenset[str],
) -> dict[str, Tensor]:
    """Apply the transposed Jacobian of `update`, where it has one: a sign's derivative is 0.

    ḡ = (1−β₂)m̄      then    θ̄ ← θ̄(1−ηλ)    m̄ ← β₂m̄
    """
    beta2, gradients = policy.betas[1], {}
    for name in grads:
        m = adjoint.exp_avg[name]
        if policy.update != "hold" and name in decayed:
            adjoint.params[name].mul_(1 - policy.learning_rate * policy.weight_decay)
        gradients[name] = m * (1 - beta2)
        m.mul_(beta2)
    return gradients


RULE = UpdateRule(
    "Lion",
    "exp_avg: the mean of g̃ by β₂",
    update,
    pull_back,
    no_influence="Lion moves parameters by a sign, whose derivative is 0 almost everywhere",
)
