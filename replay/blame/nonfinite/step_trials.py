"""One step that is not finite, run again with something otherwise: is it finite then?

Sequences give way to others: weight 0 would not help, for 0 · NaN is NaN. Those that stand in are
rows of earlier batches, which trained without a fault; where there are too few, rows drawn after
the run's end.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

import torch

from forensics.step.batch import Batch
from forensics.step.policy import Policy, StepPolicy
from forensics.step.result import StepResult
from forensics.step.state import Counters, TrainState
from forensics.train.advance import advance
from forensics.train.run import Run
from replay.blame.nonfinite.place import PlaceWatch
from replay.interventions.rows import Slot, put
from replay.lineage import root

JUMP = 1.5  # × the learning rate of before, from which a policy is another: warm-up is none
APART = 32  # steps before a row's own from which another comes in its place: not its neighbours


class StepTrials:
    """Trials of batches first … k from a finite state `first`; step k is not finite.

    It is what delta debugging asks: `excess_removed` is 1 where a replay is finite, else 0.
    """

    excess = 1.0

    def __init__(
        self, run: Run, start: TrainState, last: int, on_step: Callable[[int, str], None]
    ) -> None:
        self.run, self.start, self.last, self._on_step = run, start, last, on_step
        self.first = start.counters.step
        self.replays, self.steps = 0, 0
        self._cache: dict[tuple[frozenset[Slot], int], bool] = {}

    def rows(self, steps: Iterable[int]) -> list[Slot]:
        """List every sequence of these batches."""
        rows = []
        for step in steps:
            B, T = self.run.stream(step).weight.shape
            rows += [Slot(step, slot, 0, T) for slot in range(B)]
        return rows

    def excess_removed(
        self, removal: Iterable[Slot], note: str = "", replaced: bool = True
    ) -> float:
        """Return 1 where step k is finite with others in the place of these sequences, else 0."""
        return 1.0 if self.finite(removal, note=note) else 0.0

    def finite(self, removal: Iterable[Slot], draw: int = 0, note: str = "") -> bool:
        """Whether every step up to k is finite with others in the place of these sequences.

        Errors: missing, where the order has no others.
        """
        slots = frozenset(removal)
        if (slots, draw) not in self._cache:
            self._cache[slots, draw] = self.runs_finite(
                self.start.clone(), self._replaced(slots, draw), self.run.policy, note
            )
        return self._cache[slots, draw]

    def runs_finite(
        self,
        state: TrainState,
        stream: Callable[[int], Batch],
        policy: Policy,
        note: str = "",
        stop: int | None = None,
    ) -> bool:
        """Advance a state in place past step `stop` (k), or to the first that is not finite."""
        self.replays += 1
        stop = self.last if stop is None else stop
        while state.counters.step <= stop:
            step_policy = policy(state.counters)
            batch = stream(state.counters.step) if step_policy.update != "none" else None
            result = advance(state, batch, step_policy, self.run.model)
            self.steps += 1
            self._on_step(1, note)
            if not is_finite(state, result):
                return False
        return True

    def places(self) -> PlaceWatch:
        """Run step k unaltered, and look at every tensor of it."""
        state = self.run.replay(self.start.clone(), self.last)
        watch = PlaceWatch(self.run.model.decoder)
        policy = self.run.policy(state.counters)
        advance(state, self.run.stream(self.last), policy, self.run.model, watch)
        return watch

    def other_state(self, state: TrainState) -> bool:
        """Whether batches first … k are finite from another state, under the policy of theirs."""
        shift = self.first - state.counters.step

        def stream(step: int) -> Batch:
            return dataclasses.replace(self.run.stream(step + shift), origin=step + shift)

        return self.runs_finite(
            state.clone(), stream, self.run.policy, "another state", self.last - shift
        )

    def steady_policy(self) -> bool | None:
        """Whether step k is finite under the policy of the first step; None: it held anyway."""
        policy_before = self.run.policy(self.start.counters)
        changed = False

        def policy(counters: Counters) -> StepPolicy:
            nonlocal changed
            now = self.run.policy(counters)
            changed |= not _same(policy_before, now)
            return dataclasses.replace(
                policy_before, learning_rate=min(now.learning_rate, policy_before.learning_rate)
            )

        finite = self.runs_finite(self.start.clone(), self.run.stream, policy, "a steady policy")
        return finite if changed else None

    def _replaced(self, removal: frozenset[Slot], draw: int) -> Callable[[int], Batch]:
        by_step: dict[int, list[int]] = {}
        for slot in sorted(removal):
            by_step.setdefault(slot.step, []).append(slot.slot)

        def altered(step: int) -> Batch:
            batch = self.run.stream(step)
            if step not in by_step:
                return batch
            fresh = self._other_batch(step, draw)
            index = torch.tensor(sorted(set(by_step[step])))
            rows = Batch(
                fresh.tokens[index], fresh.weight[index], fresh.denominator, fresh.sequence[index]
            )
            return put(batch, index.tolist(), rows)

        return altered

    def _other_batch(self, step: int, draw: int) -> Batch:
        earlier = step - APART * (draw + 1)
        if earlier >= 0:
            return self.run.stream(earlier)
        return self.run.stream(root(self.run).header.steps + draw)


def _same(before: StepPolicy, now: StepPolicy) -> bool:
    """Whether a policy is that of before, its learning rate at most JUMP times as high."""
    return now.learning_rate <= JUMP * before.learning_rate and before == dataclasses.replace(
        now, learning_rate=before.learning_rate
    )


def is_finite(state: TrainState, result: StepResult) -> bool:
    """Whether a step's loss and gradient norm are finite, and so are the parameters after it."""
    if not math.isfinite(result.loss or 0.0) or not math.isfinite(result.grad_norm or 0.0):
        return False
    return all(bool(torch.isfinite(param).all()) for param in state.params.values())
