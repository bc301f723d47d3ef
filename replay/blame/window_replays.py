"""Real replays of the window with something taken away, or altered: what is left of the excess?

    replays.without(removal)        sequences or spans of targets: before S they weigh 0, the denominator kept;
                                    in batch S itself each gives way to an ordinary target, ℓ(P; θ)
                                    + the usual gap
    replays.along(start, stream, …)  other data, another policy
    replays.from_state(...)         the same batches from another state

A replay begins at the first step that differs, from the control's own state there; what was
replayed once is known.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from forensics.errors import ForensicsError
from forensics.step.batch import Batch, BatchStream
from forensics.step.policy import Policy
from forensics.step.state import TrainState
from forensics.train.advance import fold
from replay.blame.excess import Control, root
from replay.interventions import row_removal
from replay.interventions.rows import Slot, put

Removal = frozenset[Slot]


@dataclass(frozen=True)
class Outcome:
    """What is left of the excess, in nats."""

    data: float
    state: float

    @property
    def total(self) -> float:
        return self.data + self.state


class Replays:
    """Replays of one window. `replays` counts those that trained at least one step, `steps` their
    steps.
    """

    def __init__(self, control: Control, did: Callable[[int, str], None]) -> None:
        self.control = control
        self.run = control.run
        self.excess = control.excess.total
        self._did = did
        self._known: dict[tuple[Removal, bool], Outcome] = {
            (frozenset(), False): Outcome(control.excess.data, control.excess.state)
        }
        self.replays = 0
        self.steps = 0

    def row(self, step: int, slot: int) -> Slot:
        """A whole sequence of the window."""
        return Slot(step, slot, 0, self.control.batch.weight.shape[1])

    def rows(self, steps: Iterable[int]) -> list[Slot]:
        """Every sequence of these batches that weighs anything."""
        found = []
        for step in steps:
            weighs = self.run.stream(step).weight.sum(1) > 0
            found += [self.row(step, slot) for slot in weighs.nonzero()[:, 0].tolist()]
        return found

    def cost(self, removal: Iterable[Slot]) -> int:
        """Steps that a replay without these takes; 0 where it is known."""
        own = frozenset(removal)
        return 0 if (own, False) in self._known else self.control.last - self.first_step(own)

    def first_step(self, removal: Iterable[Slot]) -> int:
        return min((s.step for s in removal), default=self.control.last)

    def without(self, removal: Iterable[Slot], note: str = "", replaced: bool = False) -> Outcome:
        """The excess without these; `replaced`: rows before S give way to ones drawn after the
        run's end instead.
        """
        own = frozenset(removal)
        key = (own, replaced and self.first_step(own) < self.control.last)
        if key not in self._known:
            S = self.control.last
            if (
                self.first_step(own) == S
            ):  # batch S moves nothing before its own loss: θ_S is as it was
                self._known[key] = self._of(
                    self.control.ce, self.control.batch, self.control.probe[S], self._gone(own)
                )
                return self._known[key]
            before = [s for s in own if s.step < S]
            stream = (
                self._replaced(before)
                if replaced
                else row_removal.removed(
                    self.run.stream,
                    self.run,
                    row_removal.Removal(before, frozenset()),
                    "mask",
                    S,
                )
            )
            end = self._advanced(
                self.control.state(self.first_step(own)), stream, self.run.policy, S, note
            )
            self._known[key] = self._measured(end.params, self.control.batch, self._gone(own))
        return self._known[key]

    def _replaced(self, rows: Iterable[Slot]) -> BatchStream:
        """The stream in which these rows are those of the batches after the run's end, the same
        ones every time.
        """
        by_step: dict[int, list[int]] = {}
        for row in rows:
            by_step.setdefault(row.step, []).append(row.slot)

        def altered(step: int) -> Batch:
            batch = self.run.stream(step)
            if step not in by_step:
                return batch
            at = torch.tensor(sorted(set(by_step[step])))
            fresh = self.other_batch(step)
            taken = Batch(fresh.tokens[at], fresh.weight[at], fresh.denominator, fresh.sequence[at])
            return put(batch, at.tolist(), taken)

        return altered

    def other_batch(self, step: int, draw: int = 0) -> Batch:
        """A batch that stands in for that of `step`: one drawn after the run's end, or, where the
        order ends there,
        one from before the window. Errors: missing."""
        length = self.control.last + 1 - self.control.begin
        try:
            return self.run.stream(
                root(self.run).header.steps + step - self.control.begin + draw * length
            )
        except ForensicsError:
            return self.run.stream(step - (draw + 1) * length)

    def taken(self, removal: Iterable[Slot], note: str = "", replaced: bool = False) -> float:
        """Nats of the excess that go with these."""
        left = self.without(removal, note, replaced).total
        return self.excess - left if math.isfinite(left) else -math.inf

    def along(
        self,
        start: TrainState,
        stream: BatchStream | None = None,
        policy: Policy | None = None,
        note: str = "",
    ) -> Outcome:
        """The excess along another stream or policy from a state of the window on; batch S is the
        stream's own.
        """
        S, stream = self.control.last, stream or self.run.stream
        end = self._advanced(start, stream, policy or self.run.policy, S, note)
        return self._measured(end.params, stream(S), None)

    def from_state(self, state: TrainState, first: int, note: str = "") -> Outcome:
        """The batches first … S from another state, by the policy that holds there: the excess over
        that state's own.
        """
        at, S = state.counters.step, self.control.last
        before = self.control.probe_loss(state.params)
        shifted = _shifted(self.run.stream, first - at)
        end = self._advanced(state, shifted, self.run.policy, at + S - first, note)
        return self._measured(end.params, self.control.batch, None, before)

    def _advanced(
        self, start: TrainState, stream: BatchStream, policy: Policy, stop: int, note: str
    ) -> TrainState:
        if start.counters.step == stop:
            return start
        self.replays += 1

        def after(state: TrainState, result: object) -> None:
            self.steps += 1
            self._did(1, note)

        return fold(start.clone(), stream, policy, stop, self.run.model, after=after)

    def _gone(self, removal: Removal) -> Tensor | None:
        """(B, T) targets of batch S that are taken away."""
        S = self.control.last
        own = [s for s in removal if s.step == S]
        if not own:
            return None
        gone = torch.zeros(self.control.batch.weight.shape, dtype=torch.bool)
        for slot in own:
            gone[slot.slot, slot.first : slot.last] = True
        return gone

    def _measured(
        self,
        params: dict[str, Tensor],
        batch: Batch,
        gone: Tensor | None,
        before: float | None = None,
    ) -> Outcome:
        control = self.control
        return self._of(
            control.token_losses(params, batch), batch, control.probe_loss(params), gone, before
        )

    def _of(
        self,
        ce: Tensor,
        batch: Batch,
        probe: float,
        gone: Tensor | None,
        before: float | None = None,
    ) -> Outcome:
        known = self.control.excess
        ordinary = probe + known.usual_gap
        if gone is not None:
            ce = ce.masked_fill(gone, ordinary)
        before = known.probe_before if before is None else before
        return Outcome(self.control.loss_of(ce, batch) - ordinary, probe - before)


def _shifted(stream: BatchStream, by: int) -> BatchStream:
    def shifted(step: int) -> Batch:
        batch = stream(step + by)
        return dataclasses.replace(batch, origin=step + by)

    return shifted
