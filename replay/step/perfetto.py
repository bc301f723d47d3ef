"""A traced step as a Chrome trace."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def perfetto(document: dict[str, Any]) -> dict[str, Any]:
    """The events as a Chrome trace, which Perfetto opens: phases are its rows, microseconds its
    unit.
    """
    phases = ("forward", "loss", "backward", "clip", "update", "next")
    made: list[dict[str, Any]] = [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": i, "args": {"name": phase}}
        for i, phase in enumerate(phases)
    ]
    made.append(
        {
            "name": "process_name",
            "ph": "M",
            "pid": 1,
            "args": {"name": f"{document['run']} step {document['step']}"},
        }
    )
    for e in document["events"]:
        ratios = {f"{n} ÷ before": r for n, r in e["ratio"].items() if r is not None}
        arguments = {
            k: v for k, v in {**e["values"], **ratios}.items() if v is not None and math.isfinite(v)
        }
        made.append(
            {
                "name": e["name"],
                "cat": e["phase"],
                "ph": "X",
                "pid": 1,
                "tid": phases.index(e["phase"]),
                "ts": e["start"] * 1e6,
                "dur": max(e["seconds"] * 1e6, 1.0),
                "args": arguments,
            }
        )
    return {"traceEvents": made, "displayTimeUnit": "ms"}


def write_perfetto(document: dict[str, Any], path: Path) -> None:
    """Errors: storage."""
    from forensics.store.writer import write_atomic

    write_atomic(path, json.dumps(perfetto(document)).encode())
