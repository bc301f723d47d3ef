"""Keep what was edited in a form in the URL.

decode(encode("lr-scale", {"factor": "2"}), "lr-scale")  # {"factor": "2"}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def encode(context: str, answers: Mapping[str, Any]) -> str:
    """Write edited answers as the text of one URL parameter, with what they are answers to: a form
    of anything else ignores them.
    """
    return json.dumps({"of": context, **answers}, ensure_ascii=False, separators=(",", ":"))


def decode(text: str | None, context: str) -> dict[str, Any]:
    """Read the answers of such a text: texts, ticks and numbers by field; none where it belongs to
    another form or is damaged.
    """
    try:
        document = json.loads(text or "null")
    except (ValueError, RecursionError):
        return {}
    if not isinstance(document, dict) or document.pop("of", None) != context:
        return {}
    texts = {
        name: answer.encode("utf-8", "replace").decode() if isinstance(answer, str) else answer
        for name, answer in document.items()
    }
    return {name: answer for name, answer in texts.items() if isinstance(answer, str | bool | int)}


def number_within(answer: Any, default: int, low: int, high: int) -> int:
    """Return the answer if it is a whole number between `low` and `high`, else the default."""
    return answer if type(answer) is int and low <= answer <= high else default
