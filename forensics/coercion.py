"""Read values of TOML and JSON as annotated types, with one error that names the key.

coerce(tuple[int, ...], [1, 2], "remove-documents.documents", "see docs/interventions.md")  # (1, 2)
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable
from typing import Any

from forensics.errors import ForensicsError

NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}


def coerce(
    hint: Any,
    value: Any,
    where: str,
    advice: str,
    table: Callable[[type, Any, str], Any] | None = None,
) -> Any:
    """Return the value as the annotated type.

    That is a number, bool or string, a tuple or dictionary of them, None where the type allows it;
    any other type is read by `table(type, value, where)`. A whole number may stand for a float;
    numbers are finite. Errors: config, naming `where`.
    """

    def read(hint: Any, value: Any, where: str) -> Any:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin in (types.UnionType, typing.Union):
            return None if value is None else read(arguments[0], value, where)
        if origin is tuple:
            return read_list(arguments, value, where)
        if origin is dict:
            if not isinstance(value, dict):
                raise mistake(where, "a table", value)
            return {k: read(arguments[1], item, f"{where}.{k}") for k, item in value.items()}
        if hint not in NAMES and table is not None:
            return table(hint, value, where)
        if hint is float and type(value) is int:
            value = float(value)
        if type(value) is not hint:
            raise mistake(where, NAMES[hint], value)
        if hint is float and not math.isfinite(value):
            raise mistake(where, "a finite number", value)
        return value

    def read_list(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise mistake(where, "a list", value)
        hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(value) != len(hints):
            raise mistake(where, f"a list of {len(hints)}", value)
        items = enumerate(zip(hints, value))
        return tuple(read(item_hint, item, f"{where}[{i}]") for i, (item_hint, item) in items)

    def mistake(where: str, wanted: str, value: Any) -> ForensicsError:
        return ForensicsError("config", f"{where}: wanted {wanted}, found {value!r}", advice)

    return read(hint, value, where)
