"""The update taken apart by tensor, and the loss along it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app import formatting, safe_html, theme
from app.safe_html import strong
from app.views.trace import charts

TENSORS = 12  # bars of the layer blame


def draw_blame(trace: dict[str, Any]) -> None:
    """Draw by how much each tensor's update changes the loss of the batch."""
    import pyarrow as pa

    blame = trace["layer_blame"]
    rows = [row for row in blame["tensors"] if row["alone_batch"] is not None][:TENSORS]
    if not rows:
        safe_html.nothing(
            "The losses around the update are not finite, so it cannot be taken apart."
        )
        return
    safe_html.caption(
        f"By how much the update of step {formatting.count(trace['baseline'])} changes this batch's"
        " loss (nats/token) · orange: ",
        strong("with this tensor's update alone"),
        " · grey: ",
        strong("with all but this tensor's"),
        f" · dashed: with the whole update, {formatting.gap(blame['rise_batch'])}",
    )
    bars = [
        {"tensor": row["tensor"], "what": role, "change": row[key]}
        for row in rows
        for role, key in (("alone", "alone_batch"), ("all but it", "without_batch"))
        if row[key] is not None
    ]
    rise = [blame["rise_batch"]] if blame["rise_batch"] is not None else []
    from forensics.visible import visible

    order = [visible(row["tensor"]) for row in rows]
    theme.draw(
        theme.filled(charts.blame(safe_html.dark(), len(rows)), rows=order),
        {
            "bars": pa.Table.from_pylist(bars),
            "rise": pa.table({"change": pa.array(rise, pa.float64())}),
        },
        key="blame",
    )
    if len(blame["tensors"]) > len(rows):
        safe_html.caption(
            f"and {len(blame['tensors']) - len(rows)} more tensors, each with a smaller change"
        )


def draw_scan(trace: dict[str, Any]) -> None:
    """Draw the loss on the way of the update."""
    import pyarrow as pa

    scan = trace["line_scan"]
    lines = [
        {"alpha": row["alpha"], "loss": row[key], "change": row[key] - scan[0][key], "on": on}
        for row in scan
        for on, key in (("batch", "batch"), ("probes", "probe"))
        if row[key] is not None and scan[0][key] is not None
    ]
    if not lines:
        safe_html.nothing("No loss on the way of the update is finite.")
        return
    safe_html.caption(
        f"Change of the loss on the way of the update of step {formatting.count(trace['baseline'])}"
        " (nats/token) · ● this batch · ■ held-out sequences · dashed: the whole update (α = 1)."
        f" {reading_of(scan)}"
    )
    theme.draw(
        charts.scan(safe_html.dark()),
        {"scan": pa.Table.from_pylist(lines), "taken": pa.table({"alpha": [1.0]})},
        key="scan",
    )


def reading_of(scan: Sequence[dict[str, Any]]) -> str:
    """Say whether the update was too long or went the wrong way, for the batch that followed."""
    rows = [row for row in scan if row["batch"] is not None]
    if len(rows) < 3:
        return ""
    best = min(rows, key=lambda row: row["batch"])["alpha"]
    if best == rows[0]["alpha"]:
        return (
            "For this batch any part of the update is worse than none: its direction does not help"
            " it."
        )
    if best < 1:
        return f"For this batch α = {best:g} would have been best: the update went too far."
    return f"For this batch the loss is lowest at α = {best:g}: the update was not too long."
