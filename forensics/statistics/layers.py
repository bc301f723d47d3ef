"""Statistics of layers: what flows into, through and out of a block, and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor

LOGIT_LENS = "logit lens"  # in place of a site: the lens measures it


class Tapped(Protocol):
    """A tensor that the decoder hands out at a site, of one micro-batch."""

    tensor: Tensor

    def square_sum(self) -> Tensor:
        """Return Σ x² as a float64 scalar whose bits no thread count changes."""
        ...

    def fourth_sum(self) -> Tensor:
        """Return Σ x⁴ likewise."""
        ...


def _nothing(value: float, elements: int) -> float:
    return value


class Power(NamedTuple):
    """A power of another statistic of the same layer."""

    column: str
    power: int


@dataclass(frozen=True)
class LayerStatistic:
    """One column of the table `layers`.

    `measure` makes one scalar of a micro-batch's tensor at `site`, `merge` joins the micro-batches,
    `finish` makes the recorded number of what was merged and of the number of elements.
    """

    column: str
    unit: str
    meaning: str
    site: str  # a kind of observer.SITES, or LOGIT_LENS
    measure: Callable[[Tapped], Tensor] | None = None  # None: the logit lens gives it
    merge: Literal["sum", "largest"] = "sum"
    finish: Callable[[float, int], float] = _nothing
    over: Power | None = None  # of one listed before it, by which the finished number is divided
    dense: bool = False  # measured in dense windows only
    # the statistic of the layer before that measured this very tensor already
    same_as_before: str | None = None


def _root_mean_square(squares: float, elements: int) -> float:
    return math.sqrt(squares / elements)


def _rms(column: str, site: str, meaning: str, same_as_before: str | None = None) -> LayerStatistic:
    return LayerStatistic(
        column,
        "",
        meaning,
        site,
        measure=lambda tap: tap.square_sum(),
        finish=_root_mean_square,
        same_as_before=same_as_before,
    )


def _largest(column: str, site: str, meaning: str) -> LayerStatistic:
    return LayerStatistic(
        column,
        "",
        f"{meaning} (dense windows)",
        site,
        measure=lambda tap: tap.tensor.abs().amax(),
        merge="largest",
        dense=True,
    )


def _lens(column: str, unit: str, meaning: str) -> LayerStatistic:
    return LayerStatistic(
        column, unit, f"logit lens: {meaning} (dense windows)", LOGIT_LENS, dense=True
    )


STATISTICS: tuple[LayerStatistic, ...] = (
    _rms(
        "resid_rms_in",
        "resid_in",
        "√mean x² of the residual stream entering the block",
        same_as_before="resid_rms_out",
    ),
    _rms("resid_rms_out", "resid_out", "√mean x² of the residual stream leaving the block"),
    LayerStatistic(
        "act_kurtosis",
        "",
        "mean x⁴ / (mean x²)² of the residual stream leaving the block: 3"
        " of a normal distribution, more where a few elements are large",
        "resid_out",
        measure=lambda tap: tap.fourth_sum(),
        finish=lambda fourth_powers, elements: fourth_powers / elements,
        over=Power("resid_rms_out", 4),
    ),
    _rms("attn_out_rms", "attn_out", "√mean x² of what attention adds to the stream"),
    _rms("mlp_out_rms", "mlp_out", "√mean x² of what the MLP adds to the stream"),
    LayerStatistic(
        "act_zero_share",
        "share",
        "elements of the MLP's hidden activation that are exactly 0",
        "mlp_act",
        measure=lambda tap: tap.tensor.count_nonzero(),
        finish=lambda nonzero, elements: (elements - int(nonzero)) / elements,
    ),
    _rms(
        "resid_grad_rms",
        "resid_grad",
        "√mean g² of the loss's gradient arriving at the block's output",
    ),
    _largest("resid_max", "resid_out", "largest |x| of the residual stream leaving the block"),
    _largest("act_max", "mlp_act", "largest |a| of the MLP's hidden activation"),
    _lens("lens_loss", "nats/token", "loss of the stream read out after this block"),
    _lens("lens_entropy", "nats", "entropy of that distribution"),
    _lens("lens_kl", "nats", "KL(final distribution ‖ this one)"),
)
