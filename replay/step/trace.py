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
from typing import Any

from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback, silent
from forensics.step import sums
from forensics.step.state import TrainState
from forensics.train.advance import advance, token_losses
from forensics.train.run import Run
from replay.lineage import open_trajectory, require_intact
from replay.step import artifacts
from replay.step.step_watch import StepWatch, TimedDecoder
from replay.step.trace_events import (
    Event,
    backward_events,
    compare_events,
    forward_events,
    largest_ratios,
    loss_event,
    share_time,
)
from replay.step.update_split import layer_blame, line_scan, split_update


def trace(runs: Path, name: str, step: int, progress: ProgressCallback = silent) -> dict[str, Any]:
    """The events of `step`, each with the step before as its baseline, layer blame and line scan of
    update step−1.

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
    start = run.state_at(step - 1)
    before = start.clone()
    baseline = _traced(run, start, step - 1)
    middle = start.clone()
    events = _traced(run, start, step)
    compare_events(events, baseline)
    recorded = {
        row["step"]: row for row in run.table("steps", ["step", "state_digest"]).to_pylist()
    }
    digest = recorded.get(step, {}).get("state_digest")
    batch = run.stream(step)
    update = split_update(before, middle, run.policy(before.counters), run.model, run.stream)
    blame = layer_blame(run, update, batch, progress)
    document = {
        "run": name,
        "step": step,
        "baseline": step - 1,
        "exact": None if digest is None else digest == start.digest(),
        "events": [dataclasses.asdict(e) for e in events],
        "largest": largest_ratios(events),
        "layer_blame": blame,
        "line_scan": line_scan(run, update, batch),
    }
    artifacts.write_document(artifacts.trace_of(run.folder, step), document)
    return document


def _traced(run: Run, state: TrainState, step: int) -> list[Event]:
    """Advance `state` by one step, traced; then look at the next batch."""
    decoder = TimedDecoder(run.model.decoder)
    model = dataclasses.replace(run.model, decoder=decoder)
    policy = run.policy(state.counters)
    batch = run.stream(step) if policy.update != "none" else None
    if batch is None:
        raise ForensicsError(
            "usage",
            f"{run.name} computes nothing at step {step}: it is skipped",
            "trace another step",
        )
    tracer = StepWatch(decoder, model)
    result = advance(state, batch, policy, model, tracer)
    ended = time.perf_counter()
    events = [*forward_events(tracer), loss_event(tracer, result), *backward_events(tracer)]
    zero = tracer.began
    events.append(
        Event(
            "clipping",
            "clip",
            tracer.gradients_at - zero,
            0.0,
            {"grad_norm": result.grad_norm, "clip_scale": result.clip_scale},
        )
    )
    columns = ("grad_norm", "grad_max", "rms_t", "staleness", "update_ratio", "gss_share")
    for i, tensor in enumerate(tracer.rows.get("tensor", [])):
        layer = int(tensor.split(".")[1]) if tensor.startswith("layers.") else None
        events.append(
            Event(
                f"{tensor} update",
                "update",
                tracer.gradients_at - zero,
                0.0,
                {c: tracer.rows[c][i] for c in columns},
                layer,
            )
        )
    share_time(events, "update", ended - tracer.gradients_at)
    if step + 1 < run.header.steps:
        started = time.perf_counter()
        following = run.stream(step + 1)
        loss = token_losses(state.params, following, run.model, run.header.precision)
        mean = float(sums.total(loss * following.weight.to(loss.device))) / following.denominator
        events.append(
            Event(
                "next batch", "next", started - zero, time.perf_counter() - started, {"loss": mean}
            )
        )
    return events
