"""SkipStep's window: the last losses and gradient norms.

It is part of the state because the next step depends on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SIGMAS = 6.0  # OLMo-core: monitor and SkipStep
WINDOW = 128  # values
MINIMUM = 64  # values a window needs before it judges


@dataclass(frozen=True)
class SkipWindow:
    """Remember the last ≤ 128 finite losses and gradient norms, oldest first.

    The window is part of the state. As in OLMo-core, a finite value enters whether or not its step
    was skipped: after a lasting shift the window learns the new level within 128 steps, and
    training cannot stand still for ever. Unlike OLMo-core's first form, a loss or norm that is not
    finite is always skipped, even at step 0, and never enters: one NaN would blind the rule.
    """

    losses: tuple[float, ...] = ()
    grad_norms: tuple[float, ...] = ()

    def judge(self, loss: float, grad_norm: float) -> bool:
        """Return whether to skip the step.

        It is skipped where loss or gradient norm is not finite, or more than 6σ above its mean of ≥
        64 values.
        """
        return _above(self.losses, loss) or _above(self.grad_norms, grad_norm)

    def push(self, loss: float, grad_norm: float) -> SkipWindow:
        """Return the window after the step.

        Steps at which nothing was computed are not pushed.
        """
        return SkipWindow(_appended(self.losses, loss), _appended(self.grad_norms, grad_norm))


def _above(window: tuple[float, ...], value: float) -> bool:
    if not math.isfinite(value):
        return True
    if len(window) < MINIMUM:
        return False
    # Plain loops, not sum(): newer Pythons compensate sum(), and the same bits must come out of
    # `moments_before`.
    total = 0.0
    for earlier in window:
        total += earlier
    mean = total / len(window)
    squares = 0.0
    for earlier in window:
        squares += (earlier - mean) * (earlier - mean)
    return value - mean > SIGMAS * math.sqrt(squares / (len(window) - 1))


def _appended(window: tuple[float, ...], value: float) -> tuple[float, ...]:
    return (*window, float(value))[-WINDOW:] if math.isfinite(value) else window
