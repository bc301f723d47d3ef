"""Write a fork file: a head, then one table for each intervention."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w


def written(head: Mapping[str, Any], interventions: Sequence[Mapping[str, Any]]) -> str:
    """Write the keys of a fork file as TOML; those without a value are left out."""
    tables = [_table(head), *("[[intervention]]\n" + _table(keys) for keys in interventions)]
    return "\n".join(tables)


def _table(keys: Mapping[str, Any]) -> str:
    """One key a line, lists too, which the library would break into a line for each item.

    Its line ends stand between items only: inside a string they are escaped.
    """
    text = tomli_w.dumps({key: value for key, value in keys.items() if value is not None})
    text = re.sub(r"\[\n *", "[", text)
    text = re.sub(r",\n *\]", "]", text)
    return re.sub(r",\n +", ", ", text)
