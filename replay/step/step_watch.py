"""Watch one step: when each sub-layer runs, and its numbers."""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from forensics.model.decoder import Decoder, Params
from forensics.model.step_model import StepModel
from forensics.observe.attention import attention_statistics
from forensics.observe.tensors import TensorProbe
from forensics.step import sums
from forensics.step.observer import Site
from forensics.step.policy import StepPolicy
from forensics.step.result import StepResult
from forensics.step.state import TrainState

Sublayer = str  # attn | mlp
# columns of the statistics of attention, and how they are drawn together over sequences and heads
OVER_HEADS = (
    ("attn_logit_max", torch.amax),
    ("attn_logit_spread", torch.amax),
    ("attn_entropy_mean", torch.mean),
    ("attn_entropy_min", torch.amin),
    ("q_norm_max", torch.amax),
    ("k_norm_max", torch.amax),
)


class Span(NamedTuple):
    """A sub-layer's forward; times by `time.perf_counter`."""

    kind: Sublayer
    began: float
    ended: float


class Arrival(NamedTuple):
    """The gradient's arrival at a sub-layer's output."""

    kind: Sublayer
    call: int  # of this kind of sub-layer in the step, from 0
    time: float
    rms: float  # of the gradient


class TimedDecoder(Decoder):
    """The same decoder, which notes when each sub-layer begins and ends.

    Its arithmetic is inherited untouched.
    """

    def __init__(self, decoder: Decoder) -> None:
        """Copy the decoder's shape and device."""
        super().__init__(decoder.shape, decoder.device)
        self.spans: list[Span] = []
        self.arrivals: list[Arrival] = []

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

    def _note(self, kind: Sublayer, started: float, out: Tensor) -> None:
        call = sum(span.kind == kind for span in self.spans)
        self.spans.append(Span(kind, started, time.perf_counter()))

        def arrived(grad: Tensor) -> None:
            self.arrivals.append(Arrival(kind, call, time.perf_counter(), _rms(grad.detach())))

        if out.requires_grad:
            out.register_hook(arrived)


class StepWatch:
    """An observer that holds what a step's events are made of."""

    wants = frozenset(
        {"q", "k", "documents", "resid_in", "resid_out", "attn_out", "mlp_out", "mlp_act", "rows"}
    )

    def __init__(self, decoder: TimedDecoder, model: StepModel) -> None:
        """Watch a step of `model`, whose decoder is `decoder`."""
        self.decoder, self.model = decoder, model
        self.began = time.perf_counter()
        self.forward: dict[int, dict[str, float]] = {}  # by layer
        self.gradients_at = 0.0
        self.q: dict[int, Tensor] = {}
        self.documents: Tensor | None = None
        self.probe: TensorProbe | None = None
        self.rows: dict[str, list] = {}  # columns of the table `tensors`

    def begin(self, state: TrainState, policy: StepPolicy) -> None:
        """Start the clock."""
        self.began = time.perf_counter()

    @torch.no_grad()
    def tap(self, site: Site, x: Tensor) -> None:
        """Take the numbers of a site; of a layer's micro-batches the extreme one counts."""
        kind, layer = site
        if kind == "documents":
            self.documents = x
            return
        if kind == "q":
            self.q[layer] = x
            return
        values = self.forward.setdefault(layer, {})
        if kind == "k":
            columns = attention_statistics(self.q.pop(layer), x, self.documents).columns()
            for name, pick in OVER_HEADS:
                value = float(pick(columns[name].float()))
                merge_extreme(values, name, value, minimum=name.endswith("_min"))
        elif kind == "mlp_act":
            merge_extreme(values, "act_max", float(x.abs().amax()))
        else:
            merge_extreme(values, f"{kind}_rms", _rms(x))
            merge_extreme(values, f"{kind}_max", float(x.abs().amax()))

    def gradients(self, state: TrainState, grads: dict[str, Tensor], result: StepResult) -> None:
        """Note when the backward has ended, and what the update will be measured against."""
        self.gradients_at = time.perf_counter()
        assert result.grad_norms is not None
        self.probe = TensorProbe(state, grads, result.grad_norms, result.clip_scale, result.policy)

    def end(self, state: TrainState, result: StepResult) -> None:
        """Measure each tensor's update."""
        if self.probe is not None:
            applied = result.action == "apply"
            self.rows = self.probe.measure(state, self.model.decayed, applied).columns()


def _rms(x: Tensor) -> float:
    return math.sqrt(float(sums.square_sum(x.float())) / x.numel())


def merge_extreme(
    values: dict[str, float] | dict[str, float | None],
    name: str,
    value: float,
    minimum: bool = False,
) -> None:
    """Keep the extreme one of a value's micro-batches.

    A NaN is the most extreme, which min and max would pass over.
    """
    stored = values.get(name)
    before = stored if stored is not None else math.inf if minimum else -math.inf
    if math.isnan(before) or math.isnan(value):
        values[name] = math.nan
    else:
        values[name] = (min if minimum else max)(before, value)
