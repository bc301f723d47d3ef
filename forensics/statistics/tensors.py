"""Statistics of parameter tensors around one update.

g is the gradient before clipping, g̃ after it, m and v the moments, v̂ the bias-corrected second
moment, Δθ the update, η the learning rate, λ the weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class TensorNumbers:
    """What one pass before the update and one after it found of one tensor."""

    elements: int
    grad_norm: float  # ‖g‖₂
    clip_scale: float  # g̃ = clip_scale · g
    bias_before: float  # 1 − β₂^updates; 0 at the first update
    bias_after: float  # 1 − β₂^(updates + 1)
    applied: bool  # whether the update was applied
    before: dict[str, float]  # grad_max; where bias_before > 0: second = Σ v, bursts
    # ‖θ‖ as theta, ‖m‖, ‖v‖, seen = elements with v > 0; where applied: ‖Δθ‖ as delta, ‖Δθ + ηλθ‖
    # as free, ratio = Σ g̃²/max(v, …)
    after: dict[str, float]


@dataclass(frozen=True)
class TensorStatistic:
    """One column of the table `tensors`; `value` returns None where it is not defined."""

    column: str
    unit: str
    meaning: str
    value: Callable[[TensorNumbers], float | None]


def _staleness(tensor: TensorNumbers) -> float | None:
    if tensor.bias_before <= 0:
        return None
    total = tensor.before["second"] / tensor.bias_before
    # A second moment of exactly 0 has seen no gradient yet: there is nothing to be out of date.
    return tensor.grad_norm * tensor.clip_scale / math.sqrt(total) if total != 0 else None


def _bursts(tensor: TensorNumbers) -> float | None:
    return int(tensor.before["bursts"]) / tensor.elements if tensor.bias_before > 0 else None


def _over_parameters(key: str) -> Callable[[TensorNumbers], float | None]:
    """Return ‖after[key]‖ / ‖θ‖; a bias that is still 0 has no ratio."""

    def ratio(tensor: TensorNumbers) -> float | None:
        if not tensor.applied or not tensor.after["theta"]:
            return None
        return tensor.after[key] / tensor.after["theta"]

    return ratio


def _rms_t(tensor: TensorNumbers) -> float | None:
    if not tensor.applied:
        return None
    seen, total = int(tensor.after["seen"]), tensor.after["ratio"] * tensor.bias_after
    return math.sqrt(total / seen) if seen else None


STATISTICS: tuple[TensorStatistic, ...] = (
    TensorStatistic("grad_norm", "", "‖g‖₂ before clipping", lambda tensor: tensor.grad_norm),
    TensorStatistic(
        "grad_rms",
        "",
        "√mean g²; near Adam's ε is a warning (arXiv 2309.14322)",
        lambda tensor: tensor.grad_norm / math.sqrt(tensor.elements),
    ),
    TensorStatistic("grad_max", "", "max |g|", lambda tensor: tensor.before["grad_max"]),
    TensorStatistic("param_norm", "", "‖θ_s‖₂", lambda tensor: tensor.after["theta"]),
    TensorStatistic(
        "update_norm",
        "",
        "‖Δθ‖₂ with decay",
        lambda tensor: tensor.after["delta"] if tensor.applied else None,
    ),
    TensorStatistic("update_ratio", "", "‖Δθ‖ / ‖θ‖", _over_parameters("delta")),
    TensorStatistic(
        "update_ratio_no_decay",
        "",
        "‖Δθ + ηλθ‖ / ‖θ‖: the update without weight decay",
        _over_parameters("free"),
    ),
    TensorStatistic(
        "rms_t",
        "",
        "√mean g̃²/max(v̂, ε²), v̂ after the update, over v > 0; alarm 2.3 (arXiv 2304.13013)",
        _rms_t,
    ),
    TensorStatistic(
        "staleness",
        "",
        "‖g̃‖ / √Σ v̂ before the update; NULL at the first update",
        _staleness,
    ),
    TensorStatistic(
        "gss_share",
        "share",
        "elements with v̂ > 0 before and g̃² > 5000·v̂ (SPAM, arXiv 2501.06842)",
        _bursts,
    ),
    TensorStatistic(
        "unseen_share",
        "share",
        "elements with v = 0 after the update: never touched",
        lambda tensor: 1 - int(tensor.after["seen"]) / tensor.elements,
    ),
    TensorStatistic("exp_avg_norm", "", "‖m‖₂ after the update", lambda t: t.after["m"]),
    TensorStatistic("exp_avg_sq_norm", "", "‖v‖₂ after the update", lambda t: t.after["v"]),
)
