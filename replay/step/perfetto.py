"""A traced step as a Chrome trace, which Perfetto opens."""

from __future__ import annotations

import json
import math
import typing
from pathlib import Path
from typing import Any

from replay.step.result import Phase, StepTrace, TraceEvent

PHASES: tuple[Phase, ...] = typing.get_args(Phase)  # the trace's rows, in this order


def perfetto(trace: StepTrace) -> dict[str, Any]:
    """Return the events as a Chrome trace: phases are its rows, microseconds its unit."""
    names = [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": i, "args": {"name": phase}}
        for i, phase in enumerate(PHASES)
    ]
    process = {"name": f"{trace.run} step {trace.step}"}
    names.append({"name": "process_name", "ph": "M", "pid": 1, "args": process})
    events = [_chrome_event(event) for event in trace.events]
    return {"traceEvents": names + events, "displayTimeUnit": "ms"}


def _chrome_event(event: TraceEvent) -> dict[str, Any]:
    ratios = {f"{name} ÷ before": x for name, x in event.ratio.items() if x is not None}
    numbers = {**event.values, **ratios}
    return {
        "name": event.name,
        "cat": event.phase,
        "ph": "X",
        "pid": 1,
        "tid": PHASES.index(event.phase),
        "ts": event.start * 1e6,
        "dur": max(event.seconds * 1e6, 1.0),
        "args": {name: x for name, x in numbers.items() if x is not None and math.isfinite(x)},
    }


def write_perfetto(trace: StepTrace, path: Path) -> None:
    """Write the Chrome trace of a step. Errors: storage."""
    from forensics.store.writer import write_atomic

    write_atomic(path, json.dumps(perfetto(trace)).encode())
