"""The events of a traced step, and how they compare with those of the step before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from forensics.step import sums
from forensics.step.result import StepResult
from replay.step.result import LargestChange, TraceEvent, WorstToken
from replay.step.step_watch import Span, StepWatch, Sublayer, merge_extreme
from replay.step.update_split import layer_of

WORST_TOKENS = 10
COLLAPSED = 0.01  # nats
# values of a sub-layer's forward, and of a tensor's update
ATTENTION_VALUES = (
    "resid_in_rms",
    "attn_out_rms",
    "attn_out_max",
    "attn_logit_max",
    "attn_logit_spread",
    "attn_entropy_mean",
    "attn_entropy_min",
    "q_norm_max",
    "k_norm_max",
)
MLP_VALUES = ("mlp_out_rms", "mlp_out_max", "act_max", "resid_out_rms", "resid_out_max")
UPDATE_VALUES = ("grad_norm", "grad_max", "rms_t", "staleness", "update_ratio", "gss_share")


def forward_events(watch: StepWatch) -> list[TraceEvent]:
    """Return each sub-layer's forward in the order of time; micro-batches share an event."""
    layers = sorted(watch.forward)
    spans: dict[tuple[Sublayer, int], list[Span]] = {}
    for kind in ("attn", "mlp"):
        of_kind = [span for span in watch.decoder.spans if span.kind == kind]
        for i, span in enumerate(of_kind):
            spans.setdefault((kind, layers[i % len(layers)]), []).append(span)
    events = []
    for layer in layers:
        values = watch.forward[layer]
        for kind, names in (("attn", ATTENTION_VALUES), ("mlp", MLP_VALUES)):
            layer_spans = spans[kind, layer]
            events.append(
                TraceEvent(
                    f"layers.{layer}.{kind} forward",
                    "forward",
                    layer_spans[0].began - watch.began,
                    sum(span.ended - span.began for span in layer_spans),
                    {name: values[name] for name in names if name in values},
                    layer,
                )
            )
    return events


def loss_event(watch: StepWatch, result: StepResult) -> TraceEvent:
    """Return the loss by sequence and its worst tokens; it lasts until the backward begins."""
    assert result.ce is not None and result.batch is not None and result.rows is not None
    ce, weight = result.ce.cpu(), result.batch.weight
    by_sequence = (ce * weight).sum(1) / weight.sum(1).clamp_min(1e-30)
    counted = (ce * (weight != 0)).reshape(-1)
    worst = torch.topk(counted, min(WORST_TOKENS, ce.numel())).indices.tolist()
    T = ce.shape[1]
    detail = tuple(
        WorstToken(
            slot=i // T,
            position=i % T,
            token=int(result.batch.tokens[i // T, i % T + 1]),
            loss=float(ce.reshape(-1)[i]),
        )
        for i in worst
    )
    began = watch.decoder.spans[-1].ended
    ended = watch.decoder.arrivals[0].time if watch.decoder.arrivals else began
    values = {
        "loss": result.loss,
        "worst_sequence": float(by_sequence.max()),
        "median_sequence": float(by_sequence.median()),
        "logit_max": float(result.rows.largest.max()),
        "logz_max": float(result.rows.logz.max()),
        "output_entropy": sums.mean(result.rows.entropy),
    }
    seconds = max(0.0, ended - began)
    return TraceEvent("loss", "loss", began - watch.began, seconds, values, detail=detail)


@dataclass
class _Backward:
    """A sub-layer's backward while its micro-batches are drawn together."""

    start: float
    seconds: float = 0.0
    values: dict[str, float | None] = field(default_factory=dict)


def backward_events(watch: StepWatch) -> list[TraceEvent]:
    """Return the gradient's arrival at each sub-layer's output, micro-batches together.

    An event lasts until the gradient reaches the next sub-layer.
    """
    layers, arrivals = len(watch.forward), watch.decoder.arrivals
    backwards: dict[tuple[Sublayer, int], _Backward] = {}
    for i, arrival in enumerate(arrivals):
        until = arrivals[i + 1].time if i + 1 < len(arrivals) else watch.gradients_at
        key = (arrival.kind, arrival.call % layers)
        backward = backwards.setdefault(key, _Backward(arrival.time - watch.began))
        backward.seconds += until - arrival.time
        merge_extreme(backward.values, "grad_rms", arrival.rms)
    return [
        TraceEvent(
            f"layers.{layer}.{kind} backward",
            "backward",
            backward.start,
            backward.seconds,
            backward.values,
            layer,
        )
        for (kind, layer), backward in backwards.items()
    ]


def clipping_event(watch: StepWatch, result: StepResult) -> TraceEvent:
    """Return what clipping did to the gradient."""
    values = {"grad_norm": result.grad_norm, "clip_scale": result.clip_scale}
    return TraceEvent("clipping", "clip", watch.gradients_at - watch.began, 0.0, values)


def update_events(watch: StepWatch, ended: float) -> list[TraceEvent]:
    """Return each tensor's update.

    One call updates them all by the time `ended`: each takes an equal part of it.
    """
    tensors = watch.rows.get("tensor", [])
    start = watch.gradients_at - watch.began
    seconds = (ended - watch.gradients_at) / len(tensors) if tensors else 0.0
    return [
        TraceEvent(
            f"{tensor} update",
            "update",
            start + i * seconds,
            seconds,
            {name: watch.rows[name][i] for name in UPDATE_VALUES},
            layer_of(tensor),
        )
        for i, tensor in enumerate(tensors)
    ]


def beside_baseline(events: Sequence[TraceEvent], before: Sequence[TraceEvent]) -> list[TraceEvent]:
    """Return the events beside those of the step before, with the ratios of their values."""
    baselines = {event.name: event for event in before}
    return [
        _beside(event, baselines[event.name]) if event.name in baselines else event
        for event in events
    ]


def _beside(event: TraceEvent, base: TraceEvent) -> TraceEvent:
    ratio = {
        name: _ratio(event, name, value, base.values.get(name))
        for name, value in event.values.items()
    }
    return replace(event, baseline={**base.values, "seconds": base.seconds}, ratio=ratio)


def _ratio(event: TraceEvent, name: str, value: float | None, base: float | None) -> float | None:
    """Divide a value by the baseline's; an entropy the other way round: a fall is the alarm.

    Below COLLAPSED nats an entropy counts as that: the ratio of two that are nothing tells nothing.
    """
    if value is None or not base or not math.isfinite(value) or not math.isfinite(base):
        return None
    if "entropy" in name and event.phase == "forward":
        return max(base, COLLAPSED) / max(value, COLLAPSED)
    return value / base


def largest_changes(events: Sequence[TraceEvent]) -> tuple[LargestChange, ...]:
    """List the numbers that moved most against the baseline, largest ratio first."""
    changes = [
        LargestChange(event.name, name, event.values[name] or 0.0, event.baseline.get(name), ratio)
        for event in events
        for name, ratio in event.ratio.items()
        if ratio is not None and ratio > 0
    ]
    return tuple(sorted(changes, key=lambda change: -change.ratio))
