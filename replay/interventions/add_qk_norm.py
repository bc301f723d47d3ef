"""Norms of queries and keys put into a model that is being trained, as Marin did at 32B."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from replay.interventions.base import Intervention
from replay.interventions.fields import about
from replay.interventions.flags import Flag, one
from replay.interventions.requirements import require

if TYPE_CHECKING:
    from forensics.model.shape import Shape
    from forensics.step.state import TrainState
    from forensics.train.run import Run

SPANS = ("head", "whole")


@dataclass(frozen=True)
class AddQKNorm(Intervention):
    """Put RMS norms on queries and keys from the fork's start on, with gains of 1.

    The gains are new tensors with moments of 0; all other tensors stay as they are. Distances from
    the control are over the tensors that both have.
    """

    kind = "qk-norm"
    title = "Add norms of queries and keys"
    flags = (
        Flag("[head|whole]", "Norms per head, or over all.", "head", one("span"), bare="head"),
    )
    span: str = field(
        default="head", metadata=about(label="Over each head, or the whole", choices=SPANS)
    )

    def shape(self, shape: Shape, run: Run) -> Shape:
        """Return the decoder with the norms."""
        return dataclasses.replace(shape, qk_norm=self.span)

    def state(self, state: TrainState, run: Run) -> None:
        """Add the gains, and moments of 0, in the order of the forward."""
        import torch

        from forensics.model.shape import parameter_shapes

        somewhere = next(iter(state.params.values()))
        for group, value in ((state.params, 1.0), (state.exp_avg, 0.0), (state.exp_avg_sq, 0.0)):
            before = dict(group)
            group.clear()
            for name, size in parameter_shapes(self.shape(run.shape, run)).items():
                group[name] = (
                    before[name]
                    if name in before
                    else torch.full(size, value, dtype=somewhere.dtype, device=somewhere.device)
                )

    def check(self, run: Run, first: int, last: int) -> None:
        """Refuse another span, and a model that has such norms. Errors: usage."""
        require(self.span in SPANS, self.kind, " or ".join(SPANS), self.span, "e.g. --qk-norm head")
        require(
            run.shape.qk_norm == "none",
            self.kind,
            "a model without norms of queries and keys",
            f"{run.name}, which has them ({run.shape.qk_norm})",
            "fork another run",
        )

    def sentence(self) -> str:
        """Say what is added, and what distances are over then."""
        over = "each head" if self.span == "head" else "all heads together"
        return (
            f"adds norms of queries and keys over {over}, with gains of 1 (distances are over the"
            " tensors that both have)"
        )
