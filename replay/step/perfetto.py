"""A traced step as a Chrome trace, which Perfetto opens."""

from __future__ import annotations

import json
import math
import typing
from pathlib import Path
from typing import Any

from replay.step.result import Phase, StepTrace, TraceEvent
from replay.step.step_clock import UPDATE

PHASES: tuple[Phase, ...] = typing.get_args(Phase)  # the trace's rows, in this order


def perfetto(trace: StepTrace) -> dict[str, Any]:
    """Return the timed events as a Chrome trace: phases are its rows, microseconds its unit.

    What no clock measured by itself is not drawn: the numbers of clipping, of each tensor's part of
    the update, and of the next batch stand with the update's slice.
    """
    names = [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": i, "args": {"name": phase}}
        for i, phase in enumerate(PHASES)
    ]
    process = {"name": f"{trace.run} step {trace.step}"}
    names.append({"name": "process_name", "ph": "M", "pid": 1, "args": process})
    timed = [event for event in trace.events if event.seconds is not None]
    untimed = {
        f"{event.name}: {name}": x
        for event in trace.events
        if event.seconds is None
        for name, x in _numbers(event).items()
    }
    events = [_chrome_event(event, untimed if event.name == UPDATE else {}) for event in timed]
    return {"traceEvents": names + events, "displayTimeUnit": "ms"}


def _chrome_event(event: TraceEvent, more: dict[str, float]) -> dict[str, Any]:
    assert event.start is not None and event.seconds is not None
    return {
        "name": event.name,
        "cat": event.phase,
        "ph": "X",
        "pid": 1,
        "tid": PHASES.index(event.phase),
        "ts": event.start * 1e6,
        "dur": max(event.seconds * 1e6, 1.0),
        "args": _numbers(event) | more,
    }


def _numbers(event: TraceEvent) -> dict[str, float]:
    """Return the finite numbers of an event, with their ratios."""
    ratios = {f"{name} ÷ before": x for name, x in event.ratio.items()}
    numbers = {**event.values, **ratios}
    return {name: x for name, x in numbers.items() if x is not None and math.isfinite(x)}


def write_perfetto(trace: StepTrace, path: Path) -> None:
    """Write the Chrome trace of a step. Errors: storage."""
    from forensics.store.writer import write_atomic

    write_atomic(path, json.dumps(perfetto(trace)).encode())
