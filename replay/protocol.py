"""Any trainer can be replayed: four functions are all that a replay asks for.

docs/foreign.md has a worked example around a Hugging Face model; a run of this workbench is one too
(`of_run`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback, silent
from forensics.train.advance import advance
from forensics.train.run import Run

S = TypeVar("S")
B = TypeVar("B")


class Replayable(Protocol[S, B]):
    """State s is the state after s updates; batch s takes state s to s+1."""

    def load(self, step: int) -> S:
        """Return the state after `step` updates; a fresh copy each time."""
        ...

    def batch_at(self, step: int) -> B:
        """Batch `step`: a pure function of the step."""
        ...

    def advance(self, state: S, batch: B) -> tuple[S, float]:
        """Return the next state, and the batch's loss at the state before.

        May change `state` in place.
        """
        ...

    def digest(self, state: S) -> str:
        """Equal for equal states, bit for bit: parameters, moments, counters."""
        ...


@dataclass(frozen=True)
class Row:
    """One replayed step."""

    step: int
    loss: float
    digest: str  # of state step+1


@dataclass(frozen=True)
class Verdict:
    """Whether a replay is the recorded run bit for bit."""

    bitwise: bool
    compared: int
    first_difference: int | None  # step


def replay(
    trainer: Replayable[S, B],
    first: int,
    last: int,
    stream: Callable[[int], B] | None = None,
    progress: ProgressCallback = silent,
) -> list[Row]:
    """Return steps first … last−1 from the trainer's state `first`, over its own batches or another
    stream.
    """
    if not 0 <= first < last:
        raise ForensicsError(
            "usage",
            f"wanted a window A:B with A < B, found {first}:{last}",
            "windows are half-open",
        )
    source = stream or trainer.batch_at
    state, rows = trainer.load(first), []
    for step in range(first, last):
        state, loss = trainer.advance(state, source(step))
        rows.append(Row(step, loss, trainer.digest(state)))
        progress(step + 1 - first, last - first, "")
    return rows


def verify(
    trainer: Replayable[S, B],
    recorded: Mapping[int, Row],
    first: int,
    last: int,
    progress: ProgressCallback = silent,
) -> Verdict:
    """Replay the window and hold every loss and digest against what was recorded."""
    rows = replay(trainer, first, last, progress=progress)
    compared = [row for row in rows if row.step in recorded]
    different = next((row.step for row in compared if row != recorded[row.step]), None)
    return Verdict(different is None and bool(compared), len(compared), different)


@dataclass(frozen=True)
class Pair:
    """Fork beside control at one step."""

    step: int
    loss_control: float
    loss_fork: float
    same_state: bool  # after the step


def fork(
    trainer: Replayable[S, B],
    first: int,
    last: int,
    altered: Callable[[Callable[[int], B]], Callable[[int], B]],
    progress: ProgressCallback = silent,
) -> list[Pair]:
    """Return the window over its own batches and over `altered(batch_at)`, from the same state."""
    control = replay(trainer, first, last, progress=progress)
    replayed = replay(trainer, first, last, altered(trainer.batch_at), progress)
    return [Pair(c.step, c.loss, f.loss, c.digest == f.digest) for c, f in zip(control, replayed)]


class OfRun:
    """A run of this workbench as a Replayable."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def load(self, step: int) -> Any:
        """Return the exact state after `step` updates."""
        return self.run.state_at(step)

    def batch_at(self, step: int) -> Any:
        """Return the run's batch of a step."""
        return self.run.stream(step)

    def advance(self, state: Any, batch: Any) -> tuple[Any, float]:
        """Take one step, in place."""
        result = advance(state, batch, self.run.policy(state.counters), self.run.model)
        assert result.loss is not None, "a policy that computes nothing has no batch to give here"
        return state, result.loss

    def digest(self, state: Any) -> str:
        """Return the state's digest."""
        return state.digest()
