"""Know every kind of intervention; read and write them as a fork file's keys.

A kind is a class in any file of this folder: adding the file is enough.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

import replay.interventions
from forensics.coercion import coerce
from forensics.config import window
from forensics.errors import ForensicsError, nearest
from replay.interventions.base import KINDS, Intervention, Windowed
from replay.interventions.fields import fields_of

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
    kind = kind_of(keys)
    values = read_window(keys)
    del values["kind"]
    fields = {field.name: field for field in fields_of(KINDS[kind])}
    for name, value in values.items():
        if name not in fields:
            allowed = {"kind", *fields}
            if {"first", "last"} <= fields.keys():  # a fork file spells them as one
                allowed |= {"window"}
            raise ForensicsError("config", f"{kind}: unknown key {name!r}", nearest(name, allowed))
        field_type = fields[name].type
        if field_type == tuple[str, ...] and isinstance(value, str):
            value = [value]  # one name may stand for a list of one
        values[name] = coerce(field_type, value, f"{kind}.{name}", SEE)
    for name, field in fields.items():
        if name not in values and field.required:
            raise ForensicsError("config", f"{kind}: {name!r} is missing", SEE)
    return KINDS[kind](**values)


def kind_of(keys: Mapping[str, Any]) -> str:
    """Return the kind that the keys name. Errors: config, where there is none such."""
    kind = keys.get("kind")
    if kind is None:
        raise ForensicsError(
            "config", "an intervention lacks its kind", 'e.g. kind = "skip"; ' + SEE
        )
    if not isinstance(kind, str) or kind not in KINDS:
        raise ForensicsError("config", f"unknown intervention {kind!r}", nearest(str(kind), KINDS))
    return kind


def read_window(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys with `first` and `last` for a window A:B, where their kind has one. Errors:
    config.
    """
    keys = dict(keys)
    if "window" in keys and issubclass(KINDS[keys["kind"]], Windowed):
        if twice := [key for key in ("first", "last") if key in keys]:
            raise ForensicsError(
                "config",
                f"{keys['kind']}: wanted window or first and last, found window and"
                f" {' and '.join(twice)}",
                "leave one of the two out",
            )
        keys["first"], keys["last"] = window(str(keys.pop("window")), f"{keys['kind']}.window")
    return keys


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
