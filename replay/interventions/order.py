"""Change when batches and sequences come: batches go, change places or come again, sequences of a
window change places; later batches move up or back.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from forensics.data.order import permuted
from forensics.step.batch import Batch, BatchStream
from replay.interventions.base import Intervention, Null, Windowed
from replay.interventions.fields import about
from replay.interventions.flags import Flag, one, seeded, split, windowed
from replay.interventions.requirements import require, require_places
from replay.interventions.rows import Place, Slot, rearranged, rows_of_steps, whole_rows
from replay.interventions.selection import RANKED_ROWS

if TYPE_CHECKING:
    from forensics.train.run import Run


OTHER_DATA = Null("other data of the run's order in the same places")


class BatchesOfWindow(Windowed):
    """Act on the batches of a window."""

    def touches(self, run: Run, stream: BatchStream) -> list[Slot]:
        """List every row of the window."""
        return rows_of_steps(stream, range(self.first, self.last))

    def batches(self) -> Collection[int]:
        """Name the window's steps."""
        return range(self.first, self.last)


@dataclass(frozen=True)
class Drop(BatchesOfWindow):
    """Leave the window's batches out; all later ones move up."""

    kind = "drop"
    title = "Drop batches: later ones move up"
    flags = (Flag("A:B", "Leave the batches out; later ones move up.", "200:204", one("window")),)
    null = OTHER_DATA
    needs_all_batches = True

    def erases(self) -> bool:
        """Leave no trace: the batches are never asked for."""
        return True

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        """Move every batch from the window on up."""
        return lambda s: stream(self.source_step(s, run))

    def source_step(self, step: int, run: Run) -> int:
        """Skip the window."""
        return step if step < self.first else step + self.last - self.first

    def sentence(self) -> str:
        """Say which batches go."""
        return f"drops batches {self.window}, later ones move up"


@dataclass(frozen=True)
class Swap(Intervention):
    """Exchange batches `a` and `b`."""

    kind = "swap"
    title = "Swap two batches"
    flags = (Flag("S,T", "Exchange two batches.", "200,210", split(",", a=int, b=int)),)
    null = OTHER_DATA
    needs_all_batches = True
    a: int = field(metadata=about(step=True, label="Batch"))
    b: int = field(metadata=about(step=True, label="with batch"))

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        """Ask for the one batch where the other stood."""
        return lambda s: stream(self.source_step(s, run))

    def source_step(self, step: int, run: Run) -> int:
        """Name the other batch of the two."""
        return {self.a: self.b, self.b: self.a}.get(step, step)

    def check(self, run: Run, first: int, last: int) -> None:
        """Refuse batches outside the fork's window. Errors: usage."""
        for step in (self.a, self.b):
            require(
                first <= step < last,
                "swap",
                f"steps inside {first}:{last}",
                step,
                "widen --from and --to",
            )

    def sentence(self) -> str:
        """Say which two batches change places."""
        return f"swaps batches {self.a} and {self.b}"

    def touches(self, run: Run, stream: BatchStream) -> list[Slot]:
        """List every row of both batches."""
        return rows_of_steps(stream, sorted({self.a, self.b}))

    def batches(self) -> Collection[int]:
        """Name both batches."""
        return (self.a, self.b)


@dataclass(frozen=True)
class Repeat(BatchesOfWindow):
    """Show the window's batches `times` times, one pass after the other; later ones move back."""

    kind = "repeat"
    title = "Repeat batches"
    flags = (
        Flag(
            "A:B@N",
            "Batches N times; later ones move back.",
            "200:204@2",
            split("@", window=str, times=int),
        ),
    )
    null = OTHER_DATA
    needs_all_batches = True
    times: int = field(default=2, metadata=about(label="Times"))

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        """Go through the window's batches again before those after it come."""
        length = self.last - self.first

        def altered(s: int) -> Batch:
            if s < self.last:
                return stream(s)
            if s < self.first + length * self.times:
                return stream(self.first + (s - self.first) % length)
            return stream(s - length * (self.times - 1))

        return altered

    def source_step(self, step: int, run: Run) -> int | None:
        """Name the batch that stands there; None: a further pass."""
        more = (self.last - self.first) * (self.times - 1)
        return step if step < self.last else step - more if step >= self.last + more else None

    def check(self, run: Run, first: int, last: int) -> None:
        """Refuse fewer than two passes. Errors: usage."""
        super().check(run, first, last)
        require(
            self.times >= 2,
            self.kind,
            "2 times or more",
            self.times,
            f"e.g. --repeat {self.window}@2",
        )

    def sentence(self) -> str:
        """Say which batches come how often."""
        return (
            f"repeats batches {self.window} until they were seen {self.times} times, later ones"
            " move back"
        )


def _random_order(reorder: Reorder, run: Run, first: int, last: int, number: int) -> Reorder:
    order = np.random.default_rng(number).permutation(len(reorder.rows))
    return replace(reorder, rows=tuple(reorder.rows[int(i)] for i in order), sql="")


@dataclass(frozen=True)
class Reorder(Windowed):
    """Put rows, (step, slot) each, into the places that they hold now, in the order in which they
    are listed; the other rows stay.
    """

    kind = "reorder"
    flags = (
        Flag(
            "SQL@A:B",
            "SQL: step, slot (or sequence) and rank.",
            "'select step, slot, loss as rank from sequences@200:204'",
            windowed(one("sql")),
        ),
    )
    null = Null("a random order of the same rows", _random_order)
    needs_all_batches = True
    rows: tuple[Place, ...] = field(metadata=about(step=True, columns=RANKED_ROWS))
    sql: str = ""  # the statement that ranked them, for the record

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        """Fill the places, in the stream's order, with the rows as they are listed."""
        return rearranged(stream, dict(zip(sorted(self.rows), self.rows)))

    def check(self, run: Run, first: int, last: int) -> None:
        """Refuse rows outside the window, or one listed twice. Errors: usage."""
        super().check(run, first, last)
        require_places(run, self, self.rows)
        require(
            len(set(self.rows)) == len(self.rows),
            self.kind,
            "each row once",
            "one twice",
            "rank each row once",
        )

    def sentence(self) -> str:
        """Say how many sequences are reordered."""
        return f"reorders {len(self.rows)} sequences of {self.window}"

    def touches(self, run: Run, stream: BatchStream) -> list[Slot]:
        """List the rows that come elsewhere."""
        return whole_rows(
            stream, (new for old, new in zip(sorted(self.rows), self.rows) if old != new)
        )

    def batches(self) -> Collection[int]:
        """Name the steps of the rows."""
        return {step for step, _ in self.rows}


def _other_seed(shuffle: Shuffle, run: Run, first: int, last: int, number: int) -> Shuffle:
    return replace(shuffle, seed=shuffle.seed + number + 1)


@dataclass(frozen=True)
class Shuffle(BatchesOfWindow):
    """Put the window's sequences into its slots by a permutation; `inverse` undoes the same
    seed's.
    """

    kind = "shuffle"
    title = "Shuffle the sequences of a window"
    flags = (
        Flag("A:B[@SEED]", "The window's sequences over its slots.", "200:204@1", seeded("window")),
    )
    null = Null("the same window by other seeds", _other_seed)
    seed: int = field(default=0, metadata=about(seed=True, label="Seed"))
    inverse: bool = False

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        """Ask for each slot's row where the permutation puts it."""
        B = len(stream(self.first).sequence)
        rows = (self.last - self.first) * B
        # the order's own keyed permutation, so that it never changes with a library's version
        seeds = np.full(rows, self.seed % 2**64, np.uint64)
        order = permuted(np.arange(rows), np.full(rows, rows), seeds)
        order = np.argsort(order) if self.inverse else order
        places = [(self.first + i // B, i % B) for i in range(rows)]
        return rearranged(stream, {places[i]: places[int(order[i])] for i in range(rows)})

    def sentence(self) -> str:
        """Say which window is shuffled by which seed."""
        return (
            f"shuffles the sequences of {self.window} (seed"
            f" {self.seed}{', undone' if self.inverse else ''})"
        )
