"""One step under the microscope: its events in order, beside the same events of the step before.

    replay trace demo 401

Each sub-layer's forward, the loss by sequence and token, each sub-layer's backward, clipping, each
tensor's update, then the next batch's loss: every event with its numbers, its wall time, and the
ratio to the baseline step's. The traced step is the step: it goes through the one `advance`, and
its digest is the recorded one.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback, silent
from forensics.step import sums
from forensics.step.state import TrainState
from forensics.train.advance import take_step, token_losses
from forensics.train.run import Run
from replay.lineage import is_recorded, open_trajectory, require_intact
from replay.step import artifacts
from replay.step.result import StepTrace, TraceEvent
from replay.step.step_watch import StepWatch, TimedDecoder
from replay.step.trace_events import (
    backward_events,
    beside_baseline,
    clipping_event,
    forward_events,
    largest_changes,
    loss_event,
    update_events,
)
from replay.step.update_split import layer_blame, line_scan, split_update


def trace(runs: Path, name: str, step: int, progress: ProgressCallback = silent) -> StepTrace:
    """Trace `step` beside the step before, and take the update in between apart.

    Kept as `looks/trace-<step>.json` in the run's folder. Errors: usage, missing, integrity,
    storage.
    """
    run = open_trajectory(runs, name)
    if not max(run.header.first_step, 0) + 1 <= step < run.header.steps:
        raise ForensicsError(
            "missing",
            f"wanted a step of {name} with one before it, found {step}",
            f"steps {run.header.first_step + 1} to {run.header.steps - 1} have one",
        )
    require_intact(run)
    state = run.state_at(step - 1)
    before = state.clone()
    baseline = _traced(run, state, step - 1)
    middle = state.clone()
    events = beside_baseline(_traced(run, state, step), baseline)
    batch = run.stream(step)
    update = split_update(before, middle, run.policy(before.counters), run.model, run.stream)
    result = StepTrace(
        run=name,
        step=step,
        baseline=step - 1,
        exact=is_recorded(run, state),
        events=tuple(events),
        largest=largest_changes(events),
        layer_blame=layer_blame(run, update, batch, progress),
        line_scan=line_scan(run, update, batch),
    )
    artifacts.write_record(artifacts.trace_of(run.folder, step), result)
    return result


def _traced(run: Run, state: TrainState, step: int) -> list[TraceEvent]:
    """Take `state` through its step, traced; then measure the next batch."""
    if run.policy(state.counters).update == "none":
        raise ForensicsError(
            "usage",
            f"{run.name} computes nothing at step {step}: it is skipped",
            "trace another step",
        )
    decoder = TimedDecoder(run.model.decoder)
    model = dataclasses.replace(run.model, decoder=decoder)
    watch = StepWatch(decoder, model)
    result = take_step(state, run.stream, run.policy, model, watch)
    ended = time.perf_counter()
    events = [
        *forward_events(watch),
        loss_event(watch, result),
        *backward_events(watch),
        clipping_event(watch, result),
        *update_events(watch, ended),
    ]
    if step + 1 < run.header.steps:
        events.append(_next_batch(run, state, step + 1, watch.began))
    return events


def _next_batch(run: Run, state: TrainState, step: int, began: float) -> TraceEvent:
    started = time.perf_counter()
    batch = run.stream(step)
    ce = token_losses(state.params, batch, run.model, run.header.precision)
    loss = float(sums.total(ce * batch.weight.to(ce.device))) / batch.denominator
    seconds = time.perf_counter() - started
    return TraceEvent("next batch", "next", started - began, seconds, {"loss": loss})
