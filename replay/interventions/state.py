"""State interventions: each alters the state once, at the fork's start, in the order they are
given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from forensics.errors import ForensicsError
from forensics.model.families.registry import parameter_shapes
from forensics.step.state import TrainState
from forensics.train import checkpoint
from forensics.train.run import Run, open_run
from replay.interventions.base import Intervention, require, tensors_like

ALL = ("*",)


@dataclass(frozen=True)
class UnitInLastPlace(Intervention):
    """Every parameter moves by one unit in the last place, up or down by a seeded coin: the
    smallest noise there is.

    In bf16 training an fp32 ulp changes almost no bf16 weight, so the move is a relative 2⁻⁸ there.
    """

    kind: ClassVar[str] = "ulp"
    seed: int = 0

    def state(self, state: TrainState, run: Run) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        for _, theta in sorted(state.params.items()):
            up = (torch.rand(theta.shape, generator=generator) < 0.5).to(theta.device)
            if run.header.precision == "bf16":
                theta.mul_(torch.where(up, 1 + 2.0**-8, 1 - 2.0**-8))
            else:
                theta.copy_(torch.nextafter(theta, torch.where(up, torch.inf, -torch.inf)))

    def sentence(self) -> str:
        return f"moves every parameter by one unit in the last place (seed {self.seed})"


@dataclass(frozen=True)
class Noise(Intervention):
    """θ ← θ + σ·RMS(θ)·N(0, 1), tensor by tensor."""

    kind: ClassVar[str] = "noise"
    sigma: float  # relative to each tensor's own RMS
    seed: int = 0
    tensors: tuple[str, ...] = ALL

    def state(self, state: TrainState, run: Run) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        for name in sorted(tensors_like(run, self.kind, self.tensors)):
            theta = state.params[name]
            drawn = torch.randn(theta.shape, generator=generator, dtype=theta.dtype).to(
                theta.device
            )
            theta.add_(drawn, alpha=self.sigma * float(theta.double().square().mean().sqrt()))

    def check(self, run: Run, first: int, last: int) -> None:
        require(
            0 < self.sigma < math.inf,
            self.kind,
            "σ of more than 0",
            self.sigma,
            "e.g. --noise 0.001",
        )
        tensors_like(run, self.kind, self.tensors)

    def sentence(self) -> str:
        return f"adds noise of {self.sigma:g} RMS to {_listed(self.tensors)} (seed {self.seed})"


@dataclass(frozen=True)
class ResetMoments(Intervention):
    """Both moments become 0; with `counter`, bias correction starts again too."""

    kind: ClassVar[str] = "reset-moments"
    tensors: tuple[str, ...] = ALL
    counter: bool = False

    def state(self, state: TrainState, run: Run) -> None:
        from dataclasses import replace

        for name in tensors_like(run, self.kind, self.tensors):
            state.exp_avg[name].zero_()
            state.exp_avg_sq[name].zero_()
        if self.counter:
            state.counters = replace(state.counters, updates=0)

    def check(self, run: Run, first: int, last: int) -> None:
        some = len(tensors_like(run, self.kind, self.tensors)) < len(parameter_shapes(run.shape))
        require(
            not (some and self.counter),
            self.kind,
            "all tensors where the update counter goes too",
            ", ".join(self.tensors),
            "every tensor's bias correction reads the one counter",
        )

    def sentence(self) -> str:
        return f"resets the moments of {_listed(self.tensors)}" + (
            " and the update counter" if self.counter else ""
        )


@dataclass(frozen=True)
class Transplant(Intervention):
    """Tensors come from another checkpoint, RUN@STEP, in which they have the same shapes; on
    request their moments too.
    """

    kind: ClassVar[str] = "transplant"
    checkpoint: str
    tensors: tuple[str, ...] = ALL
    moments: bool = False

    def state(self, state: TrainState, run: Run) -> None:
        other, step = self._donor(run)
        donor, _ = checkpoint.load(
            other.folder / "checkpoints" / checkpoint.name_of(step), run.header.device
        )
        for name in tensors_like(run, self.kind, self.tensors):
            for mine, theirs in self._pairs(state, donor, name):
                mine.copy_(theirs)

    def _pairs(
        self, state: TrainState, donor: TrainState, name: str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        yield state.params[name], donor.params[name]
        if self.moments:
            yield state.exp_avg[name], donor.exp_avg[name]
            yield state.exp_avg_sq[name], donor.exp_avg_sq[name]

    def _donor(self, run: Run) -> tuple[Run, int]:
        name, at, step = self.checkpoint.rpartition("@")
        require(
            bool(at and name) and step.isdecimal(),
            self.kind,
            "RUN@STEP",
            repr(self.checkpoint),
            f"e.g. {run.name}@{run.header.first_step}",
        )
        other = open_run(run.runs, name)
        if int(step) not in other.saved_steps():
            saved = ", ".join(str(s) for s in other.saved_steps()) or "none"
            raise ForensicsError(
                "missing",
                f"transplant: wanted a checkpoint of {name} at {step}, found none",
                f"saved: {saved}",
            )
        return other, int(step)

    def check(self, run: Run, first: int, last: int) -> None:
        other, _ = self._donor(run)
        own, theirs = parameter_shapes(run.shape), parameter_shapes(other.shape)
        for name in tensors_like(run, self.kind, self.tensors):
            if own[name] != theirs.get(name):
                found = "none" if name not in theirs else list(theirs[name])
                raise ForensicsError(
                    "usage",
                    f"transplant: wanted {name} of shape {list(own[name])}, found {found} in"
                    f" {other.name}",
                    "name tensors that are alike, by pattern",
                )

    def sentence(self) -> str:
        return (
            f"takes {_listed(self.tensors)}{' with moments' if self.moments else ''} from"
            f" {self.checkpoint}"
        )


def _listed(tensors: tuple[str, ...]) -> str:
    return "every tensor" if tensors == ALL else ", ".join(tensors)


KINDS: list[type[Intervention]] = [ResetMoments, Noise, UnitInLastPlace, Transplant]
