"""Of how many batches moments are made that were not saved: a setting of a whole command.

Without torch, so that a command's help stays quick; `warm_moments` makes them.
"""

from __future__ import annotations

import os

from forensics.errors import ForensicsError

VARIABLE = "FORENSICS_WARM_MOMENTS"  # N, for a command and the processes that it starts


def asked_for() -> int:
    """Return how many batches moments are to be made of; 0: none are made. Errors: usage."""
    text = os.environ.get(VARIABLE, "0")
    if not text.isdecimal():
        raise ForensicsError(
            "usage", f"wanted a number of batches in {VARIABLE}, found {text!r}", "e.g. 100"
        )
    return int(text)
