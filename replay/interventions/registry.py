"""Every kind of intervention, to and from fork files, and several of them as one stream and policy.

A kind is a class in any file of this folder: adding the file is enough. A list of interventions
composes in its order: the stream of the first is what the second alters, and so on; the same for
policies. A state intervention acts once, at the fork's start.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
import types
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import replay.interventions
from forensics.config import window
from forensics.errors import ForensicsError, nearest
from replay.interventions.base import KINDS, Intervention
from replay.interventions.fields import fields_of
from replay.interventions.order import Drop

if TYPE_CHECKING:
    from forensics.step.batch import BatchStream
    from forensics.step.policy import Policy
    from forensics.train.run import Run

# The order in which flags compose and `--help` lists them, by what a kind alters and then by its
# file; a file that is not named here follows, and within a file the classes as they stand.
ALTERS = ("stream", "policy", "state")
FILES = (
    "order",
    "insertions",
    "edit_tokens",
    "removal",
    "mask_tokens",
    "boost_token",
    "no_update",
    "policy",
    "state",
)
SEE = "see docs/interventions.md"


def discover() -> None:
    """Import every file of this folder, so that each registers the kinds that it defines."""
    for module in pkgutil.iter_modules(replay.interventions.__path__):
        importlib.import_module(f"{replay.interventions.__name__}.{module.name}")


discover()


def kinds() -> list[type[Intervention]]:
    """List every kind in the order in which flags compose."""

    def place(kind: type[Intervention]) -> tuple[int, int]:
        file = kind.__module__.rpartition(".")[2]
        return ALTERS.index(kind.alters()), FILES.index(file) if file in FILES else len(FILES)

    return sorted(KINDS.values(), key=place)


def to_dict(intervention: Intervention) -> dict[str, Any]:
    """Return plain JSON, as TOML spells it too; a key that has no value is left out."""
    values = dataclasses.asdict(intervention)
    values = {key: value for key, value in values.items() if value is not None}
    return {"kind": intervention.kind} | _plain(values)


def from_dict(keys: Mapping[str, Any]) -> Intervention:
    """Make an intervention from JSON or TOML. Errors: config, naming the key."""
    kind = keys.get("kind", "")
    if kind not in KINDS:
        raise ForensicsError("config", f"unknown intervention {kind!r}", nearest(str(kind), KINDS))
    values = {key: value for key, value in keys.items() if key != "kind"}
    fields = {field.name: field for field in fields_of(KINDS[kind])}
    if "window" in values and "first" in fields:
        values["first"], values["last"] = window(str(values.pop("window")), kind)
    for name, value in values.items():
        if name not in fields:
            raise ForensicsError("config", f"{kind}: unknown key {name!r}", nearest(name, fields))
        values[name] = _value(fields[name].type, value, f"{kind}.{name}")
    for name, field in fields.items():
        if name not in values and field.required:
            raise ForensicsError("config", f"{kind}: {name!r} is missing", SEE)
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
            length = "" if args[-1] is Ellipsis else f" of {len(args)}"
            raise ForensicsError("config", f"{where}: wanted a list{length}, found {value!r}", SEE)
        return tuple(_value(item_hint, item, where) for item_hint, item in zip(hints, items))
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint or (hint is float and not math.isfinite(value)):
        raise ForensicsError("config", f"{where}: wanted {hint.__name__}, found {value!r}", SEE)
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def composed(interventions: Sequence[Intervention], run: Run) -> tuple[BatchStream, Policy]:
    """Compose stream and policy of a fork of `run`, interventions applied in their order."""
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
        steps: list[int] = list(range(drop.first, drop.last))
        for earlier in reversed(interventions[:i]):
            acts_on = earlier.batches()
            if not isinstance(earlier, Drop):
                _refuse_lost(earlier, [s for s in steps if s in acts_on], drop)
            sources = (earlier.source_step(s, run) for s in steps)
            steps = [s for s in sources if s is not None]


def _refuse_lost(intervention: Intervention, lost: list[int], drop: Drop) -> None:
    if lost and (intervention.needs_all_batches or len(set(lost)) == len(intervention.batches())):
        raise ForensicsError(
            "usage",
            f"{intervention.kind}: wanted a batch that is seen, found batch {lost[0]}, which the"
            f" drop of {drop.window} takes away",
            "leave one of the two out, or move its window",
        )
