"""Alter the state once, at the fork's start; several act in the order in which they are listed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from forensics.errors import ForensicsError
from replay.interventions.base import Intervention
from replay.interventions.fields import Option, about
from replay.interventions.flags import Flag, Keys, alone, one, seeded
from replay.interventions.requirements import matching_tensors, require, tensor_shapes

if TYPE_CHECKING:
    from torch import Tensor

    from forensics.step.state import TrainState
    from forensics.train.run import Run

ALL = ("*",)
NEAREST = 16  # weights nearest to a border of two bf16 numbers, of which the seed takes one


@dataclass(frozen=True)
class ResetMoments(Intervention):
    """Set both moments to 0; with `counter`, bias correction starts again too."""

    kind = "reset-moments"
    title = "Reset Adam's moments"
    flags = (Flag("[PATTERN]", "Moments to 0.", "'layers.0.*'", one("tensors", alone), bare="*"),)
    tensors: tuple[str, ...] = field(
        default=ALL, metadata=about(label="Tensors", help="E.g. layers.3.*, embed.weight")
    )
    counter: bool = field(
        default=False,
        metadata=about(
            label="Bias correction starts again too",
            option=Option("--reset-counter", "With --reset-moments: bias correction starts again."),
        ),
    )

    def state(self, state: TrainState, run: Run) -> None:
        """Zero the moments of the tensors, and the counter of updates."""
        for name in matching_tensors(run, self.kind, self.tensors):
            state.exp_avg[name].zero_()
            state.exp_avg_sq[name].zero_()
        if self.counter:
            state.counters = replace(state.counters, updates=0)

    def check(self, run: Run, first: int, last: int) -> None:
        """Refuse a counter that goes with some of the tensors only. Errors: usage, missing."""
        tensors = matching_tensors(run, self.kind, self.tensors)
        require(
            not (self.counter and len(tensors) < len(tensor_shapes(run))),
            self.kind,
            "all tensors where the update counter goes too",
            ", ".join(self.tensors),
            "every tensor's bias correction reads the one counter",
        )

    def sentence(self) -> str:
        """Say whose moments are reset."""
        return f"resets the moments of {_listed(self.tensors)}" + (
            " and the update counter" if self.counter else ""
        )


@dataclass(frozen=True)
class Noise(Intervention):
    """Add noise to the parameters, tensor by tensor: θ ← θ + σ·RMS(θ)·N(0, 1)."""

    kind = "noise"
    title = "Add noise to the parameters"
    flags = (
        Flag("σ[@SEED]", "Noise of σ times each tensor's RMS.", "0.001@1", seeded("sigma", float)),
    )
    sigma: float = field(metadata=about(label="σ, times each tensor's RMS", begin=0.001))
    seed: int = field(default=0, metadata=about(seed=True, label="Seed"))
    tensors: tuple[str, ...] = ALL

    def state(self, state: TrainState, run: Run) -> None:
        """Add the noise, drawn on the CPU so that every device gets the same."""
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        for name in sorted(matching_tensors(run, self.kind, self.tensors)):
            theta = state.params[name]
            noise = torch.randn(theta.shape, generator=generator, dtype=theta.dtype).to(
                theta.device
            )
            theta.add_(noise, alpha=self.sigma * float(theta.double().square().mean().sqrt()))

    def check(self, run: Run, first: int, last: int) -> None:
        """Refuse σ of 0 or less, and a pattern that no tensor matches. Errors: usage, missing."""
        require(
            0 < self.sigma < math.inf,
            self.kind,
            "σ of more than 0",
            self.sigma,
            "e.g. --noise 0.001",
        )
        matching_tensors(run, self.kind, self.tensors)

    def sentence(self) -> str:
        """Say how much noise is added to what."""
        return f"adds noise of {self.sigma:g} RMS to {_listed(self.tensors)} (seed {self.seed})"


@dataclass(frozen=True)
class UnitInLastPlace(Intervention):
    """Move every parameter by one unit in the last place, up or down by a seeded coin: the smallest
    noise there is.

    In bf16 training these are the fp32 master weights, of which the cast keeps 8 bits: where the
    move reaches no weight of the layers' matrices after the cast, the one nearest to a border of
    two bf16 numbers (one of the nearest 16, by the seed) is moved across it besides.
    """

    kind = "ulp"
    flags = (Flag("SEED", "One unit in the last place.", "0", one("seed", int), type=int),)
    seed: int = field(default=0, metadata=about(seed=True))

    def state(self, state: TrainState, run: Run) -> None:
        """Move every parameter."""
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        before = {name: theta.clone() for name, theta in cast_weights(state.params).items()}
        for _, theta in sorted(state.params.items()):
            up = (torch.rand(theta.shape, generator=generator) < 0.5).to(theta.device)
            theta.copy_(torch.nextafter(theta, torch.where(up, torch.inf, -torch.inf)))
        if run.header.precision == "bf16":
            _reach_the_cast(state, before, self.seed)

    def sentence(self) -> str:
        """Say that every parameter moves, and by which seed."""
        return f"moves every parameter by one unit in the last place (seed {self.seed})"


def cast_weights(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the layers' matrices: the weights that bf16 training casts at every use."""
    return {
        name: theta
        for name, theta in sorted(params.items())
        if theta.ndim == 2 and name.startswith("layers.")
    }


def cast_differences(params: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> int:
    """Count the weights of the layers' matrices that are another bf16 number in `others`."""
    import torch

    return sum(
        int((theta.to(torch.bfloat16) != others[name].to(torch.bfloat16)).sum())
        for name, theta in cast_weights(params).items()
    )


def _reach_the_cast(state: TrainState, before: Mapping[str, Tensor], seed: int) -> None:
    """Move one weight across the nearest border of two bf16 numbers, where none crossed one."""
    import torch

    if cast_differences(before, state.params):
        return
    nearest: list[tuple[float, str, int, float]] = []
    for name, theta in cast_weights(state.params).items():
        flat = theta.reshape(-1)
        rounded = flat.to(torch.bfloat16)
        step = torch.where(flat.double() >= rounded.double(), torch.inf, -torch.inf)
        neighbour = torch.nextafter(rounded, step.to(torch.bfloat16)).double()
        border = (rounded.double() + neighbour) / 2
        gap = (border - flat.double()).abs()
        for i in gap.topk(min(NEAREST, len(gap)), largest=False).indices.tolist():
            # past the middle, for a tie may round either way
            beyond = torch.nextafter(border[i].float(), neighbour[i].float())
            nearest.append((float(gap[i]), name, i, float(beyond)))
    nearest.sort()
    if nearest:
        _, name, i, value = nearest[seed % min(NEAREST, len(nearest))]
        state.params[name].view(-1)[i] = value


def _read_transplant(text: str) -> Keys:
    checkpoint, _, pattern = text.partition(":")
    return {"checkpoint": checkpoint, "tensors": [pattern or "*"]}


@dataclass(frozen=True)
class Transplant(Intervention):
    """Take tensors from another checkpoint, RUN@STEP, in which they have the same shapes; with
    `moments`, their moments too.
    """

    kind = "transplant"
    flags = (
        Flag(
            "RUN@STEP[:PATTERN]",
            "Tensors from a checkpoint.",
            "'demo@200:embed.*'",
            _read_transplant,
        ),
    )
    checkpoint: str
    tensors: tuple[str, ...] = ALL
    moments: bool = field(
        default=False,
        metadata=about(option=Option("--with-moments", "With --transplant: their moments too.")),
    )

    def state(self, state: TrainState, run: Run) -> None:
        """Copy the tensors over."""
        from forensics.train import checkpoint

        donor_run, step = self._donor(run)
        donor, _ = checkpoint.load(
            donor_run.folder / "checkpoints" / checkpoint.name_of(step), run.header.device
        )
        for name in matching_tensors(run, self.kind, self.tensors):
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
        from forensics.train.run import open_run

        name, at, step = self.checkpoint.rpartition("@")
        require(
            bool(at and name) and step.isdecimal(),
            self.kind,
            "RUN@STEP",
            repr(self.checkpoint),
            f"e.g. {run.name}@{run.header.first_step}",
        )
        donor_run = open_run(run.runs, name)
        if int(step) not in donor_run.saved_steps():
            saved = ", ".join(str(s) for s in donor_run.saved_steps()) or "none"
            raise ForensicsError(
                "missing",
                f"transplant: wanted a checkpoint of {name} at {step}, found none",
                f"saved: {saved}",
            )
        return donor_run, int(step)

    def donors(self, run: Run) -> dict[str, str]:
        """Name the checkpoint, and the digest of its state. Errors: usage, missing."""
        from forensics.train import checkpoint

        donor_run, step = self._donor(run)
        folder = donor_run.folder / "checkpoints" / checkpoint.name_of(step)
        document = json.loads((folder / "state.json").read_bytes())
        return {self.checkpoint: str(document["digest"])}

    def check(self, run: Run, first: int, last: int) -> None:
        """Refuse a checkpoint that there is not, and tensors of other shapes. Errors: usage,
        missing.
        """
        donor_run, _ = self._donor(run)
        shapes, donor_shapes = tensor_shapes(run), tensor_shapes(donor_run)
        for name in matching_tensors(run, self.kind, self.tensors):
            if shapes[name] != donor_shapes.get(name):
                shape = "none" if name not in donor_shapes else list(donor_shapes[name])
                raise ForensicsError(
                    "usage",
                    f"transplant: wanted {name} of shape {list(shapes[name])}, found {shape} in"
                    f" {donor_run.name}",
                    "name tensors that are alike, by pattern",
                )

    def sentence(self) -> str:
        """Say which tensors come from where."""
        return (
            f"takes {_listed(self.tensors)}{' with moments' if self.moments else ''} from"
            f" {self.checkpoint}"
        )


def _listed(tensors: tuple[str, ...]) -> str:
    return "every tensor" if tensors == ALL else ", ".join(tensors)
