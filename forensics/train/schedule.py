"""The learning rate at each step and the run's own policy, as pure functions of the counters.

At schedule step k (from 0) of n, with w = warm-up steps, s = decay_start (or w), f = min_lr,
a = warmup_from, u = k + decay_base and x = (u − s) / (n − s), clamped to [0, 1]:

    lr(k) = peak · ramp(k) · decay(k)       ramp = min(1, a + (1 − a)·(k + warmup_base)/w)
    constant            decay = 1
    cosine              decay = f + (1 − f)·(1 + cos πx)/2
    half_cosine         decay = f + (1 − f)·(1 + cos π(1+x)/2): a cosine's second half, from 1
    linear              decay = 1 − (1 − f)·x
    inverse_sqrt        decay = f + (1 − f)·√(w/u) where u > w, else 1
    inverse_sqrt_floor  decay = max(f, √(w/u)) where u > w, else 1; f beyond n
    wsd                 decay = 1 until u = n − d, then f + (1 − f)·shape(y), y = (u − (n − d))/d,
                        d = decay_steps; shape: linear 1 − y, cosine (1 + cos πy)/2, sqrt 1 − √y,
                        exponential 2^(1−y) − 1
    cosine_linear       cosine until u = n − d, then in a line from there to tail_min_lr

What other trainers do in these terms (a, warmup_base, decay_base):

    ours                                                           0, 1, 0
    allenai/OLMo olmo/optim.py                                     warmup_min_lr / peak or 0.1, 1, 1
    allenai/OLMo-core olmo_core/optim/scheduler.py                 warmup_min_lr / peak, 1, 1
    karpathy/nanoGPT train.py                                      1 / (w + 1), 0, 0
    NVIDIA/Megatron-LM megatron/core/optimizer_param_scheduler.py  lr_warmup_init / peak, 0, 0
    huggingface/nanotron nanotron/helpers.py                       0, 0, 0
    Lightning-AI/litgpt litgpt/pretrain.py, A micro-batches        0, 1 − 1/A, 1 − 1/A
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
    return train.learning_rate * _ramp(k, train) * _decay(k + train.decay_base, train)


def _ramp(k: int, train: Train) -> float:
    if not train.warmup:
        return 1.0
    begin = train.warmup_from
    return min(1.0, begin + (1 - begin) * ((k + train.warmup_base) / train.warmup))


def _decay(u: float, train: Train) -> float:
    n, w, f = train.schedule_steps or train.steps, train.warmup, train.min_lr
    s = w if train.decay_start is None else train.decay_start
    x = _share(u, s, n)
    d = train.decay_steps or max(1, n // 5)
    match train.schedule:
        case "cosine":
            return _cosine(x, f)
        case "half_cosine":
            return f + (1 - f) * (1 + math.cos(math.pi * (1 + x) / 2))
        case "cosine_linear":
            y = _share(u, n - d, n)
            last = _cosine(_share(n - d, s, n), f)
            return last + (train.tail_min_lr - last) * y if y > 0 else _cosine(x, f)
        case "linear":
            return 1 - (1 - f) * x
        case "inverse_sqrt":
            return f + (1 - f) * math.sqrt(w / u) if u > w else 1.0
        case "inverse_sqrt_floor":
            if u > n:
                return f
            return max(f, math.sqrt(max(w, 1) / u)) if u > max(w, 1) else 1.0
        case "wsd":
            y = _share(u, n - d, n)
            return (
                1 - (1 - f) * y if train.decay_shape == "linear" else f + (1 - f) * _end(y, train)
            )
        case _:
            return 1.0


def _share(u: float, first: float, last: float) -> float:
    """Return how much of first:last lies before u, from 0 to 1; 0 where there is none of it."""
    return min(1.0, max(0.0, (u - first) / (last - first))) if last > first else 0.0


def _cosine(x: float, f: float) -> float:
    return f + (1 - f) * (1 + math.cos(math.pi * x)) / 2


def _end(y: float, train: Train) -> float:
    """Return the height of an end of wsd that is no line, from 1 to 0."""
    if train.decay_shape == "cosine":
        return (1 + math.cos(math.pi * y)) / 2
    return 1 - math.sqrt(y) if train.decay_shape == "sqrt" else 2 ** (1 - y) - 1


def own_policy(train: Train, precision: str) -> Policy:
    """Build the run's own policy; `precision` is resolved for its device."""

    def policy(counters: Counters) -> StepPolicy:
        early = train.clip_warmup_after <= counters.schedule < train.clip_warmup
        return StepPolicy(
            learning_rate=learning_rate(counters.schedule, train),
            betas=train.betas,
            eps=train.eps,
            weight_decay=train.weight_decay,
            clip=train.clip * (train.clip_warmup_factor if early else 1.0),
            clip_eps=train.clip_eps,
            z_loss=train.z_loss,
            frozen=frozenset(),
            precision=precision,
            update="apply",
            advance_schedule=True,
            skip_step=train.skip_step,
            update_rule=train.update_rule,
            momentum=train.momentum,
            matrix_scale=train.matrix_scale,
            matrix_rate=train.matrix_rate,
        )

    return policy
