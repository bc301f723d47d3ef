"""What an update rule is: how gradients move parameters and moments, and that taken backwards.

Every state has two moments of each tensor, `exp_avg` and `exp_avg_sq`; a rule that needs one, or
another thing, says in `moments` which it reads and what it holds there. The other stays 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from forensics.step.policy import StepPolicy
from forensics.step.state import TrainState


@dataclass
class Adjoint:
    """Hold the derivative of one number with respect to a state, by tensor name.

    It covers every parameter and both moments.
    """

    params: dict[str, Tensor]
    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]


Moments = tuple[dict[str, Tensor], dict[str, Tensor]]  # exp_avg and exp_avg_sq, by name


class Update(Protocol):
    """Apply one update to parameters and moments in place; counters are the caller's."""

    def __call__(
        self,
        state: TrainState,
        grads: dict[str, Tensor],
        policy: StepPolicy,
        decayed: frozenset[str],
        implementation: str,
    ) -> None:
        """`grads` are clipped, and of no frozen tensor; policy.update is apply or hold."""


class PullBack(Protocol):
    """Take an adjoint from the state after an update to the state before it, in place."""

    def __call__(
        self,
        adjoint: Adjoint,
        moments: Moments,
        grads: dict[str, Tensor],
        updates: int,
        policy: StepPolicy,
        decayed: frozenset[str],
    ) -> dict[str, Tensor]:
        """`moments` are those that the update left, `updates` the count that it found; returns the
        derivative with respect to `grads`, by name.
        """


@dataclass(frozen=True)
class UpdateRule:
    """One optimizer."""

    title: str  # as a sentence names it
    moments: str  # what exp_avg and exp_avg_sq hold
    update: Update
    pull_back: PullBack
    no_influence: str = ""  # a sentence, where the derivative says nothing of a change's effect
