"""What is said of numbers that rest on a replay which is not the recorded run bit for bit.

A replay on another machine is one, and so is every replay of a run that was trained elsewhere:
`replay.elsewhere` says how near it came.
"""

from __future__ import annotations

MARK = "TOLERANCE ONLY"
RUN = "the recorded run"
CONTROL, A_CONTROL, WINDOW = "the control", "a control", "the replayed window"
STATE, A_STATE, STEP = "the state", "a state", "the step"


def not_bitwise(what: str, recorded: str = RUN) -> str:
    """Say of what a command prints that it is not what was recorded."""
    return f"{MARK}: {what} is not {recorded} bit for bit"


def limits(what: str, recorded: str = RUN) -> str:
    """Say the same before numbers that it limits."""
    return f"{not_bitwise(what, recorded)}, so no number below is better than that gap."
