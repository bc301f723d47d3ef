"""What goes of the excess when the strongest sequences are removed, beside as many random ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app import safe_html, theme
from app.views.blame import charts


def curve_of(d: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Marks of the deletion curve: what goes by influence, and with as many random sequences."""
    rows = []
    for p in d["deletion_curve"]:
        rows.append({"removed": p["removed"], "taken": p["taken"], "order": "by influence"})
        if p["random"] is not None:
            rows.append({"removed": p["removed"], "taken": p["random"], "order": "random"})
    return [r for r in rows if r["taken"] is not None]


def draw_curve(d: Mapping[str, Any]) -> None:
    import pyarrow as pa

    rows = curve_of(d)
    if not rows:
        safe_html.nothing(
            "No removal was tried.",
            hint="Where no spike rises above its past there is nothing to remove.",
        )
        return
    proof, total = d["proof"], d["excess"]["total"]
    nulls = [
        {"removed": proof["sequences"], "taken": x, "order": "random"}
        for x in (proof["random"] if proof else [])
        if x is not None
    ]
    if proof and proof["taken"] is not None:
        rows.append(
            {"removed": proof["sequences"], "taken": proof["taken"], "order": "by influence"}
        )
    schema = pa.schema([("removed", pa.int64()), ("taken", pa.float64()), ("order", pa.string())])
    ends = []
    for order, word in (("by influence", "the strongest ●"), ("random", "random ■")):
        own = [r for r in rows if r["order"] == order]
        if own:
            last = max(own, key=lambda r: r["removed"])
            ends.append({**last, "word": word, "below": False})
    extra = f" · ticks: {len(nulls)} random removals of {proof['sequences']}" if nulls else ""
    safe_html.caption(
        f"Nats of the excess that go when these are removed together · dotted: all of it{extra}"
    )
    tables = {
        "curve": pa.Table.from_pylist(sorted(rows, key=lambda r: r["removed"]), schema),
        "nulls": pa.Table.from_pylist(nulls, schema),
        "ends": pa.Table.from_pylist(
            theme.below(ends, "taken"),
            pa.schema([*schema, ("word", pa.string()), ("below", pa.bool_())]),
        ),
        "whole": pa.table({"taken": pa.array([total], pa.float64())}),
    }
    theme.draw(charts.deletion(safe_html.dark()), tables, key="blame-curve")
