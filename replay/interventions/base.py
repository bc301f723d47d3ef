"""What an intervention is: the identity, and what every kind of it shares.

A kind is one class. It overrides what it alters and leaves the rest alone; its docstring, flags and
fields (`fields`) are all that the command line, fork files, sweeps, the app's form and the docs
know of it. Defining the class registers it. Windows are half-open and lie inside the fork's. Steps
and slots are those of the stream an intervention is given, which is what the interventions before
it made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from forensics.errors import ForensicsError
from replay.interventions.fields import about
from replay.interventions.flags import Flag

if TYPE_CHECKING:
    from forensics.model.shape import Shape
    from forensics.step.batch import BatchStream
    from forensics.step.policy import Policy
    from forensics.step.state import Counters, TrainState
    from forensics.train.run import Run
    from replay.interventions.rows import Slot

KINDS: dict[str, type[Intervention]] = {}  # by the name that a fork file calls it


class Draft(Protocol):
    """The fork that an intervention is made for, as those before it leave it."""

    @property
    def stream(self) -> BatchStream:
        """Return what the intervention is given."""

    @property
    def removed_documents(self) -> frozenset[int]:
        """Return the documents that the fork and those that it descends from take out."""

    def next_draws(self) -> tuple[int, ...] | None:
        """Return, of each source, the number of the draw that comes next in a place; None: the
        first after the parent's end.
        """


@dataclass(frozen=True)
class Null:
    """What of a kind is drawn at random in a placebo.

    Without `draw` it is the data that the kind acts on: other rows of the run's order stand in the
    same places, in the placebo and in its own control. With `draw` it is what the kind brings in,
    or chooses: `draw(intervention, run, first, last, number)` returns the kind with another draw,
    another one for each number; None where there is nothing to draw from.
    """

    words: str  # for the docs
    draw: Callable[[Any, Run, int, int, int], Intervention | None] | None = None


@dataclass(frozen=True)
class Intervention:
    """Change nothing; a kind overrides what it alters."""

    kind: ClassVar[str] = ""
    title: ClassVar[str] = ""  # in the app's list of forms, which leaves out a kind without one
    flags: ClassVar[tuple[Flag, ...]] = ()
    null: ClassVar[Null | None] = None  # None: it has no placebo, and stays in every placebo
    # whether it makes no sense once any of its batches is dropped, not only once all are
    needs_all_batches: ClassVar[bool] = False

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Register a class that names its kind."""
        super().__init_subclass__(**arguments)
        if kind := cls.__dict__.get("kind"):
            name = KINDS.get(kind, cls).__qualname__
            assert name == cls.__qualname__, f"two interventions are called {kind!r}"
            KINDS[kind] = cls

    @classmethod
    def alters(cls) -> Literal["stream", "policy", "state"]:
        """Name the method that the kind overrides: what it alters."""
        if cls.policy is not Intervention.policy:
            return "policy"
        return "state" if cls.state is not Intervention.state else "stream"

    def moves_start(self) -> bool:
        """Return whether the fork starts from another state than its parent's."""
        return type(self).state is not Intervention.state

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        """Return the altered stream; `run` is the parent."""
        return stream

    def policy(self, policy: Policy, run: Run) -> Policy:
        """Return the altered policy; `run` is the parent."""
        return policy

    def state(self, state: TrainState, run: Run) -> None:
        """Alter the starting state in place."""

    def shape(self, shape: Shape, run: Run) -> Shape:
        """Return the altered decoder; `run` is the parent. Its tensors are `state`'s to add."""
        return shape

    def check(self, run: Run, first: int, last: int) -> None:
        """Refuse what makes no sense in the fork first:last of `run`. Errors: usage, missing."""

    def resolved(self, run: Run, draft: Draft | None = None) -> Intervention:
        """Write down everything that would otherwise be looked for, or follows from the fork that
        it is part of. Errors: usage, missing.
        """
        return self

    def donors(self, run: Run) -> dict[str, str]:
        """Name the states of other runs that it takes something from, RUN@STEP → digest. Errors:
        usage, missing.
        """
        return {}

    def sentence(self) -> str:
        """Say in one line what it does."""
        raise AssertionError("each kind describes itself")

    def erases(self) -> bool:
        """Tell whether no trace of the data that it acts on is left in the fork, so that the fork
        would be the same had other data stood there.
        """
        return False

    def placed(self, run: Run) -> Intervention:
        """Return the same by the places that it acts on, whatever data stands there."""
        return self

    def touches(self, run: Run, stream: BatchStream) -> list[Slot]:
        """List the slots of the parent's batches that it alters, for the plan."""
        return []

    def batches(self) -> Collection[int]:
        """Name the batches of its stream that it acts on; none for what acts on policy or state,
        or only adds batches.
        """
        return ()

    def reach(self, end: int, run: Run) -> int:
        """Return a step below which all batches lie that it asks of its own stream for those before
        `end`.
        """
        source = self.source_step(end - 1, run)
        return end if source is None else max(end, source + 1)

    def source_step(self, step: int, run: Run) -> int | None:
        """Find the batch of its own stream that stands at `step` of the altered one; None: a batch
        that it made.
        """
        return step


@dataclass(frozen=True)
class Windowed(Intervention):
    """Act on the steps first … last−1."""

    first: int = field(metadata=about(step=True))
    last: int = field(metadata=about(step=True))

    def check(self, run: Run, first: int, last: int) -> None:
        """Refuse a window that is empty, reversed or outside the fork's. Errors: usage."""
        if not first <= self.first < self.last <= last:
            raise ForensicsError(
                "usage",
                f"{self.kind or 'intervention'}: wanted a window inside {first}:{last}, found"
                f" {self.first}:{self.last}",
                "widen --from and --to, or move the window",
            )

    def holds(self, counters: Counters) -> bool:
        """Tell whether the step lies inside the window."""
        return self.first <= counters.step < self.last

    @property
    def window(self) -> str:
        """Spell the window as a fork file does."""
        return f"{self.first}:{self.last}"
