"""Report progress: a function that is told how much is done, and may raise to interrupt."""

from __future__ import annotations

from collections.abc import Callable

# done, of how many, a few words beside the bar
ProgressCallback = Callable[[int, int | None, str], None]


def silent(done: int, total: int | None, note: str = "") -> None:
    """Report to nobody."""
