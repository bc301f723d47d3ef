"""Read the flags of `replay fork` that make interventions: text to the keys of a fork file.

Flag("F@A:B", "Learning rate times F.", "0.5@200:210", windowed(one("factor", float)))

A reader raises ValueError where the text is not of the form that the flag's metavar shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WINDOW = re.compile(r"\d+:\d+")

Keys = dict[str, Any]  # of a fork file's intervention
Reader = Callable[[Any], Keys]


@dataclass(frozen=True)
class Flag:
    """A flag of `replay fork`; each time it is given, it makes one intervention."""

    metavar: str
    help: str
    example: str  # a value, as a shell takes it
    read: Reader
    name: str = ""  # with its dashes; left out, that of the kind
    type: type = str  # what `read` is given
    bare: str | None = None  # the value that it stands for alone; None: it needs one


def one(key: str, read: Callable[[str], Any] = str) -> Reader:
    """Read the whole text as one key."""
    return lambda text: {key: read(text)}


def split(mark: str, **keys: Callable[[str], Any]) -> Reader:
    """Read what stands before and after the first `mark` as two keys."""

    def read(text: str) -> Keys:
        before, present, after = text.partition(mark)
        if not present:
            raise ValueError(text)
        return {key: parse(half) for (key, parse), half in zip(keys.items(), (before, after))}

    return read


def windowed(read: Reader) -> Reader:
    """Read VALUE@A:B: the value, and the window where one is named."""

    def read_with_window(text: str) -> Keys:
        value, at, window = text.rpartition("@")
        if at and WINDOW.fullmatch(window):
            return {**read(value), "window": window}
        return read(text)

    return read_with_window


def seeded(key: str, parse: Callable[[str], Any] = str) -> Reader:
    """Read VALUE[@SEED] as `key` and `seed`, 0 where it is left out."""

    def read(text: str) -> Keys:
        value, _, seed = text.partition("@")
        return {key: parse(value), "seed": int(seed or 0)}

    return read


def alone(text: str) -> list[str]:
    """Return a list of this one text."""
    return [text]


def two_numbers(text: str) -> list[float]:
    """Read A,B."""
    first, second = text.split(",")
    return [float(first), float(second)]
