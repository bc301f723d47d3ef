"""Leave steps' updates out, each in its own way.

| skip by any name | data | step | schedule | updates, moments, decay | θ |
|---|---|---|---|---|---|
| drop | later batches move up | +1 | +1 | as always, with the batch that moved up | moves |
| skip | consumed, not computed | +1 | +1 | untouched | stays |
| skip-frozen | consumed, not computed | +1 | 0 | untouched | stays |
| zero-update | forward, backward recorded | +1 | +1 | untouched | stays |
| hold-parameters | forward, backward | +1 | +1 | advance | stays |
| mask | consumed, weights 0 | +1 | +1 | advance | moves |
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from replay.interventions.flags import Flag, one
from replay.interventions.order import OTHER_DATA
from replay.interventions.policy import PolicyOfWindow
from replay.interventions.rows import Slot, rows_of_steps

if TYPE_CHECKING:
    from forensics.step.batch import BatchStream
    from forensics.step.policy import StepPolicy
    from forensics.train.run import Run


def _flag(help: str) -> tuple[Flag, ...]:
    return (Flag("A:B", help, "200:204", one("window")),)


class NoUpdate(PolicyOfWindow):
    """Leave the update out in the steps of a window."""

    update: ClassVar[Literal["hold", "zero", "none"]] = "none"
    frozen: ClassVar[bool] = False
    verb: ClassVar[str] = ""
    null = OTHER_DATA
    needs_all_batches = True

    def altered(self, policy: StepPolicy, run: Run) -> StepPolicy:
        """Set how the update is left out, and whether the schedule goes on."""
        return replace(
            policy,
            update=self.update,
            advance_schedule=policy.advance_schedule and not self.frozen,
        )

    def sentence(self) -> str:
        """Say what is done in which steps."""
        return f"{self.verb} steps {self.window}"

    def touches(self, run: Run, stream: BatchStream) -> list[Slot]:
        """List every row of the window."""
        return rows_of_steps(stream, range(self.first, self.last))

    def batches(self) -> Collection[int]:
        """Name the window's steps."""
        return range(self.first, self.last)

    def erases(self) -> bool:
        """Leave no trace where nothing is computed."""
        return self.update == "none"


class Skip(NoUpdate):
    """Consume the batches and compute nothing."""

    kind = "skip"
    title = "Skip batches: consumed, not computed"
    flags = _flag("Consume the batches, compute nothing.")
    verb = "skips"


class SkipFrozen(NoUpdate):
    """Consume the batches, compute nothing, and let the schedule's counter stay."""

    kind = "skip-frozen"
    flags = _flag("The same with the schedule frozen.")
    frozen = True
    verb = "skips, with the schedule frozen,"


class ZeroUpdate(NoUpdate):
    """Record forward and backward, and leave out the update: by branch, never by a factor 0."""

    kind = "zero-update"
    title = "Compute, but do not update"
    flags = _flag("Forward and backward, no update.")
    update = "zero"
    verb = "computes but does not apply"


class HoldParameters(NoUpdate):
    """Advance the moments and hold the parameters."""

    kind = "hold-parameters"
    title = "Hold the parameters, moments advance"
    flags = _flag("Moments advance, parameters stay.")
    update = "hold"
    verb = "holds the parameters in"
