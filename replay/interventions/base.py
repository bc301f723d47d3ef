"""What an intervention is: the identity, and what every kind of it shares.

A kind overrides what it alters and leaves the rest alone. Windows are half-open and lie inside the
fork's. Steps and slots are those of the stream an intervention is given, which is what the
interventions before it made.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np

from forensics.errors import ForensicsError, nearest
from forensics.model.families.registry import parameter_shapes
from forensics.step.batch import BatchStream
from forensics.step.policy import Policy
from forensics.step.state import Counters, TrainState
from forensics.train.run import Run
from replay.interventions import rows


@dataclass(frozen=True)
class Intervention:
    """The identity; a kind overrides what it alters."""

    kind: ClassVar[str] = ""
    every: ClassVar[bool] = (
        False  # whether it makes no sense once any of its batches is dropped, not only once all are
    )

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        """The altered stream; `run` is the parent."""
        return stream

    def policy(self, policy: Policy, run: Run) -> Policy:
        return policy

    def state(self, state: TrainState, run: Run) -> None:
        """Alter the starting state in place."""

    def check(self, run: Run, first: int, last: int) -> None:
        """Refuse what makes no sense in the fork first:last of `run`. Errors: usage, missing."""

    def resolved(self, run: Run) -> Intervention:
        """Itself with everything written down that it would otherwise look for in the corpus.
        Errors: usage, missing.
        """
        return self

    def sentence(self) -> str:
        raise AssertionError("each kind describes itself")

    def placebo(
        self, run: Run, stream: BatchStream, first: int, last: int, seed: int
    ) -> Intervention | None:
        """The same on equally many random sequences of the same steps; None where there is no such
        thing.
        """
        return None

    def touches(self, run: Run, stream: BatchStream) -> list[rows.Slot]:
        """The slots of the parent's batches that it alters, for the plan."""
        return []

    def batches(self) -> Collection[int]:
        """The batches of its stream that it acts on; none for what acts on policy or state, or only
        adds batches.
        """
        return ()

    def comes_from(self, step: int, run: Run) -> int | None:
        """Which batch of its own stream stands at `step` of the altered one; None: one that it
        made.
        """
        return step


@dataclass(frozen=True)
class Windowed(Intervention):
    """Acts on the steps first … last−1."""

    first: int
    last: int

    def check(self, run: Run, first: int, last: int) -> None:
        if not first <= self.first < self.last <= last:
            raise ForensicsError(
                "usage",
                f"{self.kind or 'intervention'}: wanted a window inside {first}:{last}, found"
                f" {self.first}:{self.last}",
                "widen --from and --to, or move the window",
            )

    def holds(self, counters: Counters) -> bool:
        return self.first <= counters.step < self.last

    @property
    def window(self) -> str:
        return f"{self.first}:{self.last}"


def other_window(own: Any, first: int, last: int, seed: int) -> Any:
    """The same on as many steps elsewhere in the fork's window; None where they do not fit beside
    it.
    """
    from dataclasses import replace

    length = own.last - own.first
    starts = [
        s for s in range(first, last - length + 1) if s + length <= own.first or s >= own.last
    ]
    if not starts:
        return None
    start = starts[int(np.random.default_rng(seed).integers(len(starts)))]
    return replace(own, first=start, last=start + length)


def require(holds: bool, kind: str, wanted: str, found: Any, hint: str) -> None:
    """Refuse in one line what does not hold. Errors: usage."""
    if not holds:
        raise ForensicsError("usage", f"{kind}: wanted {wanted}, found {found}", hint)


def require_tokens(run: Run, kind: str, tokens: Sequence[int]) -> None:
    """Errors: usage, for an id outside the vocabulary."""
    for token in tokens:
        require(
            0 <= token < run.shape.vocabulary,
            kind,
            f"ids below {run.shape.vocabulary}",
            token,
            "ids are the tokenizer's",
        )


def require_sequences(run: Run, kind: str, sequences: Sequence[int]) -> None:
    """Errors: missing, for an id that the corpus has not; usage, for one that is held out."""
    layout = run.corpus.layout(run.recipe.data.sequence_length)
    known, held_out = sum(layout.n_sequences), set(run.batches.order.held_out.tolist())
    for sequence in sequences:
        if not 0 <= sequence < known:
            raise ForensicsError(
                "missing",
                f"{kind}: wanted a sequence of {run.name}, found id {sequence}",
                f"it has sequences 0 to {known - 1}",
            )
        require(
            sequence not in held_out,
            kind,
            "sequences that may be trained on",
            f"{sequence}, which is held out",
            "forks are probed on what no arm has seen",
        )


def tensors_like(run: Run, kind: str, patterns: Sequence[str]) -> list[str]:
    """The run's tensors that match a name or glob pattern, in the order of the forward. Errors:
    usage, missing.
    """
    names = list(parameter_shapes(run.shape))
    require(
        bool(patterns),
        kind,
        "names or patterns of tensors",
        "none",
        'e.g. tensors = ["layers.0.*"]',
    )
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            hint = nearest(pattern, names)
            raise ForensicsError(
                "missing",
                f"{kind}: no tensor of {run.name} is called {pattern!r}",
                hint if hint.startswith("did") else f"e.g. {names[0]}, or a pattern as layers.0.*",
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
