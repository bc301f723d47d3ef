"""A spike that is being gone into: its window, control and replays, and what is known so far."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from forensics.progress import ProgressCallback
from forensics.train.run import Run
from replay.blame.excess import WindowControl
from replay.blame.ranking import own_influences
from replay.blame.result import (
    Bisection,
    BlamedStep,
    Condition,
    CurvePoint,
    Method,
    UpdateBlame,
)
from replay.blame.rules import BEFORE
from replay.blame.stretch import Stretch, clean_probes
from replay.blame.verdict import Facts
from replay.blame.window_choice import Window
from replay.blame.window_replays import WindowReplays
from replay.interventions.rows import Slot
from replay.lineage import lowest_state


@dataclass(frozen=True)
class BlameOptions:
    """How a spike is gone into."""

    window: int | None = None  # steps; None: back to where the run was calm, then narrowed
    method: Method = "metagradient"
    placebos: int | None = None  # random removals; None: as many as are wanted beside the null
    null_windows: int | None = None  # windows without a spike; None: as many as the rule needs
    precision: str = "float32"  # of the metagradient: float32 | float64
    tokens: bool = False  # the candidates come with the influence of each token
    force: bool = False  # blame a step that no detector calls a spike
    group: str | None = None  # an attribute of documents: its values are suspects beside sources


DEFAULTS = BlameOptions()


@dataclass
class Evidence:
    """What the search has found so far; an interrupt loses none of it."""

    notes: list[str] = field(default_factory=list)
    curve: list[CurvePoint] = field(default_factory=list)
    bisection: Bisection | None = None
    condition: Condition | None = None
    tensors: UpdateBlame | None = None
    smallest: int | None = None
    effects: dict[Slot, float] = field(default_factory=dict)  # nats that go with one sequence
    ranked: list[Slot] = field(default_factory=list)  # sequences, most influential first


class StepCount:
    """Steps done of the steps foreseen, for the bar."""

    def __init__(self, progress: ProgressCallback) -> None:
        """Tell `progress` of every step."""
        self.progress, self.done, self.planned = progress, 0, 0

    def expect(self, steps: int) -> None:
        """Foresee so many steps from here on."""
        self.planned = self.done + steps

    def add(self, steps: int, note: str) -> None:
        """Count steps that were done."""
        self.done += steps
        self.planned = max(self.planned, self.done)
        self.progress(self.done, self.planned, note)


class Case:
    """One spike: its window replayed unaltered, and what every stage adds to the facts."""

    def __init__(
        self,
        run: Run,
        blamed: BlamedStep,
        window: Window,
        options: BlameOptions,
        progress: ProgressCallback,
    ) -> None:
        """Replay the window unaltered, and measure what is to be explained."""
        self.run, self.blamed, self.window, self.options = run, blamed, window, options
        self.steps = StepCount(progress)
        self.started = time.perf_counter()
        self.evidence = Evidence()
        S, length = blamed.step, blamed.step - window.first
        self.steps.expect(2 * (BEFORE + length) + 8 * length)
        start = max(lowest_state(run), window.first - BEFORE)
        probes = clean_probes(run, start)
        stretch = Stretch(run, start, S, probes, self.steps.add, keep=[window.first])
        self.control = WindowControl(stretch, window.first, S, narrow=options.window is None)
        self.replays = WindowReplays(self.control, self.steps.add)
        self.influences = own_influences(self.control)
        self.null_replays = self.null_steps = 0  # of windows without a spike
        self.facts = Facts(
            blamed,
            stretch.report,
            self.control.recorded_absent(blamed),
            self.control.excess.loss,
            self.control.excess,
            height=window.height,
            worse_before=None if window.reaches_calm else self._worse_before(),
            calm=window.calm,
        )

    @property
    def first(self) -> int:
        """The first batch in which causes are looked for."""
        return self.control.begin

    @property
    def S(self) -> int:
        """The step that is blamed."""
        return self.blamed.step

    def _worse_before(self) -> float | None:
        """Return by how much P's loss at A stood above that at the last calm state, nats.

        None where no state is there.
        """
        calm, control = self.window.calm, self.control
        if calm < lowest_state(self.run):
            return None
        note = f"to the calm state {calm}"
        state = self.run.state_at(calm, lambda state, result: self.steps.add(1, note))
        return control.excess.probe_before - control.probe_loss(state.params)
