"""Who watches a step: sites where a forward hands out tensors, and the observer that takes them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from forensics.step.policy import StepPolicy
from forensics.step.result import StepResult
from forensics.step.state import TrainState


class Site(NamedTuple):
    """Name where a tapped tensor comes from."""

    kind: str  # one of SITES
    layer: int = -1


# q (B, H, T, K) and k (B, G, T, K) after RoPE and QK-norm · residual stream into and out of a block
# (B, T, D) · what attention and MLP add to it (B, T, D) · the MLP's hidden activation (B, T, M) ·
# the loss's gradient at the block's output (B, T, D) · where attention stays inside documents,
# their numbers (B, T), before the first block `advance` adds one, "launched": all of a step's work
# but the update was handed to the device, nothing was read yet
SITES = (
    *("documents", "q", "k", "resid_in", "resid_out"),
    *("attn_out", "mlp_out", "mlp_act", "resid_grad"),
)


class Taps(Protocol):
    """Take the tensors that a forward hands out."""

    wants: frozenset[str]

    def tap(self, site: Site, x: Tensor) -> None:
        """Take the tensor of a site."""


class Untapped:
    """Want no tensor."""

    wants: frozenset[str] = frozenset()

    def tap(self, site: Site, x: Tensor) -> None:
        """Refuse every tensor."""
        raise AssertionError("nothing was wanted")


UNTAPPED = Untapped()


class Observer(Protocol):
    """Watch `advance` and change no bit of it."""

    wants: frozenset[str]  # kinds of sites to tap, and "rows" for the statistics of the logits

    def begin(self, state: TrainState, policy: StepPolicy) -> None:
        """Take the state before the step."""

    def tap(self, site: Site, x: Tensor) -> None:
        """Take the tensor of a site."""

    def gradients(self, state: TrainState, grads: dict[str, Tensor], result: StepResult) -> None:
        """Take the gradients before clipping."""

    def end(self, state: TrainState, result: StepResult) -> None:
        """Take the state after the step."""


class Silent:
    """Observe nothing."""

    wants: frozenset[str] = frozenset()

    def begin(self, state: TrainState, policy: StepPolicy) -> None:
        """Ignore the state before the step."""

    def tap(self, site: Site, x: Tensor) -> None:
        """Ignore the tensor."""

    def gradients(self, state: TrainState, grads: dict[str, Tensor], result: StepResult) -> None:
        """Ignore the gradients."""

    def end(self, state: TrainState, result: StepResult) -> None:
        """Ignore the state after the step."""


SILENT = Silent()
