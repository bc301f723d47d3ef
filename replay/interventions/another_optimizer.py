"""Move parameters by another optimizer in a window, the moments as they are."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from forensics.config import UPDATE_RULES
from forensics.errors import nearest
from replay.interventions.fields import about
from replay.interventions.flags import Flag, one, windowed
from replay.interventions.policy import PolicyOfWindow
from replay.interventions.requirements import require

if TYPE_CHECKING:
    from forensics.step.policy import StepPolicy
    from forensics.train.run import Run


@dataclass(frozen=True)
class AnotherOptimizer(PolicyOfWindow):
    """Update by another rule: adamw, lion, muon or nadamw.

    It goes on from the moments and the count of updates that are there; a moment that the run's own
    rule does not keep begins at 0. Learning rate, β and decay stay too: Lion wants a learning rate
    of a third to a tenth (`lr-scale`). From the fork's first step on, `reset-moments` begins anew.
    """

    kind = "optimizer"
    title = "Another optimizer"
    flags = (
        Flag("RULE@A:B", "adamw, lion, muon or nadamw.", "muon@200:400", windowed(one("rule"))),
    )
    rule: str = field(metadata=about(label="Optimizer", choices=UPDATE_RULES, begin="muon"))

    def altered(self, policy: StepPolicy, run: Run) -> StepPolicy:
        """Set the rule."""
        return replace(policy, update_rule=self.rule)

    def check(self, run: Run, first: int, last: int) -> None:
        """Refuse an unknown rule, and the run's own. Errors: usage."""
        super().check(run, first, last)
        require(
            self.rule in UPDATE_RULES,
            self.kind,
            " or ".join(UPDATE_RULES),
            self.rule,
            nearest(self.rule, UPDATE_RULES),
        )
        own = run.recipe.train.update_rule
        require(
            self.rule != own,
            self.kind,
            "another optimizer than the run's",
            self.rule,
            f"{run.name} is trained by {own}",
        )

    def sentence(self) -> str:
        """Say which optimizer moves the parameters where."""
        return f"updates by {self.rule} in {self.window}, from the moments that are there"
