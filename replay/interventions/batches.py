"""Data interventions on whole batches: they go, come, change places; later ones move up or back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from forensics.step.batch import MADE, Batch, BatchStream
from forensics.train.run import Run
from replay.interventions import rows as slots
from replay.interventions import text_edit
from replay.interventions.base import (
    Intervention,
    Windowed,
    other_window,
    require,
    require_sequences,
)
from replay.interventions.rows import Slot


class InWindow(Windowed):
    """Acts on the batches of its window."""

    def touches(self, run: Run, stream: BatchStream) -> list[Slot]:
        return slots.whole(stream, range(self.first, self.last))

    def batches(self) -> Collection[int]:
        return range(self.first, self.last)


@dataclass(frozen=True)
class Drop(InWindow):
    """The batches of the window are not seen; all later ones move up."""

    kind: ClassVar[str] = "drop"
    every = True

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        return lambda s: stream(self.comes_from(s, run))

    def comes_from(self, step: int, run: Run) -> int:
        return step if step < self.first else step + self.last - self.first

    def sentence(self) -> str:
        return f"drops batches {self.window}, later ones move up"

    def placebo(
        self, run: Run, stream: BatchStream, first: int, last: int, seed: int
    ) -> Intervention | None:
        return other_window(self, first, last, seed)


@dataclass(frozen=True)
class Swap(Intervention):
    """Two batches change places."""

    kind: ClassVar[str] = "swap"
    every = True
    a: int
    b: int

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        return lambda s: stream(self.comes_from(s, run))

    def comes_from(self, step: int, run: Run) -> int:
        return {self.a: self.b, self.b: self.a}.get(step, step)

    def check(self, run: Run, first: int, last: int) -> None:
        for step in (self.a, self.b):
            require(
                first <= step < last,
                "swap",
                f"steps inside {first}:{last}",
                step,
                "widen --from and --to",
            )

    def sentence(self) -> str:
        return f"swaps batches {self.a} and {self.b}"

    def touches(self, run: Run, stream: BatchStream) -> list[Slot]:
        return slots.whole(stream, sorted({self.a, self.b}))

    def batches(self) -> Collection[int]:
        return (self.a, self.b)

    def placebo(
        self, run: Run, stream: BatchStream, first: int, last: int, seed: int
    ) -> Intervention | None:
        """Two other batches, as far apart."""
        apart = abs(self.a - self.b)
        starts = [s for s in range(first, last - apart) if not {s, s + apart} & {self.a, self.b}]
        if not starts or not apart:
            return None
        start = starts[int(np.random.default_rng(seed).integers(len(starts)))]
        return Swap(start, start + apart)


@dataclass(frozen=True)
class Repeat(InWindow):
    """The window's batches are seen `times` times, one pass after the other; all later ones move
    back.
    """

    kind: ClassVar[str] = "repeat"
    every = True
    times: int = 2

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        length = self.last - self.first

        def altered(s: int) -> Batch:
            if s < self.last:
                return stream(s)
            if s < self.first + length * self.times:
                return stream(self.first + (s - self.first) % length)
            return stream(s - length * (self.times - 1))

        return altered

    def comes_from(self, step: int, run: Run) -> int | None:
        more = (self.last - self.first) * (self.times - 1)
        return step if step < self.last else step - more if step >= self.last + more else None

    def check(self, run: Run, first: int, last: int) -> None:
        super().check(run, first, last)
        require(
            self.times >= 2,
            self.kind,
            "2 times or more",
            self.times,
            f"e.g. --repeat {self.window}@2",
        )

    def sentence(self) -> str:
        return (
            f"repeats batches {self.window} until they were seen {self.times} times, later ones"
            " move back"
        )

    def placebo(
        self, run: Run, stream: BatchStream, first: int, last: int, seed: int
    ) -> Intervention | None:
        return other_window(self, first, last, seed)


@dataclass(frozen=True)
class Replace(InWindow):
    """Other batches come in the window's place: those from step `batch` on, a text, or sequences of
    the corpus.

    A text is tokenised and packed into sequences that share one token with their neighbours. Text
    and sequences fill the window row by row, and begin again where they end.
    """

    kind: ClassVar[str] = "replace"
    batch: int | None = None
    text: str = ""
    sequences: tuple[int, ...] = ()
    sql: str = ""

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        if self.batch is not None:
            gap = self.batch - self.first
            return lambda s: stream(s + gap if self.first <= s < self.last else s)
        made = _made(run, self.text, self.sequences, self.last - self.first)
        return lambda s: made(s - self.first) if self.first <= s < self.last else stream(s)

    def check(self, run: Run, first: int, last: int) -> None:
        super().check(run, first, last)
        given = [
            name
            for name in ("batch", "text", "sequences")
            if getattr(self, name) not in (None, "", ())
        ]
        require(
            len(given) == 1,
            self.kind,
            "one of batch, text and sequences",
            " and ".join(given) or "none",
            "or sql that returns `sequence`",
        )
        if self.batch is not None:
            end = run.header.steps - (self.last - self.first)
            require(
                0 <= self.batch <= end,
                self.kind,
                f"a batch of {run.name}",
                self.batch,
                f"0 to {end} may come here",
            )
        require_sequences(run, self.kind, self.sequences)

    def sentence(self) -> str:
        with_ = (
            f"those from {self.batch} on"
            if self.batch is not None
            else _words(self.text, self.sequences)
        )
        return f"replaces batches {self.window} by {with_}"

    def placebo(
        self, run: Run, stream: BatchStream, first: int, last: int, seed: int
    ) -> Intervention | None:
        n = len(self.sequences) or (self.last - self.first) * run.recipe.train.batch
        return Replace(self.first, self.last, sequences=slots.random_sequences(run, n, seed))


@dataclass(frozen=True)
class Insert(Intervention):
    """Batches of a text or of sequences come before batch `at`, as many as hold all of it; later
    ones move back.

    What is left of the last batch begins again from the text's or the sequences' start.
    """

    kind: ClassVar[str] = "insert"
    at: int
    text: str = ""
    sequences: tuple[int, ...] = ()
    sql: str = ""

    def count(self, run: Run) -> int:
        """How many batches it adds."""
        rows = len(self.sequences) or len(text_edit.packed(run, self.text))
        return -(-rows // run.recipe.train.batch)

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        n = self.count(run)
        made = _made(run, self.text, self.sequences, n)
        return lambda s: (
            stream(s) if s < self.at else made(s - self.at) if s < self.at + n else stream(s - n)
        )

    def comes_from(self, step: int, run: Run) -> int | None:
        n = self.count(run)
        return step if step < self.at else step - n if step >= self.at + n else None

    def check(self, run: Run, first: int, last: int) -> None:
        require(
            first <= self.at < last,
            self.kind,
            f"a step inside {first}:{last}",
            self.at,
            "widen --from and --to",
        )
        require(
            bool(self.text) != bool(self.sequences),
            self.kind,
            "either text or sequences",
            "both" if self.text else "none",
            "or sql that returns `sequence`",
        )
        require_sequences(run, self.kind, self.sequences)

    def sentence(self) -> str:
        return (
            f"inserts {_words(self.text, self.sequences)} before batch {self.at}, later ones move"
            " back"
        )

    def placebo(
        self, run: Run, stream: BatchStream, first: int, last: int, seed: int
    ) -> Intervention | None:
        n = len(self.sequences) or self.count(run) * run.recipe.train.batch
        return Insert(self.at, sequences=slots.random_sequences(run, n, seed))


def _made(run: Run, text: str, sequences: Sequence[int], batches: int) -> BatchStream:
    """Batches 0 … batches−1 of a text or of sequences, which begin again where they end."""
    B = run.recipe.train.batch
    if sequences:
        ids = np.resize(np.array(sequences, np.int64), batches * B)
        return lambda s: run.batches.make(ids[s * B : (s + 1) * B])
    tokens = text_edit.packed(run, text, batches * B)
    T = tokens.shape[1] - 1

    def made(s: int) -> Batch:
        return Batch(
            tokens[s * B : (s + 1) * B].clone(),
            torch.ones(B, T),
            float(B * T),
            torch.full((B,), MADE),
        )

    return made


def _words(text: str, sequences: Sequence[int]) -> str:
    if sequences:
        return f"{len(sequences)} sequence{'s' if len(sequences) != 1 else ''}"
    return f"the text {text if len(text) <= 40 else text[:39] + '…'!r}"


KINDS: list[type[Intervention]] = [Drop, Swap, Repeat, Replace, Insert]
