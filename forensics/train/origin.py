"""Where a run came from that another trainer made: what its header keeps beside our own settings.

origin = origin_of(read_header(runs, "olmo"))       None for a run of ours
origin.title                                        "olmo"
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from forensics.errors import ForensicsError
from forensics.result_records import part_to_document, read_part
from forensics.train.header import Header


@dataclass(frozen=True)
class Stage:
    """One stage of a run made elsewhere, whose steps may begin again at 0."""

    name: str  # empty where the run has no stages
    first: int  # state of its first checkpoint
    last: int
    checkpoints: int


@dataclass(frozen=True)
class Origin:
    """What an imported run is made from, and what was assumed of it."""

    format: str  # of the reader; empty where there is a log alone
    source: str  # as it was given, folders in full
    linked: bool = False  # the weights stay in `source`
    stage: str = ""  # that these checkpoints are of
    stages: tuple[Stage, ...] = ()  # all that the source holds
    order: Literal["known", "unknown"] = "unknown"
    order_why: str = ""  # why it is unknown, and what is known all the same
    data: tuple[str, ...] = ()  # where its token files lie
    tokenizer: str = ""  # where its tokenizer comes from; empty: none was found
    logs: tuple[str, ...] = ()
    logged_steps: int = 0
    without_moments: tuple[int, ...] = ()  # states whose optimizer's moments were not saved
    trained: bool = True  # False: a model alone, of which no training is known
    notes: tuple[str, ...] = ()  # what was assumed, a sentence each
    unplaced: tuple[str, ...] = ()  # stored names that have no place in our decoder

    def to_document(self) -> dict[str, Any]:
        """Return it as plain JSON, as run.json keeps it."""
        return part_to_document(self)


def origin_of(header: Header) -> Origin | None:
    """Read a header's origin; None: the run, or the one it is a fork of, was trained here.

    Errors: integrity.
    """
    if header.origin is None:
        return None
    try:
        return read_part(Origin, header.origin)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise ForensicsError(
            "integrity",
            f"run.json of {header.name} is damaged: its origin: {e!r}",
            "restore it from a copy, or import the run again",
        ) from None


def absolute(path: Path) -> str:
    """Return a path in full, links kept: as an origin names what lies outside the runs."""
    return str(path.expanduser().absolute())
