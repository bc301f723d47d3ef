"""The arms of one fork: control, the altered one, and its null forks, from one start.

Each is held against a control: chaos forks and the fork against the parent's own course, a placebo
against the course that the parent would have had on the placebo's other data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forensics.model.decoder import Decoder
from forensics.step.observer import SILENT, Observer
from forensics.step.state import TrainState
from forensics.train.run import Run
from replay.forks.lockstep import Arm, arm_from
from replay.interventions.base import Intervention
from replay.interventions.placebo import NullFork
from replay.interventions.state import UnitInLastPlace

CONTROL, FORK, PLACEBO, CHAOS = "control", "fork", "placebo-", "chaos-"
WORLD = "world-"  # the control of the placebo of the same number


@dataclass(frozen=True)
class Arms:
    """Trajectories that advance in lock-step, and which is held against which."""

    by_name: dict[str, Arm]
    pairs: dict[str, tuple[str, str]]  # fork, placebo-<i>, chaos-<i> → (its arm, its control)

    @property
    def decoders(self) -> dict[str, Decoder]:
        """Return each arm's own decoder."""
        return {name: arm.model.decoder for name, arm in self.by_name.items()}

    def of(self, prefix: str) -> list[str]:
        """List the compared ones whose names begin so."""
        return [name for name in self.pairs if name.startswith(prefix)]


def start_arms(
    start: TrainState,
    run: Run,
    interventions: Sequence[Intervention],
    placebos: Sequence[NullFork] = (),
    chaos: Sequence[int] = (),
    watch: Observer = SILENT,
) -> Arms:
    """Start all arms from one state; `chaos` are seeds, `watch` sees the fork's own steps."""
    arms = {CONTROL: arm_from(start, run), FORK: arm_from(start, run, interventions, watch)}
    pairs = {FORK: (FORK, CONTROL)}
    for i, placebo in enumerate(placebos):
        name, world = f"{PLACEBO}{i}", f"{WORLD}{i}" if placebo.world else CONTROL
        if placebo.world:
            arms[world] = arm_from(start, run, placebo.world)
        if placebo.interventions is not None:
            arms[name] = arm_from(start, run, placebo.interventions)
        pairs[name] = (name if placebo.interventions is not None else FORK, world)
    for i, seed in enumerate(chaos):
        arms[f"{CHAOS}{i}"] = arm_from(start, run, (UnitInLastPlace(seed),))
        pairs[f"{CHAOS}{i}"] = (f"{CHAOS}{i}", CONTROL)
    return Arms(arms, pairs)
