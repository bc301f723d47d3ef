"""`RUN@STEP`: how a state is named on the command line and in fork files."""

from __future__ import annotations

from typing import NamedTuple

from forensics.errors import ForensicsError


class StateName(NamedTuple):
    """A run and one of its states; without a step, the last checkpoint is meant."""

    run: str
    step: int | None


def parse_state(text: str) -> StateName:
    """Read `RUN@STEP` or `RUN`. Errors: usage."""
    run, at, step = text.partition("@")
    if at and not step.isdecimal():
        raise ForensicsError(
            "usage",
            f"wanted RUN@STEP, found {text!r}",
            "e.g. demo@200; without @STEP, the last checkpoint",
        )
    return StateName(run, int(step) if at else None)
