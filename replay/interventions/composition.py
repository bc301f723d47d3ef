"""Put several interventions together: one stream, one policy, and no batch that another one drops.

They compose in their order: the stream of the first is what the second alters, and so on; the same
for policies. A state intervention acts once, at the fork's start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from forensics.errors import ForensicsError
from replay.interventions.base import Intervention
from replay.interventions.order import Drop

if TYPE_CHECKING:
    from forensics.step.batch import BatchStream
    from forensics.step.policy import Policy
    from forensics.train.run import Run


def composed(interventions: Sequence[Intervention], run: Run) -> tuple[BatchStream, Policy]:
    """Compose stream and policy of a fork of `run`, interventions applied in their order."""
    stream, policy = run.stream, run.policy
    for intervention in interventions:
        stream = intervention.stream(stream, run)
        policy = intervention.policy(policy, run)
    return stream, policy


def refuse_lost(interventions: Sequence[Intervention], run: Run) -> None:
    """Refuse an intervention on a batch that another one drops, whichever comes first. Errors:
    usage.
    """
    for i, drop in enumerate(interventions):
        if not isinstance(drop, Drop):
            continue
        for later in interventions[
            i + 1 :
        ]:  # it means the parent's batch, but another one stands there now
            _refuse_lost(later, [s for s in later.batches() if drop.first <= s < drop.last], drop)
        steps: list[int] = list(range(drop.first, drop.last))
        for earlier in reversed(interventions[:i]):
            acts_on = earlier.batches()
            if not isinstance(earlier, Drop):
                _refuse_lost(earlier, [s for s in steps if s in acts_on], drop)
            sources = (earlier.source_step(s, run) for s in steps)
            steps = [s for s in sources if s is not None]


def _refuse_lost(intervention: Intervention, lost: list[int], drop: Drop) -> None:
    if lost and (intervention.needs_all_batches or len(set(lost)) == len(intervention.batches())):
        raise ForensicsError(
            "usage",
            f"{intervention.kind}: wanted a batch that is seen, found batch {lost[0]}, which the"
            f" drop of {drop.window} takes away",
            "leave one of the two out, or move its window",
        )
