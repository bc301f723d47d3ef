"""Results as versioned records: frozen dataclasses that commands, pages, notebooks and JSON share.

    @dataclass(frozen=True)
    class ForkResult(ResultRecord):
        VERSION = 1
        KIND = "fork"
        AGAIN = "run the fork again with --again"
        fork: str  # its name
        first: int = json_key("from")  # the state it starts from

    document = result.to_document()               # {"version": 1, "fork": …, "from": …}
    ForkResult.from_document(document, "fork.json")

A document of another version is one clear error, never a KeyError. Fields may be records and
dataclasses themselves, lists, tuples and dictionaries of them, or None. A field that is made from
others (`init=False`) is written and not read.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from pathlib import Path
from typing import Any, ClassVar, Self

from forensics.errors import ForensicsError
from forensics.json_documents import dumps, number, plain

KEY = "json key"
Part = typing.TypeVar("Part")


def json_key(key: str, **options: Any) -> Any:
    """Declare a field whose name in documents is `key`, such as "from", which Python reserves."""
    return dataclasses.field(metadata={KEY: key}, **options)


@dataclasses.dataclass(frozen=True)
class ResultRecord:
    """A result with a version; subclasses are frozen dataclasses and set the three constants."""

    VERSION: ClassVar[int]
    KIND: ClassVar[str]  # what it is, in an error's words
    AGAIN: ClassVar[str]  # what makes it anew, in an error's words

    def to_document(self) -> dict[str, Any]:
        """Return the record as plain JSON, its version first."""
        return {"version": self.VERSION} | part_to_document(self)

    def to_json(self) -> bytes:
        """Return the record as the text of a JSON file."""
        return (dumps(self) + "\n").encode()

    @classmethod
    def from_document(cls, document: Any, where: str) -> Self:
        """Read a record from JSON that lies in `where`. Errors: integrity."""
        found = document.get("version") if isinstance(document, dict) else None
        if found != cls.VERSION:
            raise ForensicsError(
                "integrity",
                f"{where}: wanted a {cls.KIND} of version {cls.VERSION}, found "
                + (f"version {found}" if found is not None else "one without a version"),
                cls.AGAIN,
            )
        try:
            return typing.cast(Self, _read(cls, document))
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise ForensicsError(
                "integrity", f"{where}: the {cls.KIND} is damaged: {e!r}", cls.AGAIN
            ) from None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record from a file. Errors: missing, integrity."""
        try:
            document = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise ForensicsError(
                "missing", f"wanted a {cls.KIND} at {path}, found none", cls.AGAIN
            ) from None
        except (OSError, ValueError) as e:
            raise ForensicsError("integrity", f"{path} is damaged: {e}", cls.AGAIN) from None
        return cls.from_document(document, path.name)


def part_to_document(part: Any) -> dict[str, Any]:
    """Return a dataclass as plain JSON, under the names that `json_key` gave."""
    return {
        field.metadata.get(KEY, field.name): _part(getattr(part, field.name))
        for field in dataclasses.fields(part)
    }


def _part(value: Any) -> Any:
    if isinstance(value, ResultRecord):
        return value.to_document()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return part_to_document(value)
    if isinstance(value, (list, tuple)):
        return [_part(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _part(item) for key, item in value.items()}
    return plain(value)


def read_part(cls: type[Part], document: dict[str, Any]) -> Part:
    """Read a dataclass from plain JSON. Raises KeyError, TypeError, ValueError."""
    return typing.cast(Part, _read(cls, document))


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _read(hint: Any, value: Any) -> Any:
    """Read `value` as a field of type `hint`. Raises KeyError, TypeError, ValueError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        choices = [argument for argument in arguments if argument is not type(None)]
        return _read(_choice(choices, value), value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _read_dataclass(hint, value)
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise TypeError(f"wanted a list, found {value!r}")
        if origin is list:
            return [_read(arguments[0], item) for item in value]
        item_hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(item_hints) != len(value):
            raise ValueError(f"wanted {len(item_hints)} items, found {len(value)}")
        return tuple(_read(item_hint, item) for item_hint, item in zip(item_hints, value))
    if origin is dict:
        return {
            (int(key) if arguments[0] is int else key): _read(arguments[1], item)
            for key, item in value.items()
        }
    if hint is float:
        return number(value)
    if origin is typing.Literal and value not in arguments:
        raise ValueError(f"wanted one of {arguments}, found {value!r}")
    return value


def _read_dataclass(cls: type, document: Any) -> Any:
    if not isinstance(document, dict):
        raise TypeError(f"wanted an object, found {document!r}")
    hints, values = _hints(cls), {}
    for field in dataclasses.fields(cls):
        if not field.init:  # made from the others
            continue
        key = field.metadata.get(KEY, field.name)
        optional = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        if key in document or not optional:
            values[field.name] = _read(hints[field.name], document[key])
    return cls(**values)


def _choice(choices: list[Any], value: Any) -> Any:
    """Return the type of a union that a JSON value is of: by what it looks like."""
    if len(choices) == 1:
        return choices[0]
    if isinstance(value, str) and str in choices:
        return str
    if isinstance(value, bool) and bool in choices:
        return bool
    if isinstance(value, int) and int in choices:
        return int
    if isinstance(value, dict):
        return next(
            (c for c in choices if dataclasses.is_dataclass(c) or typing.get_origin(c) is dict),
            choices[0],
        )
    return choices[0]
