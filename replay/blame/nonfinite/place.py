"""The first number of a step that is not finite: tensor, sequence, position, token.

    watch = PlaceWatch()
    result = advance(state, batch, policy, model, watch)
    watch.first()          forward, then loss, backward, gradients, update

Order: all forwards before the loss, before all backwards, before gradients and the update; within
the forward by layer, then by the order of the layer's own computation, then by sequence and
position. In a backward the last layer comes first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from forensics.model.decoder import Decoder
from forensics.step.observer import Site
from forensics.step.policy import StepPolicy
from forensics.step.result import StepResult
from forensics.step.state import TrainState
from replay.blame.nonfinite.result import Stage

# sites of a layer in the order in which its forward makes them; `resid_in` of a later layer is
# `resid_out` of the one before
FORWARD = ("resid_in", "q", "k", "attention logits", "attn_out", "mlp_act", "mlp_out", "resid_out")
# axes of (sequence, position) in a tapped tensor
PER_TOKEN = {"q": (0, 2), "k": (0, 2), "attention logits": (0, 2)}
STAGES: tuple[Stage, ...] = ("forward", "loss", "backward", "gradient", "update")


@dataclass(frozen=True, order=True)
class RawPlace:
    """Where a number is not finite; ordered as it was computed."""

    stage: int  # of STAGES
    layer: int  # in the order of the computation
    site: int
    slot: int  # −1: of the whole batch
    position: int
    tensor: str = field(compare=False)
    element: tuple[int, ...] = field(compare=False)
    value: str = field(compare=False)


def value_of(number: float) -> str:
    """Name a number that is not finite."""
    return "nan" if math.isnan(number) else "inf" if number > 0 else "-inf"


class PlaceWatch:
    """An observer that looks at every tensor of one step."""

    wants = frozenset(
        ("q", "k", "resid_in", "resid_out", "attn_out", "mlp_out", "mlp_act", "resid_grad")
    )

    def __init__(self, decoder: Decoder) -> None:
        """Look at a step of this model."""
        self.places: list[RawPlace] = []
        self._names, self._layers = decoder.names, decoder.shape.layers  # in order of the forward
        self._q: Tensor | None = None
        self._k: Tensor | None = None
        # sequences of the micro-batches up to this one, forward and (by layer) backward
        self._forward = 0
        self._backward: dict[int, int] = {}

    def begin(self, state: TrainState, policy: StepPolicy) -> None:
        """Take nothing: a state that is finite is the caller's to choose."""

    @torch.no_grad()
    def tap(self, site: Site, x: Tensor) -> None:
        """Look at one tensor of one micro-batch."""
        kind, layer = site
        if kind == "resid_grad":
            first = self._backward.get(layer, 0)
            self._backward[layer] = first + len(x)
            # the last layer's gradient comes first
            self._look("backward", self._layers - 1 - layer, 0, f"layers.{layer}.{kind}", x, first)
            return
        if kind == "q" and layer == 0:
            self._forward += len(x)
        first = self._forward - len(x)
        if kind == "q":
            self._q = x
        elif kind == "k":
            self._k = x
        elif kind == "attn_out" and not bool(torch.isfinite(x).all()):
            self._look_at_logits(layer, first)
        if kind == "resid_in" and layer > 0:
            return
        name = "embedding" if kind == "resid_in" else f"layers.{layer}.{kind}"
        self._look("forward", layer, FORWARD.index(kind), name, x, first)

    def gradients(self, state: TrainState, grads: dict[str, Tensor], result: StepResult) -> None:
        """Look at the logits, each token's loss and the gradients, before clipping."""
        assert result.ce is not None
        self._look("loss", 0, 0, "loss", result.ce[..., None], 0)
        # the backward runs from the last tensor to the first
        for order, name in enumerate(reversed([n for n in self._names if n in grads])):
            if not self._look_at_parameter("gradient", order, f"{name} gradient", grads[name]):
                norm = torch.tensor((result.grad_norms or {}).get(name, 0.0))
                self._look_at_parameter("gradient", order, f"{name} gradient norm", norm)

    def end(self, state: TrainState, result: StepResult) -> None:
        """Look at the parameters that the update left."""
        for order, name in enumerate(self._names):
            self._look_at_parameter("update", order, f"{name} update", state.params[name])

    def first(self) -> RawPlace | None:
        """Return the first place; None where all is finite."""
        return min(self.places, default=None)

    def by_slot(self) -> list[RawPlace]:
        """List the first place of each sequence in the forward, in order of the sequences."""
        forward = [place for place in self.places if place.stage <= 1 and place.slot >= 0]
        slots = sorted({place.slot for place in forward})
        return [min(place for place in forward if place.slot == slot) for slot in slots]

    def _look_at_logits(self, layer: int, first: int) -> None:
        """Say whether q·k is what is not finite: the first that softmax cannot take."""
        q, k = self._q, self._k
        if q is None or k is None or not bool(torch.isfinite(q).all() & torch.isfinite(k).all()):
            return
        groups = q.shape[1] // k.shape[1]
        for row in range(len(q)):
            keys = k[row].repeat_interleave(groups, 0)
            logits = (q[row] @ keys.transpose(-1, -2)) / math.sqrt(q.shape[-1])  # (H, T, T)
            visible = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).tril()
            logits = logits.masked_fill(~visible, 0.0)
            site = FORWARD.index("attention logits")
            name = f"layers.{layer}.attention logits"
            self._look("forward", layer, site, name, logits[None], first + row, (0, 2))

    def _look(
        self,
        stage: Stage,
        layer: int,
        site: int,
        name: str,
        x: Tensor,
        first: int,
        axes: tuple[int, int] | None = None,
    ) -> None:
        """Append the first place of each sequence of a tensor (sequences, …) that has one."""
        broken = ~torch.isfinite(x)
        if not bool(broken.any()):
            return
        slot_axis, position_axis = axes or PER_TOKEN.get(name.rsplit(".", 1)[-1], (0, 1))
        order = [slot_axis, position_axis]
        order += [axis for axis in range(x.dim()) if axis not in order]
        arranged = broken.permute(order)
        for row in arranged.flatten(1).any(1).nonzero()[:, 0].tolist():
            position, *element = arranged[row].nonzero()[0].tolist()
            number = float(x.permute(order)[row][(position, *element)])
            self.places.append(
                RawPlace(
                    STAGES.index(stage),
                    layer,
                    site,
                    first + row,
                    # a target's loss is that of predicting the next token
                    position + (stage == "loss"),
                    name,
                    tuple(element) if stage != "loss" else (),
                    value_of(number),
                )
            )

    def _look_at_parameter(self, stage: Stage, order: int, name: str, x: Tensor) -> bool:
        """Append the first place of a parameter's tensor; return whether there is one."""
        broken = ~torch.isfinite(x)
        if not bool(broken.any()):
            return False
        index = tuple(broken.nonzero()[0].tolist())
        value = value_of(float(x[index]))
        self.places.append(RawPlace(STAGES.index(stage), order, 0, -1, -1, name, index, value))
        return True
