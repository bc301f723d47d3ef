"""The update taken apart by tensor, and the loss along it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app import formatting, safe_html, theme
from app.safe_html import strong
from app.views.trace import charts

TENSORS = 12  # bars of the layer blame


def draw_blame(trace: dict[str, Any]) -> None:
    import pyarrow as pa

    blame = trace["layer_blame"]
    rows = [r for r in blame["tensors"] if r["alone_batch"] is not None][:TENSORS]
    if not rows:
        safe_html.nothing("The update's losses are not finite: there is nothing to take apart.")
        return
    safe_html.caption(
        f"Update {formatting.count(trace['baseline'])} taken apart: change of this batch's loss"
        " (nats/token) with ",
        strong("one tensor's update alone"),
        " (orange) and with ",
        strong("all but it"),
        f" (grey) · dashed: the whole update, {formatting.gap(blame['rise_batch'])}",
    )
    bars = [
        {"tensor": r["tensor"], "what": what, "change": r[key]}
        for r in rows
        for what, key in (("alone", "alone_batch"), ("all but it", "without_batch"))
        if r[key] is not None
    ]
    rise = [blame["rise_batch"]] if blame["rise_batch"] is not None else []
    from forensics.visible import visible

    order = [visible(r["tensor"]) for r in rows]
    theme.draw(
        theme.filled(charts.blame(safe_html.dark(), len(rows)), rows=order),
        {
            "bars": pa.Table.from_pylist(bars),
            "rise": pa.table({"change": pa.array(rise, pa.float64())}),
        },
        key="blame",
    )
    if len(blame["tensors"]) > len(rows):
        safe_html.caption(f"and {len(blame['tensors']) - len(rows)} more tensors, each with less")


def draw_scan(trace: dict[str, Any]) -> None:
    import pyarrow as pa

    scan = trace["line_scan"]
    lines = [
        {"alpha": r["alpha"], "loss": r[key], "change": r[key] - scan[0][key], "on": on}
        for r in scan
        for on, key in (("batch", "batch"), ("probes", "probe"))
        if r[key] is not None and scan[0][key] is not None
    ]
    if not lines:
        safe_html.nothing("Along the update no loss is finite.")
        return
    safe_html.caption(
        f"Change of loss along update {formatting.count(trace['baseline'])} (nats/token) · ● this batch"
        f" · ■ held-out probes · dashed: the step taken. {reading_of(scan)}"
    )
    theme.draw(
        charts.scan(safe_html.dark()),
        {"scan": pa.Table.from_pylist(lines), "taken": pa.table({"alpha": [1.0]})},
        key="scan",
    )


def reading_of(scan: Sequence[dict[str, Any]]) -> str:
    """Whether the step was too long or went the wrong way, on the batch that followed."""
    rows = [r for r in scan if r["batch"] is not None]
    if len(rows) < 3:
        return ""
    best = min(rows, key=lambda r: r["batch"])["alpha"]
    if best == rows[0]["alpha"]:
        return (
            "For this batch every part of the step is worse than none: the direction does not"
            " help it."
        )
    if best < 1:
        return f"For this batch α = {best:g} would have been best: the step went too far."
    return f"For this batch the loss is lowest at α = {best:g}: the step was not too long for it."
