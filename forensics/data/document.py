"""A document: a unit of source text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Attribute = bool | int | float | str | tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """Hold a unit of source text.

    `path` says where it came from and names no folder outside its source. `attributes` are the
    other fields of its record, flattened (`forensics.data.attributes`); None: it has none.
    """

    path: str
    text: str
    attributes: Mapping[str, Attribute] | None = None


def is_unicode(text: str) -> bool:
    """Return whether a text can be written as UTF-8: half of a surrogate pair cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
