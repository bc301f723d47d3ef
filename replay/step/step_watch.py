"""Count one step: the numbers of each of its parts, by the very decoder that trained."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from forensics.model.decoder import Decoder, Params
from forensics.model.step_model import StepModel
from forensics.observe.attention import attention_statistics
from forensics.observe.tensors import TensorProbe
from forensics.step import sums
from forensics.step.observer import SITES, Site
from forensics.step.policy import StepPolicy
from forensics.step.result import StepResult
from forensics.step.state import TrainState
from replay.step.result import Grain
from replay.step.saved_tensors import SavedTensors

# columns of the statistics of attention, and how they are drawn together over sequences and heads
OVER_HEADS = (
    ("attn_logit_max", torch.amax),
    ("attn_logit_spread", torch.amax),
    ("attn_entropy_mean", torch.mean),
    ("attn_entropy_min", torch.amin),
    ("q_norm_max", torch.amax),
    ("k_norm_max", torch.amax),
)
COUNTED = frozenset(SITES) - {"resid_grad"}


class Arrival(NamedTuple):
    """The gradient's arrival at a part's output: root mean square over a micro-batch."""

    kind: str  # attn | mlp | block
    layer: int
    rms: float


class SublayerGradients(Decoder):
    """The same eager decoder, which measures the gradient at each sub-layer's output.

    Its arithmetic is inherited untouched.
    """

    def __init__(self, decoder: Decoder) -> None:
        """Copy the decoder's shape and device."""
        super().__init__(decoder.shape, decoder.device, plain=decoder.plain)
        self.arrivals: list[Arrival] = []
        self._calls = {"attn": 0, "mlp": 0}

    def _attention(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        out = super()._attention(*arguments)
        self._watch("attn", out[0])
        return out

    def _mlp(self, x: Tensor, w: Params) -> tuple[Tensor, Tensor]:
        out = super()._mlp(x, w)
        self._watch("mlp", out[0])
        return out

    def _watch(self, kind: str, out: Tensor) -> None:
        layer = self._calls[kind] % self.shape.layers
        self._calls[kind] += 1
        if out.requires_grad:
            out.register_hook(
                lambda grad: self.arrivals.append(Arrival(kind, layer, _rms(grad.detach())))
            )


class StepWatch:
    """An observer that holds what a step's events are made of."""

    def __init__(self, model: StepModel, grain: Grain, saved: SavedTensors | None = None) -> None:
        """Watch a step of `model`; `saved` takes its raw tensors too."""
        self.model, self.grain, self.saved = model, grain, saved
        self.wants = COUNTED | {"rows"}
        if grain == "block" or saved is not None:
            self.wants |= {"resid_grad"}
        decoder = model.decoder
        self.arrivals = decoder.arrivals if isinstance(decoder, SublayerGradients) else []
        self.forward: dict[int, dict[str, float]] = {}  # by layer
        self.q: dict[int, Tensor] = {}
        self.documents: Tensor | None = None
        self.probe: TensorProbe | None = None
        self.rows: dict[str, list] = {}  # columns of the table `tensors`

    def begin(self, state: TrainState, policy: StepPolicy) -> None:
        """Ignore the state before the step."""

    @torch.no_grad()
    def tap(self, site: Site, x: Tensor) -> None:
        """Take the numbers of a site; of a layer's micro-batches the extreme one counts."""
        if self.saved is not None:
            self.saved.take(site, x)
        kind, layer = site
        if kind == "documents":
            self.documents = x
            return
        if kind == "q":
            self.q[layer] = x
            return
        if kind == "resid_grad":
            if self.grain == "block":
                self.arrivals.append(Arrival("block", layer, _rms(x)))
            return
        values = self.forward.setdefault(layer, {})
        if kind == "k":
            window = self.model.decoder.shape.window_of(layer)
            statistics = attention_statistics(self.q.pop(layer), x, self.documents, window)
            columns = statistics.columns()
            for name, pick in OVER_HEADS:
                value = float(pick(columns[name].float()))
                merge_extreme(values, name, value, minimum=name.endswith("_min"))
        elif kind == "mlp_act":
            merge_extreme(values, "act_max", float(x.abs().amax()))
        else:
            merge_extreme(values, f"{kind}_rms", _rms(x))
            merge_extreme(values, f"{kind}_max", float(x.abs().amax()))

    def gradients(self, state: TrainState, grads: dict[str, Tensor], result: StepResult) -> None:
        """Note what the update will be measured against."""
        assert result.grad_norms is not None
        self.probe = TensorProbe(state, grads, result.grad_norms, result.clip_scale, result.policy)
        if self.saved is not None:
            self.saved.take_gradients(grads, result.grad_norms)

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
