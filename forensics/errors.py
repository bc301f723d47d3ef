"""The one exception that users see, with a closed list of kinds, each with its exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_CODES = {
    "usage": 2,  # a flag or argument that makes no sense
    "config": 2,  # a recipe or spec with an unknown key or a value out of range
    "data": 2,  # a corpus, tokenizer or document that cannot be used
    "sql": 2,  # SQL that does not parse, is not one SELECT, or reads what it may not
    "device": 2,  # a device or precision this machine does not have
    "missing": 3,  # no such run, step, file
    "integrity": 1,  # bytes on disk that are not those that were written
    "mismatch": 1,  # a check that did not hold
    "storage": 1,  # the disk is full or cannot be written
    "memory": 1,  # does not fit
}


class ForensicsError(Exception):
    """What was wanted, what was found and what to try next; `kind` is a key of EXIT_CODES."""

    def __init__(self, kind: str, message: str, hint: str = "") -> None:
        assert kind in EXIT_CODES, f"unknown kind {kind!r}: add it to EXIT_CODES"
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint

    @property
    def exit_code(self) -> int:
        """Return the command's exit code of this kind of error."""
        return EXIT_CODES[self.kind]

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


def nearest(name: str, known: Iterable[str]) -> str:
    """Name the known word closest to `name`, or list them all when none is close."""
    words = sorted(known)
    match = difflib.get_close_matches(name, words, n=1, cutoff=0.6)
    if match:
        return f"did you mean {match[0]!r}?"
    return "known: " + ", ".join(words) if words else "there are none yet"


def first_line(error: BaseException) -> str:
    """Return the first line of what another library says, or its name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
