"""Interventions: what a fork does differently. Each is a small frozen record; what it does not
touch is the identity.

A list of them composes in its order: the stream of the first is what the second alters, and so on;
the same for policies. A state intervention acts once, at the fork's start. Windows are half-open
and lie inside the fork's. The kinds live in `on_batches`, `on_sequences`, `on_policy` (with the
table of skips) and `on_state`; what they share in `algebra`.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from typing import Any

from forensics.config import window
from forensics.errors import ForensicsError, nearest
from forensics.step.batch import BatchStream
from forensics.step.policy import Policy
from forensics.train.run import Run
from replay.interventions import batches, sequences, state
from replay.interventions import policy as on_policy
from replay.interventions.base import Intervention, Windowed
from replay.interventions.batches import Drop, Insert, Repeat, Replace, Swap
from replay.interventions.policy import (
    Betas,
    Clip,
    Epsilon,
    Freeze,
    HoldParameters,
    LearningRate,
    Precision,
    Skip,
    SkipFrozen,
    SkipStep,
    WeightDecay,
    ZeroUpdate,
    ZLoss,
)
from replay.interventions.sequences import (
    BoostToken,
    EditTokens,
    MaskTokens,
    RemoveDocuments,
    RemoveSequences,
    Reorder,
    Shuffle,
)
from replay.interventions.state import Noise, ResetMoments, Transplant, UnitInLastPlace

__all__ = [
    "KINDS",
    "Betas",
    "BoostToken",
    "Clip",
    "Drop",
    "EditTokens",
    "Epsilon",
    "Freeze",
    "HoldParameters",
    "Insert",
    "Intervention",
    "LearningRate",
    "MaskTokens",
    "Noise",
    "Precision",
    "RemoveDocuments",
    "RemoveSequences",
    "Reorder",
    "Repeat",
    "Replace",
    "ResetMoments",
    "Shuffle",
    "Skip",
    "SkipFrozen",
    "SkipStep",
    "Swap",
    "Transplant",
    "UnitInLastPlace",
    "WeightDecay",
    "Windowed",
    "ZLoss",
    "ZeroUpdate",
    "composed",
    "from_dict",
    "refuse_lost",
    "to_dict",
]

KINDS: dict[str, type[Intervention]] = {
    cls.kind: cls for cls in (*batches.KINDS, *sequences.KINDS, *on_policy.KINDS, *state.KINDS)
}


def to_dict(intervention: Intervention) -> dict[str, Any]:
    """Plain JSON, as TOML spells it too; a key that has no value is left out."""
    values = {k: v for k, v in dataclasses.asdict(intervention).items() if v is not None}
    return {"kind": intervention.kind} | _plain(values)


def from_dict(raw: dict[str, Any]) -> Intervention:
    """An intervention from JSON or TOML. Errors: config, naming the key."""
    kind = raw.get("kind", "")
    if kind not in KINDS:
        raise ForensicsError("config", f"unknown intervention {kind!r}", nearest(str(kind), KINDS))
    values = {k: v for k, v in raw.items() if k != "kind"}
    known = {f.name: f for f in dataclasses.fields(KINDS[kind])}
    if "window" in values and "first" in known:
        values["first"], values["last"] = window(str(values.pop("window")), kind)
    hints = typing.get_type_hints(KINDS[kind])
    for name, value in values.items():
        if name not in known:
            raise ForensicsError("config", f"{kind}: unknown key {name!r}", nearest(name, known))
        values[name] = _value(hints[name], value, f"{kind}.{name}")
    for name, f in known.items():
        if name not in values and f.default is dataclasses.MISSING:
            raise ForensicsError("config", f"{kind}: {name!r} is missing", "see docs/forks.md")
    return KINDS[kind](**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value` as the field's type: number, bool, string, or tuples of them; one string may stand
    for a list of one.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _value(args[0], value, where)
    if origin is tuple:
        if args == (str, ...) and isinstance(value, str):
            value = [value]
        items = value if isinstance(value, (list, tuple)) else None
        hints = [args[0]] * len(items or ()) if args[-1] is Ellipsis else list(args)
        if items is None or len(items) != len(hints):
            wanted = "a list" if args[-1] is Ellipsis else f"a list of {len(args)}"
            raise ForensicsError(
                "config", f"{where}: wanted {wanted}, found {value!r}", "see docs/forks.md"
            )
        return tuple(_value(h, v, where) for h, v in zip(hints, items))
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint or (hint is float and not math.isfinite(value)):
        raise ForensicsError(
            "config", f"{where}: wanted {hint.__name__}, found {value!r}", "see docs/forks.md"
        )
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def composed(interventions: Sequence[Intervention], run: Run) -> tuple[BatchStream, Policy]:
    """Stream and policy of a fork of `run`, interventions applied in their order."""
    stream, policy = run.stream, run.policy
    for intervention in interventions:
        stream = intervention.stream(stream, run)
        policy = intervention.policy(policy, run)
    return stream, policy


def refuse_lost(interventions: Sequence[Intervention], run: Run) -> None:
    """Refuse an intervention on a batch that another one drops, whichever comes first. Errors:
    usage.
    """
    for i, drop in enumerate(interventions):
        if not isinstance(drop, Drop):
            continue
        for later in interventions[
            i + 1 :
        ]:  # it means the parent's batch, but another one stands there now
            _refuse_lost(later, [s for s in later.batches() if drop.first <= s < drop.last], drop)
        places: list[int] = list(range(drop.first, drop.last))
        for earlier in reversed(interventions[:i]):
            acts_on = earlier.batches()
            if not isinstance(earlier, Drop):
                _refuse_lost(earlier, [s for s in places if s in acts_on], drop)
            came = (earlier.comes_from(s, run) for s in places)
            places = [s for s in came if s is not None]


def _refuse_lost(own: Intervention, lost: list[int], drop: Drop) -> None:
    if lost and (own.every or len(set(lost)) == len(own.batches())):
        raise ForensicsError(
            "usage",
            f"{own.kind}: wanted a batch that is seen, found batch {lost[0]}, which the drop of "
            f"{drop.window} takes away",
            "leave one of the two out, or move its window",
        )
