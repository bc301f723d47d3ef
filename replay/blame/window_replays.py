"""Real replays of the window with something removed or altered: what is left of the excess?

    replays.without(removal)        targets before S weigh 0, the denominator kept; in batch S
                                    itself each gives way to one of ordinary loss, ℓ(P; θ) + the
                                    usual gap
    replays.along(start, stream, …)  other data, another policy
    replays.from_state(…)            the same batches from another state

A replay begins at the first step that differs, from the control's own state there; no removal is
replayed twice. S is the spike's step, P the probe sequences.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from forensics.step.batch import Batch, BatchStream
from forensics.step.policy import Policy
from forensics.step.state import TrainState
from forensics.train.advance import fold
from forensics.train.run import Run
from replay.blame.excess import WindowControl
from replay.blame.stand_ins import NOTHING, Avoided, StandIns
from replay.interventions import row_removal
from replay.interventions.rows import Slot, put

SlotSet = frozenset[Slot]


@dataclass(frozen=True)
class ExcessLeft:
    """What is left of the excess, in nats."""

    data: float
    state: float

    @property
    def total(self) -> float:
        """Return data and state part together, nats."""
        return self.data + self.state


@dataclass(frozen=True)
class DocumentStretch:
    """The targets of one document within a sequence."""

    document: int  # −1: an intervention made the sequence
    slot: Slot


def document_stretches(run: Run, row: Slot, batch: Batch) -> list[DocumentStretch]:
    """Cut a row of a run's batch, or a stretch of it, at the bounds of its documents."""
    one_row = dataclasses.replace(batch, sequence=batch.sequence[row.slot : row.slot + 1])
    stretches = []
    for span in run.batches.provenance(one_row)[0]:
        # target t is token t + 1
        low, high = max(span.start - 1, row.first), min(span.stop - 1, row.last)
        if low < high:
            slot = dataclasses.replace(row, first=low, last=high)
            stretches.append(DocumentStretch(span.document, slot))
    return stretches or [DocumentStretch(-1, row)]


class WindowReplays:
    """Replays of one window; `replays` counts those that train a step, `steps` their steps."""

    def __init__(self, control: WindowControl, on_step: Callable[[int, str], None]) -> None:
        self.control = control
        self.run = control.run
        self.excess = control.excess.total
        self._on_step = on_step
        self._cache: dict[tuple[SlotSet, bool], ExcessLeft] = {
            (frozenset(), False): ExcessLeft(control.excess.data, control.excess.state)
        }
        self.stand_ins = StandIns(control)
        self._stretches: dict[Slot, list[DocumentStretch]] = {}
        self.replays = 0
        self.steps = 0

    def row(self, step: int, slot: int) -> Slot:
        """Return a whole sequence of the window."""
        return Slot(step, slot, 0, self.control.batch.weight.shape[1])

    def rows(self, steps: Iterable[int]) -> list[Slot]:
        """List every sequence of these batches that weighs anything."""
        rows = []
        for step in steps:
            weighs = self.run.stream(step).weight.sum(1) > 0
            rows += [self.row(step, slot) for slot in weighs.nonzero()[:, 0].tolist()]
        return rows

    def document_stretches(self, row: Slot) -> list[DocumentStretch]:
        """Cut a row, or a stretch of it, at the bounds of its documents."""
        if row not in self._stretches:
            self._stretches[row] = document_stretches(self.run, row, self.run.stream(row.step))
        return self._stretches[row]

    def avoided(self, removal: Iterable[Slot]) -> Avoided:
        """Return what may not stand in for these targets: their documents, lesser sources."""
        stretches = (stretch for slot in removal for stretch in self.document_stretches(slot))
        return self.stand_ins.avoiding(stretch.document for stretch in stretches)

    def cost(self, removal: Iterable[Slot]) -> int:
        """Count the steps that a replay without these takes; 0 where it is known already."""
        slots = frozenset(removal)
        return 0 if (slots, False) in self._cache else self.control.last - self.first_step(slots)

    def first_step(self, removal: Iterable[Slot]) -> int:
        """Return the first step that the removal touches; S where it is empty."""
        return min((slot.step for slot in removal), default=self.control.last)

    def without(
        self, removal: Iterable[Slot], note: str = "", replaced: bool = False
    ) -> ExcessLeft:
        """Measure the excess without these targets.

        `replaced`: rows before S give way to ones drawn after the run's end instead.
        """
        slots = frozenset(removal)
        key = (slots, replaced and self.first_step(slots) < self.control.last)
        if key not in self._cache:
            self._cache[key] = self._replayed(slots, note, replaced)
        return self._cache[key]

    def _replayed(self, removal: SlotSet, note: str, replaced: bool) -> ExcessLeft:
        control, S = self.control, self.control.last
        if self.first_step(removal) == S:
            # batch S moves nothing before its own loss: θ_S is as it was
            params = control.state(S).params
            return self._left(params, control.ce, control.batch, control.probe[S], removal)
        before = [slot for slot in removal if slot.step < S]
        stream = (
            self._with_other_rows(before)
            if replaced
            else row_removal.removed(
                self.run.stream, self.run, row_removal.Removal(before, frozenset()), "mask", S
            )
        )
        start = control.state(self.first_step(removal))
        end = self._advanced(start, stream, self.run.policy, S, note)
        return self._measured(end.params, control.batch, removal)

    def _with_other_rows(self, rows: Iterable[Slot]) -> BatchStream:
        """Return the stream in which these rows give way to others, always the same."""
        by_step: dict[int, list[int]] = {}
        for row in rows:
            by_step.setdefault(row.step, []).append(row.slot)
        avoided = self.avoided(rows)

        def altered(step: int) -> Batch:
            batch = self.run.stream(step)
            if step not in by_step:
                return batch
            index = torch.tensor(sorted(set(by_step[step])))
            fresh = self.other_batch(step, avoided=avoided)
            replacement = Batch(
                fresh.tokens[index],
                fresh.weight[index],
                fresh.denominator,
                fresh.sequence[index],
            )
            return put(batch, index.tolist(), replacement)

        return altered

    def other_batch(self, step: int, draw: int = 0, avoided: Avoided = NOTHING) -> Batch:
        """Return a batch that stands in for that of `step`. Errors: missing."""
        return self.stand_ins.batch(step, draw, avoided)

    def excess_removed(
        self, removal: Iterable[Slot], note: str = "", replaced: bool = False
    ) -> float:
        """Return the nats of the excess that go with these targets; −inf where none do."""
        left = self.without(removal, note, replaced).total
        return self.excess - left if math.isfinite(left) else -math.inf

    def along(
        self,
        start: TrainState,
        stream: BatchStream | None = None,
        policy: Policy | None = None,
        note: str = "",
    ) -> ExcessLeft:
        """Measure the excess along another stream or policy from a state of the window on.

        Batch S is the stream's own.
        """
        S, stream = self.control.last, stream or self.run.stream
        end = self._advanced(start, stream, policy or self.run.policy, S, note)
        return self._measured(end.params, stream(S))

    def from_state(self, state: TrainState, first: int, note: str = "") -> ExcessLeft:
        """Measure the excess of batches first … S from another state, over that state's own.

        The policy is the one that holds at that state.
        """
        start, S = state.counters.step, self.control.last
        probe_before = self.control.probe_loss(state.params)
        shifted = _shifted(self.run.stream, first - start)
        end = self._advanced(state, shifted, self.run.policy, start + S - first, note)
        return self._measured(end.params, self.control.batch, probe_before=probe_before)

    def _advanced(
        self, start: TrainState, stream: BatchStream, policy: Policy, stop: int, note: str
    ) -> TrainState:
        if start.counters.step == stop:
            return start
        self.replays += 1

        def after(state: TrainState, result: object) -> None:
            self.steps += 1
            self._on_step(1, note)

        return fold(start.clone(), stream, policy, stop, self.run.model, after=after)

    def _removed_targets(self, in_spike: Iterable[Slot]) -> Tensor:
        """Mark the targets (B, T) of batch S that are removed."""
        removed = torch.zeros(self.control.batch.weight.shape, dtype=torch.bool)
        for slot in in_spike:
            removed[slot.slot, slot.first : slot.last] = True
        return removed

    def _measured(
        self,
        params: dict[str, Tensor],
        batch: Batch,
        removal: SlotSet = frozenset(),
        probe_before: float | None = None,
    ) -> ExcessLeft:
        ce, probe = self.control.token_losses(params, batch), self.control.probe_loss(params)
        return self._left(params, ce, batch, probe, removal, probe_before)

    def _left(
        self,
        params: dict[str, Tensor],
        ce: Tensor,
        batch: Batch,
        probe: float,
        removal: SlotSet = frozenset(),
        probe_before: float | None = None,
    ) -> ExcessLeft:
        """Hold the loss of a batch against an ordinary one; what is removed of it is ordinary."""
        excess = self.control.excess
        in_spike = [slot for slot in removal if slot.step == self.control.last]
        if in_spike:
            ordinary = self.stand_ins.ordinary(params, probe, self.avoided(in_spike))
            ce = ce.masked_fill(self._removed_targets(in_spike), ordinary)
        before = excess.probe_before if probe_before is None else probe_before
        loss = self.control.loss_of(ce, batch)
        return ExcessLeft(loss - probe - excess.usual_gap, probe - before)


def _shifted(stream: BatchStream, by: int) -> BatchStream:
    def shifted(step: int) -> Batch:
        batch = stream(step + by)
        return dataclasses.replace(batch, origin=step + by)

    return shifted
