"""Change what a step does with its batch: one number or switch of the policy, in a window."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from forensics.errors import ForensicsError, nearest
from replay.interventions.base import Draft, Windowed
from replay.interventions.fields import about
from replay.interventions.flags import Flag, alone, one, two_numbers, windowed
from replay.interventions.requirements import matching_tensors, require
from replay.interventions.skip_history import recorded_window

if TYPE_CHECKING:
    from forensics.step.policy import Policy, StepPolicy
    from forensics.step.state import Counters, TrainState
    from forensics.train.run import Run


@dataclass(frozen=True)
class PolicyOfWindow(Windowed):
    """Alter the policy of a window's steps."""

    def altered(self, policy: StepPolicy, run: Run) -> StepPolicy:
        """Return the policy of one of the window's steps, altered."""
        raise AssertionError("each kind alters something")

    def policy(self, policy: Policy, run: Run) -> Policy:
        """Alter the window's steps, and no other."""

        def altered(counters: Counters) -> StepPolicy:
            step_policy = policy(counters)
            return self.altered(step_policy, run) if self.holds(counters) else step_policy

        return altered


@dataclass(frozen=True)
class LearningRate(PolicyOfWindow):
    """Multiply the learning rate by `factor`."""

    kind = "lr-scale"
    title = "Scale the learning rate"
    flags = (
        Flag("F@A:B", "Learning rate times F.", "0.5@200:210", windowed(one("factor", float))),
    )
    factor: float = field(metadata=about(label="Factor", begin=0.5))

    def altered(self, policy: StepPolicy, run: Run) -> StepPolicy:
        """Scale the step's learning rate."""
        return replace(policy, learning_rate=policy.learning_rate * self.factor)

    def check(self, run: Run, first: int, last: int) -> None:
        """Refuse a factor below 0. Errors: usage."""
        super().check(run, first, last)
        require(
            self.factor >= 0,
            self.kind,
            "a factor of at least 0",
            self.factor,
            "e.g. --lr-scale 0.5@200:210",
        )

    def sentence(self) -> str:
        """Say by how much the learning rate is scaled where."""
        return f"multiplies the learning rate by {self.factor:g} in {self.window}"


def _value_flag(help: str, example: str) -> tuple[Flag, ...]:
    return (Flag("V@A:B", help, f"{example}@200:210", windowed(one("value", float))),)


@dataclass(frozen=True)
class NumberOfPolicy(PolicyOfWindow):
    """Set one number of the policy."""

    value: float
    number: ClassVar[str] = ""  # the policy's own name of it
    words: ClassVar[str] = ""
    positive: ClassVar[bool] = False
    example: ClassVar[str] = "0.1"

    def altered(self, policy: StepPolicy, run: Run) -> StepPolicy:
        """Set the number."""
        changes: dict[str, Any] = {self.number: self.value}
        return replace(policy, **changes)

    def check(self, run: Run, first: int, last: int) -> None:
        """Refuse a number below 0, and 0 where it has to be more. Errors: usage."""
        super().check(run, first, last)
        require(
            self.value > 0 if self.positive else self.value >= 0,
            self.kind,
            "more than 0" if self.positive else "at least 0",
            self.value,
            f"e.g. --{self.kind} {self.example}@{first}:{last}",
        )

    def sentence(self) -> str:
        """Say what is set to which number where."""
        return f"sets {self.words} to {self.value:g} in {self.window}"


@dataclass(frozen=True)
class Clip(NumberOfPolicy):
    """Set the largest gradient norm ‖g‖₂; 0: no clipping."""

    kind = "clip"
    title = "Clip the gradient norm"
    flags = _value_flag("Largest gradient norm; 0: none.", "0.5")
    value: float = field(metadata=about(label="Largest norm", begin=1.0))
    number = "clip"
    words = "the largest gradient norm"
    example = "0.5"


@dataclass(frozen=True)
class Betas(PolicyOfWindow):
    """Set Adam's β₁ and β₂."""

    kind = "betas"
    title = "Adam's β"
    flags = (
        Flag("B1,B2@A:B", "Adam's β.", "0.9,0.99@200:210", windowed(one("betas", two_numbers))),
    )
    betas: tuple[float, float] = field(metadata=about(label="β₁, β₂", begin="0.9, 0.95"))

    def altered(self, policy: StepPolicy, run: Run) -> StepPolicy:
        """Set both."""
        return replace(policy, betas=self.betas)

    def check(self, run: Run, first: int, last: int) -> None:
        """Refuse numbers outside [0, 1). Errors: usage."""
        super().check(run, first, last)
        require(
            all(0 <= beta < 1 for beta in self.betas),
            self.kind,
            "two numbers in [0, 1)",
            list(self.betas),
            "e.g. --betas 0.9,0.95@200:210",
        )

    def sentence(self) -> str:
        """Say what β₁ and β₂ are set to where."""
        return f"sets Adam's β to {self.betas[0]:g} and {self.betas[1]:g} in {self.window}"


class Epsilon(NumberOfPolicy):
    """Set Adam's ε."""

    kind = "eps"
    flags = _value_flag("Adam's ε.", "1e-6")
    number = "eps"
    words = "Adam's ε"
    positive = True
    example = "1e-6"


@dataclass(frozen=True)
class WeightDecay(NumberOfPolicy):
    """Set λ, the weight decay of AdamW."""

    kind = "weight-decay"
    title = "Weight decay"
    flags = _value_flag("λ of AdamW.", "0")
    value: float = field(metadata=about(label="λ", begin=0.0))
    number = "weight_decay"
    words = "weight decay"


class ZLoss(NumberOfPolicy):
    """Set the weight of the z-loss, mean (logsumexp)²."""

    kind = "z-loss"
    flags = _value_flag("Weight of the z-loss.", "1e-4")
    number = "z_loss"
    words = "the weight of the z-loss"
    example = "1e-4"


def _on_or_off(text: str) -> bool:
    return bool(("off", "on").index(text))


@dataclass(frozen=True)
class SkipStep(PolicyOfWindow):
    """Switch SkipStep on or off: no update where loss or gradient norm lies 6σ above its last 128
    values.

    Switched on, it begins with the values that the parent's steps recorded, and takes those of the
    fork's steps outside the window too, as if it had watched all along.
    """

    kind = "skip-step"
    flags = (
        Flag("on|off@A:B", "SkipStep on or off.", "on@200:210", windowed(one("on", _on_or_off))),
    )
    on: bool
    watched: bool | None = field(default=None, metadata=about(settled=True))

    def resolved(self, run: Run, draft: Draft | None = None) -> SkipStep:
        """Write down that it begins with the recorded values; without, as forks once did, it begins
        with none.
        """
        return replace(self, watched=True) if self.on else self

    def altered(self, policy: StepPolicy, run: Run) -> StepPolicy:
        """Set the switch."""
        return replace(policy, skip_step=self.on)

    def policy(self, policy: Policy, run: Run) -> Policy:
        """Set the switch in the window, and watch all steps where it is on in some."""
        switched = super().policy(policy, run)
        if not self.watched:
            return switched
        return lambda counters: replace(switched(counters), watch_skip=True)

    def state(self, state: TrainState, run: Run) -> None:
        """Fill SkipStep's window with the recorded values before the fork's start."""
        if self.watched:
            state.window = recorded_window(run, state.counters.step)

    def moves_start(self) -> bool:
        """Return whether the window of the fork's start is another than its parent's."""
        return bool(self.watched)

    def check(self, run: Run, first: int, last: int) -> None:
        """Refuse where the values before the fork's start were not recorded. Errors: usage,
        missing.
        """
        super().check(run, first, last)
        if self.on:
            recorded_window(run, first)

    def sentence(self) -> str:
        """Say whether it is switched on or off where."""
        return f"switches SkipStep {'on' if self.on else 'off'} in {self.window}"


@dataclass(frozen=True)
class Freeze(PolicyOfWindow):
    """Leave tensors alone, by name or glob pattern: parameters and moments."""

    kind = "freeze"
    title = "Freeze tensors"
    flags = (
        Flag(
            "PATTERN@A:B",
            "Leave tensors alone, moments too.",
            "'embed.*@200:210'",
            windowed(one("tensors", alone)),
        ),
    )
    tensors: tuple[str, ...] = field(
        metadata=about(label="Tensors", begin="*", help="E.g. layers.3.*, embed.weight")
    )

    def policy(self, policy: Policy, run: Run) -> Policy:
        """Add the tensors to those that the window's steps leave alone."""
        names = frozenset(matching_tensors(run, self.kind, self.tensors))

        def altered(counters: Counters) -> StepPolicy:
            step_policy = policy(counters)
            if not self.holds(counters):
                return step_policy
            return replace(step_policy, frozen=step_policy.frozen | names)

        return altered

    def check(self, run: Run, first: int, last: int) -> None:
        """Refuse a pattern that no tensor matches. Errors: usage, missing."""
        super().check(run, first, last)
        matching_tensors(run, self.kind, self.tensors)

    def sentence(self) -> str:
        """Say which tensors are frozen where."""
        return f"freezes {', '.join(self.tensors)} in {self.window}"


PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Precision(PolicyOfWindow):
    """Set the precision of forward and backward: fp32, or bf16 (autocast)."""

    kind = "precision"
    flags = (Flag("P@A:B", "fp32 or bf16.", "fp32@200:210", windowed(one("precision"))),)
    precision: str = field(metadata=about(choices=PRECISIONS))

    def altered(self, policy: StepPolicy, run: Run) -> StepPolicy:
        """Set the precision."""
        return replace(policy, precision=self.precision)

    def check(self, run: Run, first: int, last: int) -> None:
        """Refuse another precision, and bf16 on the CPU. Errors: usage, device."""
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
        """Say in which precision is computed where."""
        return f"computes in {self.precision} in {self.window}"
