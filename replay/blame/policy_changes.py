"""What of the policy is otherwise in the window than before it, and the window with it as before.

Every setting of an update is compared; each that changed is put back by itself, and all of them
together. A learning rate that a schedule moves has not changed below JUMP times.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from forensics.step.policy import Policy, StepPolicy
from forensics.step.state import Counters
from replay.blame.result import PolicyField
from replay.blame.rules import JUMP

SHOWN = 3  # frozen tensors that are named
FIELDS: tuple[PolicyField, ...] = typing.get_args(PolicyField)


class ShownValues(NamedTuple):
    """A setting's values as they are written."""

    before: str
    inside: str


class ChangedField(NamedTuple):
    """A setting that changed in the window."""

    field: PolicyField
    first: int  # the first step with it
    before: Any
    inside: Any  # furthest from before

    @property
    def shown(self) -> ShownValues:
        """Write both values."""
        return ShownValues(shown(self.before), shown(self.inside))

    @property
    def words(self) -> str:
        """Say how the replay holds the setting."""
        return f"{NAMES[self.field]} held at {shown(self.before)} (it became {shown(self.inside)})"


NAMES: dict[PolicyField, str] = {
    "learning_rate": "learning rate",
    "betas": "β of Adam",
    "eps": "ε of Adam",
    "weight_decay": "weight decay",
    "clip": "largest gradient norm",
    "clip_eps": "ε of clipping",
    "update_rule": "optimizer",
    "momentum": "momentum of Muon",
    "z_loss": "weight of the z-loss",
    "frozen": "frozen tensors",
    "precision": "precision",
    "update": "kind of update",
    "skip_step": "SkipStep",
}


def changed_fields(
    before: Sequence[StepPolicy], inside: dict[int, StepPolicy]
) -> list[ChangedField]:
    """List the settings that are otherwise at a step of `inside` than at the steps before it.

    Where nothing lies before, the window's first step tells what held.
    """
    earlier = list(before) or [inside[step] for step in sorted(inside)[:1]]
    changes = []
    for field in FIELDS:
        usual = _usual(field, earlier)
        unlike = [
            step for step in sorted(inside) if _differs(field, usual, getattr(inside[step], field))
        ]
        if unlike:
            furthest = max(unlike, key=lambda step: _distance(usual, getattr(inside[step], field)))
            value = getattr(inside[furthest], field)
            changes.append(ChangedField(field, unlike[0], usual, value))
    return changes


def _usual(field: PolicyField, policies: Sequence[StepPolicy]) -> Any:
    if field == "learning_rate":
        return float(np.median([policy.learning_rate for policy in policies]))
    return getattr(policies[-1], field)


def _differs(field: PolicyField, usual: Any, value: Any) -> bool:
    if field != "learning_rate":
        return bool(value != usual)
    return bool(value > JUMP * usual or usual > JUMP * value)


def _distance(usual: Any, value: Any) -> float:
    """How far a setting is from the usual one; 1 for those that are no number."""
    if isinstance(value, tuple):
        return sum(abs(a - b) for a, b in zip(value, usual))
    if isinstance(value, float) and not isinstance(value, bool):
        return abs(value - usual)
    return 1.0


def as_before(policy: Policy, changes: Sequence[ChangedField]) -> Policy:
    """Return the policy with these settings as they were before the window."""
    settings: dict[str, Any] = {change.field: change.before for change in changes}

    def altered(counters: Counters) -> StepPolicy:
        return dataclasses.replace(policy(counters), **settings)

    return altered


def shown(value: Any) -> str:
    """Write a setting's value."""
    if isinstance(value, frozenset):
        names = sorted(value)
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        return ", ".join(names[:SHOWN]) + more if names else "none"
    if isinstance(value, tuple):
        return " and ".join(f"{number:g}" for number in value)
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
