"""A document: a unit of source text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """Hold a unit of source text.

    `path` says where it came from and names no folder outside its source.
    """

    path: str
    text: str
