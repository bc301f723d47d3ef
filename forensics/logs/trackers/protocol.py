"""What a tracker is, and what it is told of the run that it follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class TrackedRun:
    """The run that trackers follow."""

    name: str
    folder: Path
    created: str  # UTC; with the name, which run of that name
    config: Mapping[str, Any]  # the recipe
    first_step: int  # that will be logged: of a resumed run the step that it goes on from


class Tracker(Protocol):
    """One open tracker. Whatever it raises ends it, and not the training."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take the numbers of a step."""

    def close(self) -> None:
        """Write what is not written yet."""
