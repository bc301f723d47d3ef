"""Events of a traced step, and how they compare with the step before."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from forensics.step import sums
from forensics.step.result import StepResult
from replay.step.step_watch import StepWatch, merge_extreme

WORST_TOKENS = 10
COLLAPSED = 0.01  # nats


@dataclass
class Event:
    """Something that happened inside the step; `values` by name, in the units of
    docs/formulas.md.
    """

    name: str  # e.g. layers.3.attn forward
    phase: str  # forward | loss | backward | clip | update | next
    start: float  # seconds since the step began
    seconds: float
    values: dict[str, float | None]
    layer: int | None = None
    detail: list[dict[str, Any]] = field(default_factory=list)
    baseline: dict[str, float | None] = field(default_factory=dict)
    ratio: dict[str, float | None] = field(default_factory=dict)


def share_time(events: list[Event], phase: str, seconds: float) -> None:
    """All tensors are updated by one call: each takes an equal part of its time."""
    own = [e for e in events if e.phase == phase]
    for i, event in enumerate(own):
        event.seconds = seconds / len(own)
        event.start += i * event.seconds


def forward_events(tracer: StepWatch) -> list[Event]:
    """In the order of time; micro-batches follow one another and share a layer's event."""
    layers = sorted(tracer.forward)
    spans: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for kind in ("attn", "mlp"):
        own = [(a, b) for k, a, b in tracer.decoder.spans if k == kind]
        for i, span in enumerate(own):
            spans.setdefault((kind, layers[i % len(layers)]), []).append(span)
    events = []
    for layer in layers:
        v = tracer.forward[layer]
        for kind, names in (
            (
                "attn",
                (
                    "resid_in_rms",
                    "attn_out_rms",
                    "attn_out_max",
                    "attn_logit_max",
                    "attn_logit_spread",
                    "attn_entropy_mean",
                    "attn_entropy_min",
                    "q_norm_max",
                    "k_norm_max",
                ),
            ),
            ("mlp", ("mlp_out_rms", "mlp_out_max", "act_max", "resid_out_rms", "resid_out_max")),
        ):
            own = spans[kind, layer]
            events.append(
                Event(
                    f"layers.{layer}.{kind} forward",
                    "forward",
                    own[0][0] - tracer.began,
                    sum(b - a for a, b in own),
                    {n: v[n] for n in names if n in v},
                    layer,
                )
            )
    return events


def loss_event(tracer: StepWatch, result: StepResult) -> Event:
    assert result.ce is not None and result.batch is not None and result.rows is not None
    ce, weight = result.ce.cpu(), result.batch.weight
    by_sequence = (ce * weight).sum(1) / weight.sum(1).clamp_min(1e-30)
    worst = torch.topk(
        (ce * (weight != 0)).reshape(-1), min(WORST_TOKENS, ce.numel())
    ).indices.tolist()
    T = ce.shape[1]
    detail = [
        {
            "slot": i // T,
            "position": i % T,
            "token": int(result.batch.tokens[i // T, i % T + 1]),
            "loss": float(ce.reshape(-1)[i]),
        }
        for i in worst
    ]
    ended = tracer.decoder.spans[-1][2]
    first = tracer.decoder.arrivals[0][2] if tracer.decoder.arrivals else ended
    values = {
        "loss": result.loss,
        "worst_sequence": float(by_sequence.max()),
        "median_sequence": float(by_sequence.median()),
        "logit_max": float(result.rows.largest.max()),
        "logz_max": float(result.rows.logz.max()),
        "output_entropy": sums.mean(result.rows.entropy),
    }
    return Event(
        "loss", "loss", ended - tracer.began, max(0.0, first - ended), values, detail=detail
    )


def backward_events(tracer: StepWatch) -> list[Event]:
    """The gradient's arrival at each sub-layer's output, and how long until it reached the next;
    micro-batches together.
    """
    layers, arrivals = len(tracer.forward), tracer.decoder.arrivals
    found: dict[tuple[str, int], Event] = {}
    for i, (kind, call, at, rms) in enumerate(arrivals):
        until = arrivals[i + 1][2] if i + 1 < len(arrivals) else tracer.gradients_at
        layer = call % layers
        event = found.setdefault(
            (kind, layer),
            Event(f"layers.{layer}.{kind} backward", "backward", at - tracer.began, 0.0, {}, layer),
        )
        event.seconds += until - at
        merge_extreme(event.values, "grad_rms", rms)
    return list(found.values())


def compare_events(events: list[Event], baseline: list[Event]) -> None:
    """Ratios to the same event of the step before; entropies are compared the other way round: a
    fall is the alarm.

    Below COLLAPSED nats an entropy counts as that: the ratio of two that are nothing tells nothing.
    """
    before: dict[str, Event] = {e.name: e for e in baseline}
    for event in events:
        base = before.get(event.name)
        if base is None:
            continue
        event.baseline = {**base.values, "seconds": base.seconds}
        for name, value in event.values.items():
            old = base.values.get(name)
            if (
                value is None
                or old is None
                or not old
                or not math.isfinite(value)
                or not math.isfinite(old)
            ):
                event.ratio[name] = None
            elif "entropy" in name and event.phase == "forward":
                event.ratio[name] = max(old, COLLAPSED) / max(value, COLLAPSED)
            else:
                event.ratio[name] = value / old


def largest_ratios(events: list[Event]) -> list[dict[str, Any]]:
    """Numbers that moved most against the baseline, largest ratio first."""
    rows = [
        {
            "event": e.name,
            "what": n,
            "value": e.values[n],
            "baseline": e.baseline.get(n),
            "ratio": r,
        }
        for e in events
        for n, r in e.ratio.items()
        if r is not None and r > 0
    ]
    return sorted(rows, key=lambda row: -row["ratio"])
