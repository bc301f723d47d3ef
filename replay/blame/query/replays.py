"""Real replays of a window without some of its sequences, to one number of a later state.

    replays = TargetReplays(run, 84, 100, 100, target, on_step)
    replays.value                      the number at state 100 of the unaltered replay
    replays.change(removal)            by how much it moves when these targets weigh 0

The denominator is kept, as in the influence's definition. A replay begins at the first step that
differs, from the control's own state there; no removal is replayed twice.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable

import torch

from forensics.step.result import StepResult
from forensics.step.state import TrainState
from forensics.train.advance import fold
from forensics.train.run import Run
from replay.blame.probe_target import TargetFunction
from replay.blame.stretch import STATE_BYTES, STATES
from replay.blame.window_replays import DocumentStretch, SlotSet, document_stretches
from replay.forks.result import ControlResult
from replay.interventions import row_removal
from replay.interventions.rows import Slot
from replay.verify import Report, Witness


class TargetReplays:
    """The window's control, and replays of it with targets removed.

    Batches first … last−1 are the window, `at` ≥ last the state that `target` is taken at.
    """

    def __init__(
        self,
        run: Run,
        first: int,
        last: int,
        at: int,
        target: TargetFunction,
        on_step: Callable[[int, str], None],
    ) -> None:
        self.run, self.first, self.last, self.at = run, first, last, at
        self.target, self._on_step = target, on_step
        self.stream = functools.lru_cache(4)(run.stream)  # of batches that are looked at by row
        self.replays, self.steps = 0, 0
        self._states: dict[int, TrainState] = {}
        self.report = self._control()
        self._cache: dict[SlotSet, float] = {frozenset(): 0.0}
        self._rows: dict[int, list[Slot]] = {}

    def start(self) -> TrainState:
        """Return the control's state at the window's first step; not to be moved."""
        return self._states[self.first]

    def control(self) -> ControlResult:
        """Say how the replay stands to what was recorded."""
        report = self.report
        return ControlResult(report.level, report.bitwise, report.sentence())

    def rows(self, steps: Iterable[int] | None = None) -> list[Slot]:
        """List every sequence of these batches (of the window) that weighs anything."""
        rows: list[Slot] = []
        for step in range(self.first, self.last) if steps is None else steps:
            if step not in self._rows:
                weight = self.stream(step).weight
                slots = (weight.sum(1) > 0).nonzero()[:, 0].tolist()
                self._rows[step] = [Slot(step, slot, 0, weight.shape[1]) for slot in slots]
            rows += self._rows[step]
        return rows

    def document_stretches(self, row: Slot) -> list[DocumentStretch]:
        """Cut a row, or a stretch of it, at the bounds of its documents."""
        return document_stretches(self.run, row, self.stream(row.step))

    def change(self, removal: Iterable[Slot], note: str = "") -> float:
        """Return by how much the number moves without these targets; NaN where it is none."""
        slots = frozenset(removal)
        if slots not in self._cache:
            self._cache[slots] = self._replayed(slots, note) - self.value
        return self._cache[slots]

    def _control(self) -> Report:
        run, at = self.run, self.at
        witness = Witness(run, self.first, at)
        note = f"to state {self.first}"
        state = run.state_at(self.first, lambda state, result: self._on_step(1, note))
        state_bytes = STATE_BYTES * run.header.parameters
        stride = max(1, math.ceil((self.last - self.first) * state_bytes / STATES))

        def keep(state: TrainState) -> None:
            step = state.counters.step
            if step < self.last and (step - self.first) % stride == 0:
                self._states[step] = state.clone()

        def after(state: TrainState, result: StepResult) -> None:
            witness.see(state, result)
            keep(state)
            self._on_step(1, "control")

        keep(state)
        run.replay(state, at, after=after)
        self.value = self._measured(state)
        self.replays, self.steps = 1, at - self.first
        return witness.report()

    def _measured(self, state: TrainState) -> float:
        with torch.no_grad():
            return float(self.target(state.params))

    def _replayed(self, removal: SlotSet, note: str) -> float:
        begin = min(slot.step for slot in removal)
        nearest = max(step for step in self._states if step <= begin)
        stream = row_removal.removed(
            self.run.stream,
            self.run,
            row_removal.Removal(sorted(removal), frozenset()),
            "mask",
            self.first,
        )
        self.replays += 1

        def after(state: TrainState, result: StepResult) -> None:
            self.steps += 1
            self._on_step(1, note)

        start = self._states[nearest].clone()
        return self._measured(
            fold(start, stream, self.run.policy, self.at, self.run.model, after=after)
        )
