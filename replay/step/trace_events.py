"""The events of a traced step, and how they compare with those of the step before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from forensics.step import sums
from forensics.step.result import StepResult
from replay.step.result import LargestChange, Phase, TraceEvent, WorstToken
from replay.step.step_clock import LOSS, UPDATE, Span
from replay.step.step_watch import StepWatch, merge_extreme
from replay.step.update_split import layer_of

Spans = Mapping[str, Span]
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


def forward_events(watch: StepWatch, spans: Spans) -> list[TraceEvent]:
    """Return each sub-layer's or block's forward in order; micro-batches share an event."""
    kinds: tuple[tuple[str, tuple[str, ...]], ...] = (
        (("attn", ATTENTION_VALUES), ("mlp", MLP_VALUES))
        if watch.grain == "sub-layer"
        else (("block", ATTENTION_VALUES + MLP_VALUES),)
    )
    return [
        _event(
            f"layers.{layer}.{kind} forward",
            "forward",
            {name: values[name] for name in names if name in values},
            spans,
            layer,
        )
        for layer, values in sorted(watch.forward.items())
        for kind, names in kinds
    ]


def _event(
    name: str,
    phase: Phase,
    values: dict[str, float | None],
    spans: Spans,
    layer: int | None = None,
    detail: tuple[WorstToken, ...] = (),
) -> TraceEvent:
    """Return an event with the time that was measured of it, if any."""
    span = spans.get(name)
    start, seconds = (span.start, span.seconds) if span is not None else (None, None)
    return TraceEvent(name, phase, start, seconds, values, layer, detail)


def loss_event(result: StepResult, spans: Spans) -> TraceEvent:
    """Return the loss by sequence and its worst tokens; its time holds the logits' gradient."""
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
    values: dict[str, float | None] = {
        "loss": result.loss,
        "worst_sequence": float(by_sequence.max()),
        "median_sequence": float(by_sequence.median()),
        "logit_max": float(result.rows.largest.max()),
        "logz_max": float(result.rows.logz.max()),
        "output_entropy": sums.mean(result.rows.entropy),
    }
    return _event(LOSS, "loss", values, spans, detail=detail)


def backward_events(watch: StepWatch, spans: Spans) -> list[TraceEvent]:
    """Return the gradient's arrival at each output, micro-batches together.

    Its time lasts until the gradient reaches the next output; that of the first holds the
    embedding's.
    """
    values: dict[tuple[str, int], dict[str, float | None]] = {}
    for arrival in watch.arrivals:
        merge_extreme(values.setdefault(arrival[:2], {}), "grad_rms", arrival.rms)
    return [
        _event(f"layers.{layer}.{kind} backward", "backward", by_name, spans, layer)
        for (kind, layer), by_name in values.items()
    ]


def clipping_event(result: StepResult) -> TraceEvent:
    """Return what clipping did to the gradient; its time is part of the update's."""
    values = {"grad_norm": result.grad_norm, "clip_scale": result.clip_scale}
    return TraceEvent("clipping", "clip", None, None, values)


def update_events(watch: StepWatch, spans: Spans) -> list[TraceEvent]:
    """Return the update of all tensors, which is timed; then each tensor's numbers.

    One call updates them all, so that no tensor has a time of its own.
    """
    tensors = watch.rows.get("tensor", [])
    return [
        _event(UPDATE, "update", {}, spans),
        *(
            TraceEvent(
                f"{tensor} update",
                "update",
                None,
                None,
                {name: watch.rows[name][i] for name in UPDATE_VALUES},
                layer_of(tensor),
            )
            for i, tensor in enumerate(tensors)
        ),
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
    baseline = {**base.values, "seconds": base.seconds}
    return replace(event, baseline=baseline, ratio=ratio)


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
