"""The learning rate at each step and the run's own policy, as pure functions of the counters.

At schedule step k of n, with w = warm-up steps, f = min_lr and
x = (k − w) / (n − w), clamped to [0, 1]:

    lr(k) = peak · min(1, (k+1)/w) · decay(k)
    constant  decay = 1
    cosine    decay = f + (1 − f)·(1 + cos πx)/2
    linear    decay = 1 − (1 − f)·x
    wsd       decay = 1 until k = n − d, then 1 − (1 − f)·(k − (n − d))/d, d = decay_steps
"""

from __future__ import annotations

import math

from forensics.config import Train
from forensics.step.policy import Policy, StepPolicy
from forensics.step.state import Counters


def learning_rate(k: int, train: Train) -> float:
    """Compute the learning rate of schedule step k (from 0).

    The formulas stand at the top of this module.
    """
    n, w, f = train.schedule_steps or train.steps, train.warmup, train.min_lr
    ramp = min(1.0, (k + 1) / w) if w else 1.0
    x = min(1.0, max(0.0, (k - w) / (n - w))) if n > w else 0.0
    if train.schedule == "cosine":
        decay = f + (1 - f) * (1 + math.cos(math.pi * x)) / 2
    elif train.schedule == "linear":
        decay = 1 - (1 - f) * x
    elif train.schedule == "wsd":
        d = train.decay_steps or max(1, n // 5)
        decay = 1 - (1 - f) * min(1.0, max(0.0, (k - (n - d)) / d))
    else:
        decay = 1.0
    return train.learning_rate * ramp * decay


def own_policy(train: Train, precision: str) -> Policy:
    """Build the run's own policy; `precision` is resolved for its device."""

    def policy(counters: Counters) -> StepPolicy:
        return StepPolicy(
            learning_rate=learning_rate(counters.schedule, train),
            betas=train.betas,
            eps=train.eps,
            weight_decay=train.weight_decay,
            clip=train.clip,
            z_loss=train.z_loss,
            frozen=frozenset(),
            precision=precision,
            update="apply",
            advance_schedule=True,
            skip_step=train.skip_step,
        )

    return policy
