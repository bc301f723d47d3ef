"""JSON that tells NaN, infinity and missing apart: the one encoder, and the way back.

    dumps({"loss": math.nan})            {"loss": "NaN"}
    number("-Infinity")                  -inf

NaN and the infinities are the strings "NaN", "Infinity", "-Infinity"; null stands only for what
does not exist. Which strings are numbers only a reader knows that knows the field: `number`, and
the records of `forensics.result_records`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def plain(value: Any) -> Any:
    """Turn dataclasses, paths, tuples and numpy's numbers and arrays into what JSON holds."""
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else _spelled(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value) if isinstance(value, (set, frozenset)) else value
        return [plain(item) for item in items]
    if hasattr(value, "to_document"):
        return value.to_document()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy's and torch's numbers and arrays
        return plain(value.tolist())
    return value


def dumps(document: Any, indent: int | None = 1) -> str:
    """Write a document as JSON that every parser reads."""
    return json.dumps(plain(document), indent=indent, allow_nan=False)


def number(value: Any) -> float | None:
    """Read a number of a document; None where there is none. Errors: ValueError for a text."""
    if value is None:
        return None
    if isinstance(value, str):
        if value not in NONFINITE:
            raise ValueError(f"wanted a number, found {value!r}")
        return NONFINITE[value]
    return float(value)


def _spelled(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
