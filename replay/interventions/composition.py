"""Put several interventions together: one stream, one policy, and no batch that another one drops.

They compose in their order: the stream of the first is what the second alters, and so on; the same
for policies. A state intervention acts once, at the fork's start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from forensics.errors import ForensicsError
from replay.interventions.base import Intervention
from replay.interventions.order import Drop

if TYPE_CHECKING:
    from forensics.model.shape import Shape
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


def altered_shape(interventions: Sequence[Intervention], run: Run) -> Shape:
    """Compose the decoder of a fork of `run`."""
    shape = run.shape
    for intervention in interventions:
        shape = intervention.shape(shape, run)
    return shape


def refuse_undone(interventions: Sequence[Intervention], run: Run, first: int, last: int) -> None:
    """Refuse a policy intervention of which the others leave nothing in the steps first … last−1,
    because they set otherwise what it sets. Errors: usage.
    """
    policies = [intervention for intervention in interventions if intervention.alters() == "policy"]
    if len(policies) < 2:
        return
    unaltered, together = _by_step([], run, first, last), _by_step(policies, run, first, last)
    for i, intervention in enumerate(policies):
        if _by_step([*policies[:i], *policies[i + 1 :]], run, first, last) != together:
            continue
        alone = _by_step([intervention], run, first, last)
        sets = [
            (step[key], holding[key])
            for step, usual, holding in zip(alone, unaltered, together)
            for key in step
            if step[key] != usual[key]
        ]
        if sets and not any(_holds(value, holding) for value, holding in sets):
            raise ForensicsError(
                "usage",
                f"{intervention.kind}: another intervention leaves nothing of it"
                f" ({intervention.sentence()})",
                "leave one of the two out",
            )


def _by_step(
    interventions: Sequence[Intervention], run: Run, first: int, last: int
) -> list[dict[str, Any]]:
    """Return what the policies set in each step, by name."""
    from forensics.step.state import Counters

    policy = run.policy
    for intervention in interventions:
        policy = intervention.policy(policy, run)
    return [
        vars(policy(Counters(step, step, step))) | {"watch_skip": None}
        for step in range(first, last)
    ]


def _holds(value: Any, held: Any) -> bool:
    """Return whether what was set still holds; of a set, as a part."""
    return bool(value <= held if isinstance(value, frozenset) else value == held)


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
