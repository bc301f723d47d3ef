"""The forms of the Forks page: the questions that an intervention's fields ask, and the keys of a
fork file that their answers make.

titles()                                     # {"drop": "Drop batches: later ones move up", …}
fields("lr-scale")                           # (Field("window", …), Field("factor", …))
intervention("lr-scale", {"factor": "0.5"})  # {"kind": "lr-scale", "factor": 0.5}

A kind declares its title, and each of its fields a label (replay/interventions/fields.py); the page
asks for what has one.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any

from forensics.errors import ForensicsError
from replay.interventions import fields as declared
from replay.interventions.base import Windowed
from replay.interventions.registry import KINDS, kinds

FILE = "file"  # the form of any kind: the fork file itself


@dataclass(frozen=True)
class Field:
    """One answer, given as text, a number or a tick. `read` makes the fork file's value of it;
    empty text is left out.
    """

    name: str
    label: str  # Markdown: our own words
    read: Callable[[str], Any] = str
    default: Any = ""
    wanted: str = "text"
    wide: bool = False  # a text area
    options: tuple[str, ...] = ()
    help: str = ""
    step: bool = False  # a step of the fork's window


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s,]+", text.strip()) if word]


def _ids(text: str) -> list[int]:
    return [int(word) for word in _words(text)]


def _numbers(text: str) -> list[float]:
    return [float(word) for word in _words(text)]


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _places(text: str) -> list[list[int]]:
    """`402/3, 402/7` as (step, slot) pairs."""
    pairs = [[int(number) for number in word.split("/")] for word in _words(text)]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(text)
    return pairs


def _rows(text: str) -> list[list[int]]:
    """`402/3, 402/7` as rows, whose targets `intervention` adds: all of them."""
    return _places(text)


# a field's type → how its answer is read, and what the form asks for
READERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    int: (int, "a whole number"),
    float: (float, "a number"),
    str: (str, "text"),
    bool: (bool, ""),
    tuple[int, ...]: (_ids, "ids with commas between"),
    tuple[str, ...]: (_names, "names or patterns"),
    tuple[float, float]: (_numbers, "two numbers"),
    tuple[tuple[int, int], ...]: (_places, "step/slot, step/slot, …"),
    tuple[tuple[int, int, int, int], ...]: (_rows, "step/slot, step/slot, …"),
}

WINDOW = Field("window", "Window A:B", wanted="A:B", help="Half-open; empty: the whole fork.")


def titles() -> dict[str, str]:
    """Return the kinds that have a form and what the page calls them, in the order of `replay fork
    --help`.
    """
    with_form = {kind.kind: kind.title for kind in kinds() if kind.title}
    return with_form | {FILE: "Any kind: write the fork file"}


def fields(kind: str) -> tuple[Field, ...]:
    """List the questions of a kind's form."""
    return () if kind == FILE else tuple(_fields(KINDS[kind]))


def _fields(kind: type) -> Iterator[Field]:
    """Yield the window first, and after a field that SQL may fill, the SQL."""
    if issubclass(kind, Windowed):
        yield WINDOW
    declarations = declared.fields_of(kind)
    columns = [columns for field in declarations for columns in field.about.columns]
    for field in declarations:
        if field.about.label:
            yield _field(field)
            if field.about.columns:
                label = "SQL that returns " + ", or ".join(_listed(c.names) for c in columns)
                yield Field("sql", label, wide=True)


def _field(field: declared.Field) -> Field:
    about = field.about
    read, expected = READERS[_without_none(field.type)]
    begin = field.default if about.begin is None else about.begin
    if isinstance(begin, tuple):
        begin = ", ".join(str(item) for item in begin)
    return Field(
        field.name,
        about.label,
        read,
        "" if begin is MISSING or begin is None else begin,
        expected,
        about.wide,
        about.choices,
        about.help,
        about.step and read is int,
    )


def _without_none(type_: Any) -> Any:
    """Return the type of a field that may be left out."""
    alternatives = typing.get_args(type_)
    if type(None) not in alternatives:
        return type_
    return next(alternative for alternative in alternatives if alternative is not type(None))


def _listed(names: Sequence[str]) -> str:
    """Names in words: `step, slot and position`."""
    return " and ".join([*filter(None, [", ".join(names[:-1])]), names[-1]])


def intervention(kind: str, answers: Mapping[str, Any], length: int = 0) -> dict[str, Any]:
    """Make a fork file's intervention; what was left empty is left out. Errors: usage, naming the
    field.

    `length`: targets of a sequence, for those that are given as step/slot: all of each is meant.
    """
    keys: dict[str, Any] = {"kind": kind}
    for field in fields(kind):
        answer = answers.get(field.name, field.default)
        text = answer if isinstance(answer, str) else str(answer)
        if field.read is bool:
            if answer:
                keys[field.name] = True
        elif text.strip():
            try:
                keys[field.name] = field.read(text if field.wide else text.strip())
            except ValueError:
                raise ForensicsError(
                    "usage",
                    f"{field.label}: wanted {field.wanted}, found {text[:80]!r}",
                    field.help or "see docs/interventions.md",
                ) from None
            if field.read is _rows:
                keys[field.name] = [[*place, 0, length] for place in keys[field.name]]
    return keys
