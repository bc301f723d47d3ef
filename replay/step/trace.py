"""One step under the microscope: its events in order, beside the same events of the step before.

    replay trace demo 401

Each sub-layer's forward (each block's, where the run compiled or recomputed them), the loss by
sequence and token, the backward, clipping, the update and each tensor's part in it, then the next
batch's loss: every event with its numbers and the ratio to the baseline step's. The step goes
through the one `advance` twice, as the run ran it: counted, then timed with nothing counted. Both
passes must lead to the same state, and its digest is the recorded one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback, silent
from forensics.step import sums
from forensics.step.result import StepResult
from forensics.step.state import TrainState
from forensics.train.advance import take_step, token_losses
from forensics.train.run import Run
from replay.lineage import is_recorded, open_trajectory, require_intact
from replay.step import artifacts
from replay.step.result import StepTrace, TraceEvent
from replay.step.saved_tensors import SavedTensors, require_absent
from replay.step.step_clock import Marks, Span, TimedWatch, clock_for, grain_of, timed_decoder
from replay.step.step_watch import StepWatch, SublayerGradients
from replay.step.trace_conclusion import conclude, recorded_differences
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


def trace(
    runs: Path,
    name: str,
    step: int,
    progress: ProgressCallback = silent,
    save_gradients: Path | None = None,
) -> StepTrace:
    """Trace `step` beside the step before, and take the update in between apart.

    Kept as `looks/trace-<step>.json` in the run's folder; raw gradients and activations go to the
    folder `save_gradients`. Errors: usage, missing, integrity, storage.
    """
    if save_gradients is not None:
        require_absent(save_gradients)
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
    saved = SavedTensors() if save_gradients is not None else None
    traced = _traced(run, state, step, saved)
    events = beside_baseline(traced.events, baseline.events)
    batch = run.stream(step)
    update = split_update(before, middle, run.policy(before.counters), run.model, run.stream)
    blame = layer_blame(run, update, batch, progress)
    result = StepTrace(
        run=name,
        step=step,
        baseline=step - 1,
        exact=is_recorded(run, state),
        conclusion=conclude(
            baseline.result.loss, traced.result.loss, recorded_differences(run, step), blame
        ),
        grain=grain_of(run.model.decoder),
        clock=clock_for(run.header.device).kind,
        compiled=run.recipe.train.compile,
        recomputed=run.model.decoder.recompute,
        events=tuple(events),
        largest=largest_changes(events),
        layer_blame=blame,
        line_scan=line_scan(run, update, batch),
        saved=str(save_gradients) if save_gradients is not None else None,
    )
    if saved is not None and save_gradients is not None:
        saved.write(save_gradients, _about(result, traced.result))
    artifacts.write_record(artifacts.trace_of(run.folder, step), result)
    return result


def _about(trace: StepTrace, result: StepResult) -> dict[str, object]:
    """Say what step the saved tensors are of."""
    return {
        "run": trace.run,
        "step": trace.step,
        "exact": trace.exact,
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "clip_scale": result.clip_scale,
    }


class _Traced(NamedTuple):
    """A step's events, and what it did."""

    events: Sequence[TraceEvent]
    result: StepResult


def _traced(run: Run, state: TrainState, step: int, saved: SavedTensors | None = None) -> _Traced:
    """Take `state` through its step, counted, and a copy of it, timed; measure the next batch."""
    if run.policy(state.counters).update == "none":
        raise ForensicsError(
            "usage",
            f"{run.name} computes nothing at step {step}: it is skipped",
            "trace another step",
        )
    untouched = state.clone()
    model, grain = run.model, grain_of(run.model.decoder)
    if grain == "sub-layer":
        model = dataclasses.replace(model, decoder=SublayerGradients(model.decoder))
    watch = StepWatch(model, grain, saved)
    result = take_step(state, run.stream, run.policy, model, watch)
    spans = _timed(run, untouched)
    if untouched.digest() != state.digest():
        raise ForensicsError(
            "integrity",
            f"the timed pass of step {step} of {run.name} led to another state than the counted",
            "the machine is not deterministic: `forensics doctor`",
        )
    events = [
        *forward_events(watch, spans),
        loss_event(result, spans),
        *backward_events(watch, spans),
        clipping_event(result),
        *update_events(watch, spans),
    ]
    if step + 1 < run.header.steps:
        events.append(_next_batch(run, state, step + 1))
    return _Traced(events, result)


def _timed(run: Run, state: TrainState) -> dict[str, Span]:
    """Take the step once more with marks and nothing else; return when its parts ran."""
    marks = Marks(clock_for(run.header.device))
    model = dataclasses.replace(run.model, decoder=timed_decoder(run.model.decoder, marks))
    take_step(state, run.stream, run.policy, model, TimedWatch(marks))
    return marks.spans()


def _next_batch(run: Run, state: TrainState, step: int) -> TraceEvent:
    """Measure the loss of the next batch, which is no part of the step and has no time in it."""
    batch = run.stream(step)
    ce = token_losses(state.params, batch, run.model, run.header.precision)
    loss = float(sums.total(ce * batch.weight.to(ce.device))) / batch.denominator
    return TraceEvent("next batch", "next", None, None, {"loss": loss})
