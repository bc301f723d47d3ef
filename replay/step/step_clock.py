"""When each part of a step runs: marks on the host's clock, or events on the device's own.

    marks = Marks(clock_for(run.header.device))
    model = dataclasses.replace(run.model, decoder=timed_decoder(run.model.decoder, marks))
    take_step(state, run.stream, run.policy, model, TimedWatch(marks))
    marks.spans()["layers.0.attn forward"]        # Span(start, seconds), over all micro-batches

Nothing is counted on the way: no tap, no statistics, no read of a tensor. A mark on a GPU is queued
behind the work that it follows, and read when the step is over.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from forensics.model.decoder import BlockOut, Decoder, Params
from forensics.step.observer import Site
from forensics.step.policy import StepPolicy
from forensics.step.result import StepResult
from forensics.step.state import TrainState
from replay.step.result import ClockKind, Grain

LOSS, UPDATE = "loss", "update"  # labels of what is no layer's


class Span(NamedTuple):
    """When a part of the step first began, and how long it took over all micro-batches; seconds."""

    start: float
    seconds: float


class Clock(Protocol):
    """Take marks, and tell afterwards when they were."""

    kind: ClockKind

    def mark(self) -> Any:
        """Return a mark of now, that `seconds` reads."""

    def seconds(self, first: Any, mark: Any) -> float:
        """Return the time from the first mark to this one."""


class HostClock:
    """The host's clock: right where the host does the work itself."""

    kind: ClockKind = "host"

    def mark(self) -> float:
        """Return the time now."""
        return time.perf_counter()

    def seconds(self, first: float, mark: float) -> float:
        """Return the time between two marks."""
        return mark - first


class DeviceClock:
    """Events in the device's queue: the host runs ahead of it, and its clock says nothing."""

    kind: ClockKind = "device"

    def __init__(self, event: Callable[[], Any] | None = None) -> None:
        self._event = event or (lambda: torch.cuda.Event(enable_timing=True))

    def mark(self) -> Any:
        """Queue an event behind the work that was handed out."""
        event = self._event()
        event.record()
        return event

    def seconds(self, first: Any, mark: Any) -> float:
        """Return the device's time between two events, once it has passed both."""
        mark.synchronize()
        return float(first.elapsed_time(mark)) / 1000  # from ms


def clock_for(device: str) -> Clock:
    """Return the clock that tells the time of work on this device."""
    return DeviceClock() if device == "cuda" else HostClock()


class Marks:
    """Labelled marks in the order of the step; a label holds until the next mark."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._marks: list[tuple[str | None, Any]] = []

    def mark(self, label: str | None) -> None:
        """Say what begins now; None: nothing that is told apart."""
        self._marks.append((label, self.clock.mark()))

    def spans(self) -> dict[str, Span]:
        """Add each label's stretches up."""
        if not self._marks:
            return {}
        start = self._marks[0][1]
        times = [self.clock.seconds(start, mark) for _, mark in self._marks]
        spans: dict[str, Span] = {}
        for (label, _), began, ended in zip(self._marks, times, times[1:]):
            if label is not None:
                span = spans.get(label, Span(began, 0.0))
                spans[label] = Span(span.start, span.seconds + ended - began)
        return spans


def grain_of(decoder: Decoder) -> Grain:
    """Say how fine the run's own step can be followed.

    A compiled block is one graph, and a recomputed one runs twice: neither has sub-layers to mark.
    """
    fine = decoder._block == decoder.block
    return "sub-layer" if fine else "block"


def timed_decoder(decoder: Decoder, marks: Marks) -> Decoder:
    """Return the run's own decoder with marks around its sub-layers, or around its blocks."""
    if grain_of(decoder) == "sub-layer":
        return _TimedSublayers(decoder, marks)
    timed = copy.copy(decoder)  # with the very graphs that the run's decoder has compiled
    block, layers, calls = decoder._block, decoder.shape.layers, 0

    def marked(*inputs: Any) -> BlockOut:
        nonlocal calls
        layer, calls = calls % layers, calls + 1
        marks.mark(f"layers.{layer}.block forward")
        out: BlockOut = block(*inputs)
        _after(marks, layer, "block", out.resid, last=layer == layers - 1)
        return out

    timed._block = marked
    return timed


def _after(marks: Marks, layer: int, kind: str, out: Tensor, last: bool) -> None:
    """Mark the end of a forward, and the moment its output's gradient arrives."""
    marks.mark(LOSS if last else None)
    if out.requires_grad:
        out.register_hook(lambda _: marks.mark(f"layers.{layer}.{kind} backward"))


class _TimedSublayers(Decoder):
    """The same eager decoder with marks; its arithmetic is inherited untouched."""

    def __init__(self, decoder: Decoder, marks: Marks) -> None:
        super().__init__(decoder.shape, decoder.device, plain=decoder.plain)
        self._marks, self._calls = marks, {"attn": 0, "mlp": 0}

    def _attention(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        layer = self._begin("attn")
        out = super()._attention(*arguments)
        _after(self._marks, layer, "attn", out[0], last=False)
        return out

    def _mlp(self, x: Tensor, w: Params) -> tuple[Tensor, Tensor]:
        layer = self._begin("mlp")
        out = super()._mlp(x, w)
        _after(self._marks, layer, "mlp", out[0], last=layer == self.shape.layers - 1)
        return out

    def _begin(self, kind: str) -> int:
        layer = self._calls[kind] % self.shape.layers
        self._calls[kind] += 1
        self._marks.mark(f"layers.{layer}.{kind} forward")
        return layer


class TimedWatch:
    """An observer that marks the ends of a step and the begin of its update, and reads nothing."""

    wants: frozenset[str] = frozenset()

    def __init__(self, marks: Marks) -> None:
        self._marks = marks

    def begin(self, state: TrainState, policy: StepPolicy) -> None:
        """Start the clock."""
        self._marks.mark(None)

    def tap(self, site: Site, x: Tensor) -> None:
        """Refuse every tensor."""
        raise AssertionError("a timed pass wants nothing")

    def gradients(self, state: TrainState, grads: dict[str, Tensor], result: StepResult) -> None:
        """Mark the end of the backward."""
        self._marks.mark(UPDATE)

    def end(self, state: TrainState, result: StepResult) -> None:
        """Stop the clock."""
        self._marks.mark(None)
