"""Numbers and small sentences as the pages write them. Steps 1,342; loss 3 decimals, gaps signed;
ratios 31×.

The words are hedged: "first to move", "before". Nothing is "caused" without a replay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

NONE = "–"


def count(n: float | None) -> str:
    """Write a whole number: `1,342`."""
    return NONE if n is None else f"{n:,.0f}"


def loss(x: float | None) -> str:
    """Write a loss in nats: `3.268`."""
    return NONE if x is None else f"{x:.3f}" if math.isfinite(x) else str(x)


def gap(x: float | None) -> str:
    """Write a signed difference in nats: `−0.054`."""
    return NONE if x is None else f"{x:+.3f}".replace("-", "−")


def ratio(x: float | None) -> str:
    """Write a ratio: `31×`, `2.4×`."""
    if x is None or math.isnan(x):
        return NONE
    if math.isinf(x):
        return "∞×"
    return f"{x:,.0f}×" if abs(x) >= 9.95 else f"{x:.2g}×"


def sigma(x: float | None) -> str:
    """Write a distance in robust standard deviations: `31σ`."""
    return NONE if x is None else f"{x:,.0f}σ" if math.isfinite(x) else "∞σ"


def share(x: float | None) -> str:
    """Write a share: `38%`."""
    return NONE if x is None else f"{100 * x:.0f}%"


def number(x: float | None) -> str:
    """Write a number with three digits."""
    return NONE if x is None else f"{x:.3g}"


def steps(n: int | None, after: str = "") -> str:
    """`1 step before`, `8 steps before`."""
    return (
        NONE
        if n is None
        else f"{n:,} {'step' if abs(n) == 1 else 'steps'}{' ' + after if after else ''}"
    )


def listed(items: Sequence[object], most: int = 4) -> str:
    """Write the first items, and how many more there are."""
    shown = [str(item) for item in items[:most]]
    return ", ".join(shown) + (f" and {len(items) - most} more" if len(items) > most else "")
