"""Watch one step: when each sub-layer ran, and its numbers."""

from __future__ import annotations

import math
import time
from typing import Any

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


class TimedDecoder(Decoder):
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


class StepWatch:
    """An observer that turns taps into events."""

    wants = frozenset(
        {"q", "k", "documents", "resid_in", "resid_out", "attn_out", "mlp_out", "mlp_act", "rows"}
    )

    def __init__(self, decoder: TimedDecoder, model: StepModel) -> None:
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
                merge_extreme(
                    values, name, float(pick(found[name].float())), minimum=name.endswith("_min")
                )
        elif kind == "mlp_act":
            merge_extreme(values, "act_max", float(x.abs().amax()))
        else:
            merge_extreme(values, f"{kind}_rms", _rms(x))
            merge_extreme(values, f"{kind}_max", float(x.abs().amax()))

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


def merge_extreme(
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
