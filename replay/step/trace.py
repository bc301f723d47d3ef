"""One step under the microscope: its events in order, beside the same events of the step before.

    replay trace demo 401

Each sub-layer's forward, the loss by sequence and token, each sub-layer's backward, clipping, each
tensor's update, then the next batch's loss: every event with its numbers, its wall time, and the
ratio to the baseline step's. The traced step is the step: it goes through the one `advance`, and
its digest is the recorded one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forensics.errors import ForensicsError
from forensics.model.decoder import Decoder, Params
from forensics.observe.attention import attention_statistics
from forensics.observe.tensors import TensorProbe
from forensics.progress import ProgressCallback, silent
from forensics.step import sums
from forensics.step.observer import Site
from forensics.step.policy import StepPolicy
from forensics.step.result import StepResult
from forensics.step.state import TrainState
from forensics.train.advance import StepModel, advance, token_losses
from forensics.train.run import Run
from replay.lineage import open_trajectory, require_intact
from replay.step import artifacts
from replay.step.update_split import layer_blame, line_scan, split_update

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


class _Timed(Decoder):
    """The same decoder, which notes when each sub-layer began and ended; its arithmetic is
    inherited untouched.
    """

    def __init__(self, own: Decoder) -> None:
        super().__init__(own.shape, own.device)
        self.spans: list[tuple[str, float, float]] = []
        self.arrivals: list[
            tuple[str, int, float, float]
        ] = []  # sub-layer, call, time, RMS of the gradient at its output

    def _attention(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        started = time.perf_counter()
        out = super()._attention(*arguments)
        self._note("attn", started, out[0])
        return out

    def _mlp(self, x: Tensor, w: Params) -> tuple[Tensor, Tensor]:
        started = time.perf_counter()
        out = super()._mlp(x, w)
        self._note("mlp", started, out[0])
        return out

    def _note(self, kind: str, started: float, out: Tensor) -> None:
        call = sum(k == kind for k, _, _ in self.spans)
        self.spans.append((kind, started, time.perf_counter()))
        if out.requires_grad:
            out.register_hook(
                lambda g: self.arrivals.append((kind, call, time.perf_counter(), _rms(g.detach())))
            )


class _Tracer:
    """An observer that turns taps into events."""

    wants = frozenset(
        {"q", "k", "documents", "resid_in", "resid_out", "attn_out", "mlp_out", "mlp_act", "rows"}
    )

    def __init__(self, decoder: _Timed, model: StepModel) -> None:
        self.decoder, self.model = decoder, model
        self.began = time.perf_counter()
        self.forward: dict[int, dict[str, float]] = {}
        self.gradients_at = 0.0
        self.q: dict[int, Tensor] = {}
        self.documents: Tensor | None = None
        self.probe: TensorProbe | None = None
        self.rows: dict[str, list] = {}
        self.result: StepResult | None = None

    def begin(self, state: TrainState, policy: StepPolicy) -> None:
        self.began = time.perf_counter()

    @torch.no_grad()
    def tap(self, site: Site, x: Tensor) -> None:
        kind, layer = site
        if kind == "documents":
            self.documents = x
            return
        if kind == "q":
            self.q[layer] = x
            return
        values = self.forward.setdefault(layer, {})
        if kind == "k":
            found = attention_statistics(self.q.pop(layer), x, self.documents).columns()
            for name, pick in (
                ("attn_logit_max", torch.amax),
                ("attn_logit_spread", torch.amax),
                ("attn_entropy_mean", torch.mean),
                ("attn_entropy_min", torch.amin),
                ("q_norm_max", torch.amax),
                ("k_norm_max", torch.amax),
            ):
                _merge(
                    values, name, float(pick(found[name].float())), minimum=name.endswith("_min")
                )
        elif kind == "mlp_act":
            _merge(values, "act_max", float(x.abs().amax()))
        else:
            _merge(values, f"{kind}_rms", _rms(x))
            _merge(values, f"{kind}_max", float(x.abs().amax()))

    def gradients(self, state: TrainState, grads: dict[str, Tensor], result: StepResult) -> None:
        self.gradients_at = time.perf_counter()
        assert result.grad_norms is not None
        self.probe = TensorProbe(state, grads, result.grad_norms, result.clip_scale, result.policy)

    def end(self, state: TrainState, result: StepResult) -> None:
        self.result = result
        if self.probe is not None:
            self.rows = self.probe.measure(
                state, self.model.decayed, result.action == "apply"
            ).columns()


def _rms(x: Tensor) -> float:
    return math.sqrt(float(sums.square_sum(x.float())) / x.numel())


def _merge(
    values: dict[str, float] | dict[str, float | None],
    name: str,
    value: float,
    minimum: bool = False,
) -> None:
    """Over micro-batches the extreme one counts; a NaN is the most extreme, which min and max would
    pass over.
    """
    known = values.get(name)
    before = known if known is not None else math.inf if minimum else -math.inf
    values[name] = (
        math.nan
        if math.isnan(before) or math.isnan(value)
        else (min if minimum else max)(before, value)
    )


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
    _compare(events, baseline)
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
        "largest": _largest(events),
        "layer_blame": blame,
        "line_scan": line_scan(run, update, batch),
    }
    artifacts.write_document(artifacts.trace_of(run.folder, step), document)
    return document


def _traced(run: Run, state: TrainState, step: int) -> list[Event]:
    """Advance `state` by one step, traced; then look at the next batch."""
    decoder = _Timed(run.model.decoder)
    model = dataclasses.replace(run.model, decoder=decoder)
    policy = run.policy(state.counters)
    batch = run.stream(step) if policy.update != "none" else None
    if batch is None:
        raise ForensicsError(
            "usage",
            f"{run.name} computes nothing at step {step}: it is skipped",
            "trace another step",
        )
    tracer = _Tracer(decoder, model)
    result = advance(state, batch, policy, model, tracer)
    ended = time.perf_counter()
    events = [*_forward_events(tracer), _loss_event(tracer, result), *_backward_events(tracer)]
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
    _share(events, "update", ended - tracer.gradients_at)
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


def _share(events: list[Event], phase: str, seconds: float) -> None:
    """All tensors are updated by one call: each takes an equal part of its time."""
    own = [e for e in events if e.phase == phase]
    for i, event in enumerate(own):
        event.seconds = seconds / len(own)
        event.start += i * event.seconds


def _forward_events(tracer: _Tracer) -> list[Event]:
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


def _loss_event(tracer: _Tracer, result: StepResult) -> Event:
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


def _backward_events(tracer: _Tracer) -> list[Event]:
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
        _merge(event.values, "grad_rms", rms)
    return list(found.values())


def _compare(events: list[Event], baseline: list[Event]) -> None:
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


def _largest(events: list[Event]) -> list[dict[str, Any]]:
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
