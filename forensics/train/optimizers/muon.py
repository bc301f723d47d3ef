"""Muon for matrices, AdamW for everything else (Keller Jordan 2024; arXiv 2502.16982).

The variant is that of torch.optim.Muon: momentum as a running mean, Nesterov, five quintic
Newton–Schulz steps in bfloat16, decoupled decay. With μ the momentum, for a matrix of A × B that is
no embedding, positions or unembedding:

    M ← μM + (1−μ)g̃        N = μM + (1−μ)g̃        O = NS(N / max(‖N‖, 1e-7))
    θ ← θ·(1 − ηλ) − η·s·O

where s is `match_rms` 0.2·√max(A, B), which gives O the size of an AdamW step so that both share a
learning rate (Moonlight), or `original` √max(1, A/B); η of matrices is `matrix_rate` times the
learning rate. Queries, keys and values are matrices by themselves. A state in float64 is
orthogonalised in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from forensics.step.policy import StepPolicy
from forensics.step.state import TrainState
from forensics.train.optimizers import adamw
from forensics.train.optimizers.rule import Adjoint, Moments, UpdateRule

# of the quintic a·x + b·x³ + c·x⁵, steep at 0 (Keller Jordan, Muon)
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
SMALLEST = 1e-7  # norm that a matrix is divided by at least


def orthogonalized(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Return roughly UVᵀ of a matrix USVᵀ, computed in `dtype`; singular values near 1."""
    a, b, c = QUINTIC
    x = matrix.to(dtype)
    tall = matrix.shape[0] > matrix.shape[1]
    if tall:
        x = x.T
    x = x / x.norm().clamp(min=SMALLEST)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


@torch.no_grad()
def update(
    state: TrainState,
    grads: dict[str, Tensor],
    policy: StepPolicy,
    decayed: frozenset[str],
    implementation: str,
) -> None:
    """Apply one update in place; `implementation` is that of AdamW's part."""
    matrices = [name for name, x in grads.items() if policy.orthogonalizes(name, x.ndim)]
    others = {name: grad for name, grad in grads.items() if name not in matrices}
    if others:
        adamw.update(state, others, policy, decayed, implementation)
    keep = 1 - policy.momentum
    for name in matrices:
        grad, m, theta = grads[name], state.exp_avg[name], state.params[name]
        rate = policy.rate(name, theta.ndim)
        m.lerp_(grad, keep)
        if policy.update == "hold":
            continue
        aim = grad.lerp(m, policy.momentum)
        dtype = torch.bfloat16 if aim.dtype == torch.float32 else aim.dtype
        direction = orthogonalized(aim, dtype)
        if name in decayed:
            theta.mul_(1 - rate * policy.weight_decay)
        theta.add_(direction, alpha=-rate * _size(policy, theta))


def pull_back(
    adjoint: Adjoint,
    moments: Moments,
    grads: dict[str, Tensor],
    updates: int,
    policy: StepPolicy,
    decayed: frozenset[str],
) -> dict[str, Tensor]:
    """Apply the transposed Jacobian of `update`, Newton–Schulz's by autograd in the state's type.

    With N̄ = −η·s·(∂O/∂N)ᵀθ̄:

        m̄ ← m̄ + μN̄      ḡ = (1−μ)N̄ + (1−μ)m̄      then    θ̄ ← θ̄(1−ηλ)    m̄ ← μm̄
    """
    matrices = [name for name, x in grads.items() if policy.orthogonalizes(name, x.ndim)]
    others = {name: grad for name, grad in grads.items() if name not in matrices}
    gradients = adamw.pull_back(adjoint, moments, others, updates, policy, decayed)
    mu = policy.momentum
    for name in matrices:
        theta, m, grad = adjoint.params[name], adjoint.exp_avg[name], grads[name]
        rate = policy.rate(name, theta.ndim)
        direct = torch.zeros_like(grad)
        if policy.update != "hold":
            aim = grad.lerp(moments[0][name], mu).requires_grad_(True)
            with torch.enable_grad():
                direction = orthogonalized(aim, aim.dtype)
            (direct,) = torch.autograd.grad(direction, aim, theta * (-rate * _size(policy, theta)))
            m.add_(direct, alpha=mu)
            theta.mul_(1 - rate * (policy.weight_decay if name in decayed else 0.0))
        gradients[name] = direct.mul(1 - mu).add_(m, alpha=1 - mu)
        m.mul_(mu)
    return {name: gradients[name] for name in grads}


def _size(policy: StepPolicy, matrix: Tensor) -> float:
    rows, columns = matrix.shape
    if policy.matrix_scale == "original":
        return math.sqrt(max(1, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns))


RULE = UpdateRule(
    "Muon",
    "exp_avg: the mean of g̃ by momentum, for matrices; both means of AdamW elsewhere",
    update,
    pull_back,
)
