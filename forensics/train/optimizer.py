"""AdamW, the one optimizer. Its arithmetic is torch's; which implementation runs is part of a run's identity.

With t = updates + 1, g̃ the clipped gradient, m and v the moments, η the learning rate, λ the decay:

    m ← β₁m + (1−β₁)g̃        v ← β₂v + (1−β₂)g̃²        m̂ = m/(1−β₁ᵗ)    v̂ = v/(1−β₂ᵗ)
    θ ← θ·(1 − ηλ) − η·m̂/(√v̂ + ε)                      (arXiv 1711.05101; norms and biases: λ = 0)
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from forensics.train.schedule import StepPolicy
from forensics.train.state import TrainState


def decayed_names(names: Iterable[str], decay_embeddings: bool) -> frozenset[str]:
    """Parameters that weight decay holds for: matrices, and embeddings where the recipe says so."""
    return frozenset(
        name for name in names
        if name.endswith(".weight") and "norm" not in name
        and (decay_embeddings or name not in ("embed.weight", "positions.weight", "unembed.weight"))
    )  # fmt: skip


@torch.no_grad()
def update(
    state: TrainState, grads: dict[str, Tensor], policy: StepPolicy, decayed: frozenset[str], implementation: str
) -> None:
    """One AdamW update of parameters and moments in place; counters are the caller's."""
    for decays in (True, False):
        names = [n for n in grads if (n in decayed) == decays and n not in policy.frozen]
        if not names:
            continue
        hold = policy.update == "hold"
        params = [state.params[n] for n in names]
        device = params[0].device
        adamw(
            [p.clone() for p in params] if hold else params,
            [grads[n] for n in names],
            [state.exp_avg[n] for n in names],
            [state.exp_avg_sq[n] for n in names],
            [],
            # counts before this update; the optimizer adds one to each of them
            list(torch.full((len(names),), float(state.counters.updates), device=device).unbind()),
            foreach=implementation == "foreach",
            fused=implementation == "fused",
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


def bias_corrections(betas: tuple[float, float], updates: int) -> tuple[float, float]:
    """(1 − β₁ᵗ, 1 − β₂ᵗ) after `updates` updates."""
    return 1 - betas[0] ** updates, 1 - betas[1] ** updates
