"""Numbers of things in sentences: `counted(3, "row")` is "3 rows", `times(1)` is "once"."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return a number and what it counts, in the plural where it is not one."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def times(number: int) -> str:
    """Return how often something is, in words."""
    return "once" if number == 1 else f"{number:,} times"
