"""Interventions: what a fork does differently. Each is a small frozen record; what it does not touch is the identity.

A list of them composes in its order: the stream of the first is what the second alters, and so on; the same for
policies. A state intervention acts once, at the fork's start. Windows are half-open and lie inside the fork's.

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

import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from forensics.config import window
from forensics.data.batches import Batch, BatchStream
from forensics.errors import ForensicsError, nearest
from forensics.train.run import Run
from forensics.train.schedule import Policy
from forensics.train.state import Counters, TrainState
from replay import slots
from replay.slots import Removal


@dataclass(frozen=True)
class Intervention:
    """The identity; a kind overrides what it alters."""

    kind: ClassVar[str] = ""

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        """The altered stream; `run` is the parent."""
        return stream

    def policy(self, policy: Policy, run: Run) -> Policy:
        return policy

    def state(self, state: TrainState, run: Run) -> None:
        """Alter the starting state in place."""

    def check(self, run: Run, first: int, last: int) -> None:
        """Refuse what makes no sense in the fork first:last of `run`. Errors: usage, missing."""

    def sentence(self) -> str:
        raise AssertionError("each kind describes itself")

    def placebo(self, run: Run, stream: BatchStream, first: int, last: int, seed: int) -> Intervention | None:
        """The same on equally many random sequences of the same steps; None where there is no such thing."""
        return None

    def touches(self, run: Run, stream: BatchStream) -> list[slots.Slot]:
        """The slots of the parent's batches that it alters, for the plan."""
        return []


@dataclass(frozen=True)
class Windowed(Intervention):
    """Acts on the steps first … last−1."""

    first: int
    last: int

    def check(self, run: Run, first: int, last: int) -> None:
        if not first <= self.first < self.last <= last:
            raise ForensicsError("usage", f"{self.kind}: wanted a window inside {first}:{last}, found {self.first}:{self.last}",
                                 "widen --from and --to, or move the window")  # fmt: skip

    def holds(self, counters: Counters) -> bool:
        return self.first <= counters.step < self.last


@dataclass(frozen=True)
class Drop(Windowed):
    """The batches of the window are not seen; all later ones move up."""

    kind: ClassVar[str] = "drop"

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        gap = self.last - self.first
        return lambda s: stream(s if s < self.first else s + gap)

    def sentence(self) -> str:
        return f"drops batches {self.first}:{self.last}, later ones move up"

    def placebo(self, run: Run, stream: BatchStream, first: int, last: int, seed: int) -> Intervention | None:
        return _other_window(self, first, last, seed)


@dataclass(frozen=True)
class _NoUpdate(Windowed):
    update: ClassVar[Literal["hold", "zero", "none"]] = "none"
    frozen: ClassVar[bool] = False
    words: ClassVar[str] = ""

    def policy(self, policy: Policy, run: Run) -> Policy:
        def altered(counters: Counters) -> Any:
            own = policy(counters)
            if not self.holds(counters):
                return own
            return replace(own, update=self.update, advance_schedule=own.advance_schedule and not self.frozen)

        return altered

    def sentence(self) -> str:
        return f"{self.words} steps {self.first}:{self.last}"

    def placebo(self, run: Run, stream: BatchStream, first: int, last: int, seed: int) -> Intervention | None:
        return _other_window(self, first, last, seed)


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
class Swap(Intervention):
    """Two batches change places."""

    kind: ClassVar[str] = "swap"
    a: int
    b: int

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        return lambda s: stream({self.a: self.b, self.b: self.a}.get(s, s))

    def check(self, run: Run, first: int, last: int) -> None:
        for step in (self.a, self.b):
            if not first <= step < last:
                raise ForensicsError(
                    "usage", f"swap: wanted steps inside {first}:{last}, found {step}", "widen --from and --to"
                )

    def sentence(self) -> str:
        return f"swaps batches {self.a} and {self.b}"


@dataclass(frozen=True)
class LearningRate(Windowed):
    """The learning rate times a factor."""

    kind: ClassVar[str] = "lr-scale"
    factor: float

    def policy(self, policy: Policy, run: Run) -> Policy:
        def altered(counters: Counters) -> Any:
            own = policy(counters)
            return replace(own, learning_rate=own.learning_rate * self.factor) if self.holds(counters) else own

        return altered

    def check(self, run: Run, first: int, last: int) -> None:
        super().check(run, first, last)
        if not self.factor >= 0:
            raise ForensicsError(
                "usage", f"lr-scale: wanted a factor of at least 0, found {self.factor}", "e.g. --lr-scale 0.5@200:210"
            )

    def sentence(self) -> str:
        return f"multiplies the learning rate by {self.factor:g} in {self.first}:{self.last}"


@dataclass(frozen=True)
class RemoveDocuments(Windowed):
    """Documents are taken out of the window's batches.

    replace: each touched sequence gives way, in its place, to its source's next draw after the parent's end.
    mask: the documents' tokens weigh 0 as targets; the denominator is kept. repack: touched sequences go, and
    everything after them moves up, sequence by sequence.
    """

    kind: ClassVar[str] = "remove-documents"
    documents: tuple[int, ...]
    how: str = "replace"  # replace | mask | repack
    sql: str = ""  # the statement that chose them, for the record

    def _removal(self, run: Run, stream: BatchStream) -> Removal:
        return slots.of_documents(run, stream, frozenset(self.documents), self.how, self.first, self.last)

    def touches(self, run: Run, stream: BatchStream) -> list[slots.Slot]:
        return self._removal(run, stream).slots

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        return slots.removed(stream, run, self._removal(run, stream), self.how, self.first)

    def check(self, run: Run, first: int, last: int) -> None:
        super().check(run, first, last)
        known = run.corpus.documents.num_rows
        if self.how not in slots.HOWS:
            raise ForensicsError(
                "usage",
                f"remove-documents: wanted how = {', '.join(slots.HOWS)}, found {self.how!r}",
                nearest(self.how, slots.HOWS),
            )
        if not self.documents:
            raise ForensicsError(
                "usage", "remove-documents: the statement selected no document", "try it with `forensics query --sql`"
            )
        for document in self.documents:
            if not 0 <= document < known:
                raise ForensicsError(
                    "missing",
                    f"remove-documents: wanted a document of {run.name}, found id {document}",
                    f"it has documents 0 to {known - 1}",
                )

    def sentence(self) -> str:
        n = len(self.documents)
        return f"removes {n} document{'s' if n != 1 else ''} ({self.how}) in {self.first}:{self.last}"

    def placebo(self, run: Run, stream: BatchStream, first: int, last: int, seed: int) -> Intervention | None:
        chosen = slots.elsewhere(self._removal(run, stream), stream, self.first, self.last, seed)
        return RemoveSequences(self.first, self.last, tuple(dataclasses.astuple(slot) for slot in chosen), self.how)


@dataclass(frozen=True)
class RemoveSequences(Windowed):
    """Sequences, by (step, slot, first target, last target), are taken out: what a placebo does."""

    kind: ClassVar[str] = "remove-sequences"
    at: tuple[tuple[int, int, int, int], ...]
    how: str = "replace"

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        chosen = [slots.Slot(*each) for each in self.at]
        return slots.removed(stream, run, Removal(chosen, frozenset()), self.how, self.first)

    def sentence(self) -> str:
        return f"removes {len(self.at)} sequences ({self.how}) in {self.first}:{self.last}"

    def touches(self, run: Run, stream: BatchStream) -> list[slots.Slot]:
        return [slots.Slot(*each) for each in self.at]


@dataclass(frozen=True)
class MaskTokens(Windowed):
    """Targets with these token ids weigh 0; the denominator is kept."""

    kind: ClassVar[str] = "mask-tokens"
    tokens: tuple[int, ...]
    sql: str = ""

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        ids = torch.tensor(self.tokens)

        def altered(s: int) -> Batch:
            batch = stream(s)
            if not self.first <= s < self.last:
                return batch
            return replace(batch, weight=batch.weight.masked_fill(torch.isin(batch.tokens[:, 1:], ids), 0.0))

        return altered

    def check(self, run: Run, first: int, last: int) -> None:
        super().check(run, first, last)
        if not self.tokens:
            raise ForensicsError(
                "usage", "mask-tokens: the statement selected no token", "it must return a column `token`"
            )
        for token in self.tokens:
            if not 0 <= token < run.shape.vocabulary:
                raise ForensicsError(
                    "usage",
                    f"mask-tokens: wanted ids below {run.shape.vocabulary}, found {token}",
                    "ids are the tokenizer's",
                )

    def sentence(self) -> str:
        return f"masks {len(self.tokens)} token ids as targets in {self.first}:{self.last}"


@dataclass(frozen=True)
class UnitInLastPlace(Intervention):
    """Every parameter moves by one unit in the last place, up or down by a seeded coin: the smallest noise there is.

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


def _other_window(own: Any, first: int, last: int, seed: int) -> Any:
    """The same on as many steps elsewhere in the fork's window; None where they do not fit beside it."""
    length = own.last - own.first
    starts = [s for s in range(first, last - length + 1) if s + length <= own.first or s >= own.last]
    if not starts:
        return None
    start = starts[int(np.random.default_rng(seed).integers(len(starts)))]
    return replace(own, first=start, last=start + length)


KINDS: dict[str, type[Intervention]] = {
    cls.kind: cls
    for cls in (Drop, Skip, SkipFrozen, ZeroUpdate, HoldParameters, Swap, LearningRate, RemoveDocuments, RemoveSequences,
                MaskTokens, UnitInLastPlace)
}  # fmt: skip


def to_dict(intervention: Intervention) -> dict[str, Any]:
    """Plain JSON, as TOML spells it too."""
    return {"kind": intervention.kind} | _plain(dataclasses.asdict(intervention))


def from_dict(raw: dict[str, Any]) -> Intervention:
    """An intervention from JSON or TOML. Errors: config, naming the key."""
    kind = raw.get("kind", "")
    if kind not in KINDS:
        raise ForensicsError("config", f"unknown intervention {kind!r}", nearest(str(kind), KINDS))
    values = {k: v for k, v in raw.items() if k != "kind"}
    if "window" in values:
        values["first"], values["last"] = window(str(values.pop("window")), kind)
    known = {f.name: f for f in dataclasses.fields(KINDS[kind])}
    hints = typing.get_type_hints(KINDS[kind])
    for name, value in values.items():
        if name not in known:
            raise ForensicsError("config", f"{kind}: unknown key {name!r}", nearest(name, known))
        if hints[name] is float and isinstance(value, int):
            value = float(value)
        if isinstance(value, list):
            value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
        wanted = typing.get_origin(hints[name]) or hints[name]
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ForensicsError(
                "config", f"{kind}.{name}: wanted {wanted.__name__}, found {value!r}", "see docs/forks.md"
            )
        values[name] = value
    for name, f in known.items():
        if name not in values and f.default is dataclasses.MISSING:
            raise ForensicsError("config", f"{kind}: {name!r} is missing", "see docs/forks.md")
    return KINDS[kind](**values)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def composed(interventions: Sequence[Intervention], run: Run) -> tuple[BatchStream, Policy]:
    """Stream and policy of a fork of `run`, interventions applied in their order."""
    stream, policy = run.stream, run.policy
    for intervention in interventions:
        stream = intervention.stream(stream, run)
        policy = intervention.policy(policy, run)
    return stream, policy
