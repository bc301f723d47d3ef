"""Describe the fields of an intervention, once, for everything that asks for them.

A field's type says how a fork file spells it. Its metadata say the rest: the question of the app's
form, the option of `replay fork`, whether a sweep moves it with the starting step or draws it anew,
and which columns of a SELECT fill it.

factor: float = field(metadata=about(label="Factor", begin=0.5))
at: int = field(metadata=about(step=True, label="Before batch"))
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forensics.train.run import Run

Rows = dict[str, list[Any]]  # what a SELECT returned, by column


@dataclass(frozen=True)
class Columns:
    """Key columns of a SELECT, and how its rows become the field's value.

    `read(run, rows, first, last)` gets the window that the statement chose for; an empty value
    means that nothing of it lies inside.
    """

    names: tuple[str, ...]
    read: Callable[[Run, Rows, int, int], Any]


@dataclass(frozen=True)
class Option:
    """An option of `replay fork` that goes with the flags of its kind and sets one field."""

    name: str  # with its dashes
    help: str | None = None
    default: Any = None  # where the field has none


@dataclass(frozen=True)
class Choice:
    """Which field a text fills, and how: `find(run, text)` returns what the field then holds."""

    fills: str
    find: Callable[[Run, str], list[int]]


@dataclass(frozen=True)
class Setting:
    """What there is to know of a field beside its name, type and default."""

    label: str = ""  # the question of the app's form, which leaves out a field without one
    begin: Any = None  # the answer that the form begins with; None: the field's default
    help: str = ""  # what the form explains
    wide: bool = False  # the form gives it several lines
    choices: tuple[str, ...] = ()
    step: bool = False  # a step, or places that begin with one: a sweep moves it with the start
    seed: bool = False  # a sweep's further seeds are added to it
    option: Option | None = None
    columns: tuple[Columns, ...] = ()  # a SELECT that returns all of one set fills the field
    instead_of_sql: bool = False  # a fork file that has the key asks no SELECT
    settled: bool = False  # written down when the fork is made, from what the fork is
    chooses: Choice | None = None  # fills another field by searching the run's data


PLAIN = Setting()


def about(**answers: Any) -> dict[str, Setting]:
    """Return the metadata of a dataclass's field; the keywords are those of `Setting`."""
    return {"setting": Setting(**answers)}


@dataclass(frozen=True)
class Field:
    """One field of a kind: its name, type, default, and what its declaration says of it."""

    name: str
    type: Any
    default: Any  # dataclasses.MISSING where a fork file must have it
    about: Setting

    @property
    def required(self) -> bool:
        """Whether a fork file must have it."""
        return self.default is dataclasses.MISSING


def fields_of(kind: type) -> list[Field]:
    """List the fields of a kind in the order of their declaration."""
    types = typing.get_type_hints(kind)
    return [
        Field(field.name, types[field.name], field.default, field.metadata.get("setting", PLAIN))
        for field in dataclasses.fields(kind)
    ]
