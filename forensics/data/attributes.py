"""Metadata of records → attributes of documents: flattened names, and one type for each.

    flattened({"text": "…", "meta": {"score": 0.4}, "tags": ["a", "b"]}, without="text")
    →  {"meta.score": 0.4, "tags": ("a", "b")}

A name means one type throughout a corpus: whole numbers and decimals together are DOUBLE, lists are
lists of text (and a value beside lists is a list of one), anything else that is mixed is text. What
is too much is left out, counted and said, never cut.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import date, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from forensics.data.document import Attribute, is_unicode

if TYPE_CHECKING:
    import pyarrow

DEEPEST = 8  # objects within objects that become dotted names; what lies deeper is JSON text
LONGEST_NAME = 128  # characters, dots included
LONGEST_VALUE = 2048  # characters of a text; a longer one is a text of its own and no attribute
MOST_ENTRIES = 64  # of a list: a longer one is an embedding, token ids or the like
MOST_NAMES = 64  # of a corpus, in the order in which they are met
LARGEST = 2**63  # whole numbers from here on are decimals

SQL_TYPES = {"bool": "BOOLEAN", "int": "BIGINT", "double": "DOUBLE", "text": "VARCHAR"}
SQL_TYPES["list"] = "VARCHAR[]"


def flattened(record: Mapping[str, Any], without: str) -> dict[str, Attribute] | None:
    """Return a record's fields but the text as attributes; None where it has no other field."""
    attributes: dict[str, Attribute] = {}
    for name, value in record.items():
        if name != without:
            for dotted, leaf in _leaves(str(name), value, DEEPEST):
                attributes.setdefault(dotted, leaf)
    return attributes or None


def _leaves(name: str, value: Any, depth: int) -> Iterator[tuple[str, Attribute]]:
    """Yield the values below a field, each under its dotted name; NULL is no value."""
    if isinstance(value, Mapping) and depth:
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}", inner, depth - 1)
    elif value is not None:
        leaf = _leaf(value)
        if leaf is not None:
            yield name, leaf


def _leaf(value: Any) -> Attribute | None:
    """Return a value as an attribute holds it; None: bytes, and what JSON cannot say."""
    if isinstance(value, bool | str | float):
        return value
    if isinstance(value, int):
        return value if -LARGEST <= value < LARGEST else _as_decimal(value)
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, list | tuple):
        return tuple(_text(entry) for entry in value if entry is not None)
    return None if isinstance(value, bytes) else _text(value)


def _as_decimal(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


class Attributes:
    """The names and types of a corpus's attributes, gathered over its documents.

    Names that differ in capitals alone are one, for SQL does not tell them apart.
    """

    def __init__(self) -> None:
        self.kinds: dict[str, str] = {}  # name → key of SQL_TYPES
        self._spelled: dict[str, str | None] = {}  # in small letters → name; None: not kept
        self._refused: Counter[str] = Counter()  # why → documents

    def add(self, attributes: Mapping[str, Attribute] | None) -> None:
        """Take note of one document's attributes."""
        for name, value in (attributes or {}).items():
            lower = name.lower()
            if lower not in self._spelled:
                keeps = 0 < len(name) <= LONGEST_NAME and name.isprintable()
                keeps = keeps and len(self.kinds) < MOST_NAMES
                self._spelled[lower] = name if keeps else None
            spelled = self._spelled[lower]
            if spelled is None:
                self._refused[
                    f"names beyond the first {MOST_NAMES}, or longer than {LONGEST_NAME} characters"
                ] += 1
            elif why := _too_much(value):
                self._refused[f"{spelled}: {why}"] += 1
            else:
                self.kinds[spelled] = _joined(self.kinds.get(spelled), _kind(value))

    @property
    def left_out(self) -> list[str]:
        """Say what was not kept, and in how many documents."""
        return [f"attribute {why} ({count:,} times)" for why, count in self._refused.items()]

    @property
    def sql_types(self) -> dict[str, str]:
        """Return name → DuckDB's type."""
        return {name: SQL_TYPES[kind] for name, kind in self.kinds.items()}

    def arrow_type(self) -> pyarrow.DataType:
        """Return the type of the `attributes` column."""
        import pyarrow as pa

        types = {
            "bool": pa.bool_(),
            "int": pa.int64(),
            "double": pa.float64(),
            "text": pa.string(),
            "list": pa.list_(pa.string()),
        }
        return pa.struct([pa.field(name, types[kind]) for name, kind in self.kinds.items()])

    def row(self, attributes: Mapping[str, Attribute] | None) -> dict[str, Any] | None:
        """Return one document's attributes, each of its name's type; None where it has none."""
        row: dict[str, Any] = {}
        for name, value in (attributes or {}).items():
            spelled = self._spelled[name.lower()]
            if spelled is not None and spelled not in row and not _too_much(value):
                row[spelled] = _as(value, self.kinds[spelled])
        return row or None


def _too_much(value: Attribute) -> str:
    """Say why a value is no attribute; empty where it is one."""
    if isinstance(value, tuple) and len(value) > MOST_ENTRIES:
        return f"a list of more than {MOST_ENTRIES}"
    texts = value if isinstance(value, tuple) else (value,) if isinstance(value, str) else ()
    if any(len(text) > LONGEST_VALUE for text in texts):
        return f"longer than {LONGEST_VALUE:,} characters"
    return "" if all(map(is_unicode, texts)) else "half of a surrogate pair"


def _kind(value: Attribute) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    if isinstance(value, float):
        return "double"
    return "text" if isinstance(value, str) else "list"


def _joined(a: str | None, b: str) -> str:
    if a is None or a == b:
        return b
    if {a, b} == {"int", "double"}:
        return "double"
    return "list" if "list" in (a, b) else "text"


def _as(value: Attribute, kind: str) -> Any:
    if kind == "list":
        return list(value) if isinstance(value, tuple) else [_text(value)]
    if kind == "text":
        return _text(value)
    return float(value) if kind == "double" and isinstance(value, int) else value


def as_hashed(attributes: Mapping[str, Attribute]) -> bytes:
    """Return a document's attributes as the corpus's hash takes them."""
    return json.dumps(attributes, separators=(",", ":")).encode()
