"""Settings that another trainer wrote down, and what of them is not built here."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forensics.errors import ForensicsError, first_line
from forensics.visible import visible

LARGEST = 1 << 24  # bytes of a configuration
MISSING = object()


class Settings:
    """A section of a trainer's configuration, with the defaults that its trainer has.

    Every setting that changes what is computed is asked for by `get`, or by `only` where one value
    alone is built here.
    """

    def __init__(
        self, document: Any, where: str, defaults: Mapping[str, Any] | None = None
    ) -> None:
        self.document = document if isinstance(document, dict) else {}
        self.where = where
        self.defaults = defaults or {}

    def get(self, name: str, default: Any = None) -> Any:
        """Return a setting; where the document leaves it out, its trainer's default."""
        found = self.document.get(name, MISSING)
        return self.defaults.get(name, default) if found is MISSING else found

    def section(self, name: str, defaults: Mapping[str, Any] | None = None) -> Settings:
        """Return one of its sections; an empty one where there is none."""
        return Settings(self.document.get(name), f"{self.where}{name}.", defaults)

    def whole(self, name: str, default: Any = None) -> int:
        """Return a whole number above 0. Errors: data."""
        number = self.get(name, default)
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ForensicsError(
                "data",
                f"{self.where}{name}: wanted a whole number above 0, found {shown(number)}",
                "is it the run's own configuration?",
            )
        return number

    def number(self, name: str, default: Any = None) -> float:
        """Return a number. Errors: data."""
        number = self.get(name, default)
        if isinstance(number, str):
            with contextlib.suppress(ValueError):
                number = float(number)  # YAML reads 3e-4 as text
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise ForensicsError(
                "data",
                f"{self.where}{name}: wanted a number, found {shown(number)}",
                "is it the run's own configuration?",
            )
        return float(number)

    def only(self, name: str, *built: Any) -> None:
        """Refuse a setting whose value is not one of those built here. Errors: data."""
        found = self.get(name, built[0])
        if found not in built:
            raise not_built(f"{self.where}{name} = {shown(found)}", f"{name} = {shown(built[0])}")


def not_built(found: str, wanted: str) -> ForensicsError:
    """Make the error of a setting that nothing here can compute."""
    return ForensicsError(
        "data", f"its configuration says {found}: not built here", f"only {wanted} is"
    )


def shown(setting: Any) -> str:
    """Return a setting as it is shown in a sentence."""
    return visible(repr(setting))[:60]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Errors: data."""
    try:
        document = json.loads(_text(path))
    except (ValueError, RecursionError) as e:
        raise _unreadable(path, "JSON", e) from None
    return _mapping(path, document)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping of plain values: a tag that makes an object is refused. Errors: data."""
    import yaml

    try:
        document = yaml.load(_text(path), Loader=_plain_loader())
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise _unreadable(path, "plain YAML", e) from None
    return _mapping(path, document)


def _plain_loader() -> Any:
    """Return yaml's safe loader, without aliases: a few lines of them would grow without bound."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                raise yaml.YAMLError("an alias")
            return super().compose_node(parent, index)

    return Loader


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise ForensicsError(
                "data",
                f"{path.name}: wanted a configuration, found more than {LARGEST:,} bytes",
                "",
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise _unreadable(path, "text", e) from None


def _mapping(path: Path, document: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise ForensicsError(
            "data",
            f"{path.name}: wanted named settings, found {type(document).__name__}",
            "is it complete?",
        )
    return document


def _unreadable(path: Path, kind: str, e: BaseException) -> ForensicsError:
    return ForensicsError(
        "data", f"{path.name} is no {kind}: {visible(first_line(e))}", "is it complete?"
    )
