"""What goes of the excess when the strongest sequences are removed, beside as many random ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app import safe_html, theme
from app.views.blame import charts


def curve_of(d: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the marks of the deletion curve: by influence, and of as many random sequences."""
    rows = []
    for point in d["deletion_curve"]:
        rows.append({"removed": point["removed"], "taken": point["taken"], "order": "by influence"})
        if point["random"] is not None:
            rows.append({"removed": point["removed"], "taken": point["random"], "order": "random"})
    return [row for row in rows if row["taken"] is not None]


def draw_curve(d: Mapping[str, Any]) -> None:
    """Draw by how much the spike falls without the strongest sequences, and without random ones."""
    import pyarrow as pa

    rows = curve_of(d)
    if not rows:
        safe_html.nothing(
            "No sequence was removed.",
            hint="Where the loss does not rise above its past there is nothing to explain.",
        )
        return
    proof, total = d["proof"], d["excess"]["total"]
    nulls = [
        {"removed": proof["sequences"], "taken": fall, "order": "random"}
        for fall in (proof["random"] if proof else [])
        if fall is not None
    ]
    if proof and proof["taken"] is not None:
        rows.append(
            {"removed": proof["sequences"], "taken": proof["taken"], "order": "by influence"}
        )
    schema = pa.schema([("removed", pa.int64()), ("taken", pa.float64()), ("order", pa.string())])
    ends = []
    for order, word in (("by influence", "the strongest ●"), ("random", "random ■")):
        points = [row for row in rows if row["order"] == order]
        if points:
            last = max(points, key=lambda row: row["removed"])
            ends.append({**last, "word": word, "below": False})
    extra = (
        f" · ticks: {len(nulls)} removals of {proof['sequences']} random sequences" if nulls else ""
    )
    safe_html.caption(
        "By how much the spike falls without these sequences (nats/token) · dotted: the whole"
        f" spike{extra}"
    )
    tables = {
        "curve": pa.Table.from_pylist(sorted(rows, key=lambda row: row["removed"]), schema),
        "nulls": pa.Table.from_pylist(nulls, schema),
        "ends": pa.Table.from_pylist(
            theme.below(ends, "taken"),
            pa.schema([*schema, ("word", pa.string()), ("below", pa.bool_())]),
        ),
        "whole": pa.table({"taken": pa.array([total], pa.float64())}),
    }
    theme.draw(charts.deletion(safe_html.dark()), tables, key="blame-curve")
