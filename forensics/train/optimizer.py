"""One update of a state by the rule that its policy names, and its vector–Jacobian product.

The rules are forensics/train/optimizers, one file each. Which tensors decay is decided here.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

from torch import Tensor

from forensics.config import UNDECAYED
from forensics.errors import ForensicsError, nearest
from forensics.step.policy import EMBEDDINGS, StepPolicy
from forensics.step.state import TrainState
from forensics.train.optimizers import RULES
from forensics.train.optimizers.rule import Adjoint, Moments


def decayed_names(
    names: Iterable[str], undecayed: Iterable[str], decay_embeddings: bool
) -> frozenset[str]:
    """Return the parameters that weight decay holds for: those that no pattern of `undecayed`
    names; embeddings where the recipe says so.
    """
    every = frozenset(names)
    patterns = [*undecayed, *(EMBEDDINGS if not decay_embeddings else ())]
    return every - {name for pattern in patterns for name in fnmatch.filter(every, pattern)}


def require_patterns(names: Iterable[str], undecayed: Iterable[str]) -> None:
    """Refuse a pattern of `undecayed` that names no tensor, unless it is usual. Errors: config."""
    every = frozenset(names)
    for pattern in undecayed:
        if pattern not in (*UNDECAYED, *EMBEDDINGS) and not fnmatch.filter(every, pattern):
            raise ForensicsError(
                "config",
                f"train.undecayed: wanted patterns of tensors' names, found {pattern!r}, which"
                " names none",
                nearest(pattern, every),
            )


def update(
    state: TrainState,
    grads: dict[str, Tensor],
    policy: StepPolicy,
    decayed: frozenset[str],
    implementation: str,
) -> None:
    """Apply one update to parameters and moments in place; counters are the caller's.

    Frozen tensors are left alone, moments too.
    """
    moving = {name: grad for name, grad in grads.items() if name not in policy.frozen}
    if moving:
        RULES[policy.update_rule].update(state, moving, policy, decayed, implementation)


def pull_back(
    adjoint: Adjoint,
    moments: Moments,
    grads: dict[str, Tensor],
    updates: int,
    policy: StepPolicy,
    decayed: frozenset[str],
) -> dict[str, Tensor]:
    """Take `adjoint` from the state after `update` to the state before it, in place.

    `moments` (m, v) are those that the update left, `updates` is the count it found, `grads` what
    it was given (clipped). Returns the derivative with respect to `grads`, by name; of frozen
    tensors there is none.
    """
    moving = {name: grad for name, grad in grads.items() if name not in policy.frozen}
    return RULES[policy.update_rule].pull_back(adjoint, moments, moving, updates, policy, decayed)
