"""Policy interventions: what a step does with its batch, in a window.

| skip by any name | data | step | schedule | updates, moments, decay | θ |
|---|---|---|---|---|---|
| drop | later batches move up | +1 | +1 | as always, with the batch that moved up | moves |
| skip | consumed, not computed | +1 | +1 | untouched | stays |
| skip-frozen | consumed, not computed | +1 | 0 | untouched | stays |
| zero-update | forward, backward recorded | +1 | +1 | untouched | stays |
| hold-parameters | forward, backward | +1 | +1 | advance | stays |
| mask | consumed, weights 0 | +1 | +1 | advance | moves |
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from forensics.errors import ForensicsError, nearest
from forensics.step.batch import BatchStream
from forensics.step.policy import Policy, StepPolicy
from forensics.step.state import Counters
from forensics.train.run import Run
from replay.interventions import rows
from replay.interventions.base import Intervention, Windowed, other_window, require, tensors_like


@dataclass(frozen=True)
class _InWindow(Windowed):
    """Alters the policy of the window's steps."""

    def altered(self, own: StepPolicy, run: Run) -> StepPolicy:
        raise AssertionError("each kind alters something")

    def policy(self, policy: Policy, run: Run) -> Policy:
        def altered(counters: Counters) -> StepPolicy:
            own = policy(counters)
            return self.altered(own, run) if self.holds(counters) else own

        return altered


@dataclass(frozen=True)
class _NoUpdate(_InWindow):
    update: ClassVar[Literal["hold", "zero", "none"]] = "none"
    frozen: ClassVar[bool] = False
    words: ClassVar[str] = ""
    every = True

    def altered(self, own: StepPolicy, run: Run) -> StepPolicy:
        return replace(
            own, update=self.update, advance_schedule=own.advance_schedule and not self.frozen
        )

    def sentence(self) -> str:
        return f"{self.words} steps {self.window}"

    def placebo(
        self, run: Run, stream: BatchStream, first: int, last: int, seed: int
    ) -> Intervention | None:
        return other_window(self, first, last, seed)

    def touches(self, run: Run, stream: BatchStream) -> list[rows.Slot]:
        return rows.whole(stream, range(self.first, self.last))

    def batches(self) -> Collection[int]:
        return range(self.first, self.last)


class Skip(_NoUpdate):
    """The batch is consumed, nothing is computed."""

    kind = "skip"
    words = "skips"


class SkipFrozen(_NoUpdate):
    """As skip, and the schedule's counter stays."""

    kind = "skip-frozen"
    frozen = True
    words = "skips, with the schedule frozen,"


class ZeroUpdate(_NoUpdate):
    """Forward and backward are recorded; the update is left out by branch, never by a factor 0."""

    kind = "zero-update"
    update = "zero"
    words = "computes but does not apply"


class HoldParameters(_NoUpdate):
    """The moments advance, the parameters stay."""

    kind = "hold-parameters"
    update = "hold"
    words = "holds the parameters in"


@dataclass(frozen=True)
class LearningRate(_InWindow):
    """The learning rate times a factor."""

    kind: ClassVar[str] = "lr-scale"
    factor: float

    def altered(self, own: StepPolicy, run: Run) -> StepPolicy:
        return replace(own, learning_rate=own.learning_rate * self.factor)

    def check(self, run: Run, first: int, last: int) -> None:
        super().check(run, first, last)
        require(
            self.factor >= 0,
            self.kind,
            "a factor of at least 0",
            self.factor,
            "e.g. --lr-scale 0.5@200:210",
        )

    def sentence(self) -> str:
        return f"multiplies the learning rate by {self.factor:g} in {self.window}"


@dataclass(frozen=True)
class _Number(_InWindow):
    """One number of the policy, set to `value`."""

    value: float
    field: ClassVar[str] = ""
    words: ClassVar[str] = ""
    positive: ClassVar[bool] = False
    example: ClassVar[str] = "0.1"

    def altered(self, own: StepPolicy, run: Run) -> StepPolicy:
        changed: dict[str, Any] = {self.field: self.value}
        return replace(own, **changed)

    def check(self, run: Run, first: int, last: int) -> None:
        super().check(run, first, last)
        holds = self.value > 0 if self.positive else self.value >= 0
        wanted = "more than 0" if self.positive else "at least 0"
        require(
            holds,
            self.kind,
            wanted,
            self.value,
            f"e.g. --{self.kind} {self.example}@{first}:{last}",
        )

    def sentence(self) -> str:
        return f"sets {self.words} to {self.value:g} in {self.window}"


class Clip(_Number):
    """The largest ‖g‖₂; 0: no clipping."""

    kind = "clip"
    field = "clip"
    words = "the largest gradient norm"
    example = "0.5"


class Epsilon(_Number):
    """Adam's ε."""

    kind = "eps"
    field = "eps"
    words = "Adam's ε"
    positive = True
    example = "1e-6"


class WeightDecay(_Number):
    """λ of AdamW."""

    kind = "weight-decay"
    field = "weight_decay"
    words = "weight decay"


class ZLoss(_Number):
    """The weight of mean (logsumexp)²."""

    kind = "z-loss"
    field = "z_loss"
    words = "the weight of the z-loss"
    example = "1e-4"


@dataclass(frozen=True)
class Betas(_InWindow):
    """Adam's β₁ and β₂."""

    kind: ClassVar[str] = "betas"
    betas: tuple[float, float]

    def altered(self, own: StepPolicy, run: Run) -> StepPolicy:
        return replace(own, betas=self.betas)

    def check(self, run: Run, first: int, last: int) -> None:
        super().check(run, first, last)
        require(
            all(0 <= b < 1 for b in self.betas),
            self.kind,
            "two numbers in [0, 1)",
            list(self.betas),
            "e.g. --betas 0.9,0.95@200:210",
        )

    def sentence(self) -> str:
        return f"sets Adam's β to {self.betas[0]:g} and {self.betas[1]:g} in {self.window}"


@dataclass(frozen=True)
class SkipStep(_InWindow):
    """SkipStep on or off: no update where loss or gradient norm lies 6σ above its last 128
    values.
    """

    kind: ClassVar[str] = "skip-step"
    on: bool

    def altered(self, own: StepPolicy, run: Run) -> StepPolicy:
        return replace(own, skip_step=self.on)

    def sentence(self) -> str:
        return f"switches SkipStep {'on' if self.on else 'off'} in {self.window}"


@dataclass(frozen=True)
class Freeze(_InWindow):
    """Tensors, by name or glob pattern, that are left alone: parameters and moments."""

    kind: ClassVar[str] = "freeze"
    tensors: tuple[str, ...]

    def policy(self, policy: Policy, run: Run) -> Policy:
        names = frozenset(tensors_like(run, self.kind, self.tensors))

        def altered(counters: Counters) -> StepPolicy:
            own = policy(counters)
            return replace(own, frozen=own.frozen | names) if self.holds(counters) else own

        return altered

    def check(self, run: Run, first: int, last: int) -> None:
        super().check(run, first, last)
        tensors_like(run, self.kind, self.tensors)

    def sentence(self) -> str:
        return f"freezes {', '.join(self.tensors)} in {self.window}"


PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Precision(_InWindow):
    """The precision of forward and backward: fp32 or bf16 (autocast)."""

    kind: ClassVar[str] = "precision"
    precision: str

    def altered(self, own: StepPolicy, run: Run) -> StepPolicy:
        return replace(own, precision=self.precision)

    def check(self, run: Run, first: int, last: int) -> None:
        super().check(run, first, last)
        require(
            self.precision in PRECISIONS,
            self.kind,
            " or ".join(PRECISIONS),
            self.precision,
            nearest(self.precision, PRECISIONS),
        )
        if self.precision == "bf16" and run.header.device == "cpu":
            raise ForensicsError(
                "device",
                f"precision: bf16 needs CUDA, {run.name} was trained on the CPU",
                "fork a run that was trained on a GPU",
            )

    def sentence(self) -> str:
        return f"computes in {self.precision} in {self.window}"


KINDS: list[type[Intervention]] = [
    Skip,
    SkipFrozen,
    ZeroUpdate,
    HoldParameters,
    LearningRate,
    Clip,
    Betas,
    Epsilon,
    WeightDecay,
    ZLoss,
    SkipStep,
    Freeze,
    Precision,
]
