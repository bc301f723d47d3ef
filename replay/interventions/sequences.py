"""Data interventions on single sequences of a window's batches; how rows move and change is in
`slots` and `rewrite`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch

from forensics.data.order import permuted
from forensics.errors import ForensicsError, nearest
from forensics.step.batch import Batch, BatchStream
from forensics.train.run import Run
from replay.interventions import rows as slots
from replay.interventions import text_edit
from replay.interventions.base import (
    Intervention,
    Windowed,
    other_window,
    require,
    require_sequences,
    require_tokens,
)
from replay.interventions.batches import InWindow
from replay.interventions.rows import Removal, Slot

Place = tuple[int, int]  # step, slot
NEAR = 16  # tokens of about the same count that a placebo of boost-token chooses from


@dataclass(frozen=True)
class Shuffle(InWindow):
    """The window's sequences change places by a permutation of its slots; `inverse` undoes the same
    seed's.
    """

    kind: ClassVar[str] = "shuffle"
    seed: int = 0
    inverse: bool = False

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        B = len(stream(self.first).sequence)
        n = (self.last - self.first) * B
        # the order's own keyed permutation, so that it never changes with a library's version
        order = permuted(np.arange(n), np.full(n, n), np.full(n, self.seed % 2**64, np.uint64))
        order = np.argsort(order) if self.inverse else order
        place = [(self.first + i // B, i % B) for i in range(n)]
        return slots.placed(stream, {place[i]: place[int(order[i])] for i in range(n)})

    def sentence(self) -> str:
        return (
            f"shuffles the sequences of {self.window} (seed"
            f" {self.seed}{', undone' if self.inverse else ''})"
        )

    def placebo(
        self, run: Run, stream: BatchStream, first: int, last: int, seed: int
    ) -> Intervention | None:
        return other_window(self, first, last, seed)


@dataclass(frozen=True)
class Reorder(Windowed):
    """Rows, (step, slot) each in the order they are to come, fill the places they hold now; others
    stay.
    """

    kind: ClassVar[str] = "reorder"
    every = True
    rows: tuple[Place, ...]
    sql: str = ""  # the statement that ranked them, for the record

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        return slots.placed(stream, dict(zip(sorted(self.rows), self.rows)))

    def check(self, run: Run, first: int, last: int) -> None:
        super().check(run, first, last)
        _require_places(run, self, self.rows)
        require(
            len(set(self.rows)) == len(self.rows),
            self.kind,
            "each row once",
            "one twice",
            "rank each row once",
        )

    def sentence(self) -> str:
        return f"reorders {len(self.rows)} sequences of {self.window}"

    def touches(self, run: Run, stream: BatchStream) -> list[Slot]:
        return slots.rows(
            stream, (new for old, new in zip(sorted(self.rows), self.rows) if old != new)
        )

    def batches(self) -> Collection[int]:
        return {step for step, _ in self.rows}

    def placebo(
        self, run: Run, stream: BatchStream, first: int, last: int, seed: int
    ) -> Intervention | None:
        order = np.random.default_rng(seed).permutation(len(self.rows))
        return replace(self, rows=tuple(self.rows[int(i)] for i in order), sql="")


@dataclass(frozen=True)
class EditTokens(InWindow):
    """Find and replace over the text of the window's sequences; `rewrite` says how an edited one
    keeps its length.

    Weights stay with their positions. An edited row has no id any more; a row that an edit turns
    back has it again.
    """

    kind: ClassVar[str] = "edit-tokens"
    find: str
    replace: str

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        def altered(s: int) -> Batch:
            batch = stream(s)
            return (
                text_edit.edit(batch, run, self.find, self.replace)
                if self.first <= s < self.last
                else batch
            )

        return altered

    def check(self, run: Run, first: int, last: int) -> None:
        super().check(run, first, last)
        require(
            bool(self.find), self.kind, "text to find", "none", "e.g. --edit 'old=>new@200:210'"
        )
        require(
            self.find != self.replace,
            self.kind,
            "another text",
            repr(self.replace),
            "an edit changes something",
        )
        text_edit.encode(run, self.replace)

    def sentence(self) -> str:
        return f"writes {self.replace!r} for {self.find!r} in the sequences of {self.window}"

    def touches(self, run: Run, stream: BatchStream) -> list[Slot]:
        found: list[Place] = []
        altered = self.stream(stream, run)
        for step in range(self.first, self.last):
            differ = (altered(step).tokens != stream(step).tokens).any(1)
            found += [(step, int(row)) for row in differ.nonzero()[:, 0]]
        return slots.rows(stream, found)


@dataclass(frozen=True)
class RemoveDocuments(InWindow):
    """Documents are taken out of the window's batches.

    replace: each touched sequence gives way, in its place, to its source's next draw after the
    parent's end. mask: the documents' tokens weigh 0 as targets; the denominator is kept. repack:
    touched sequences go, and everything after them moves up, sequence by sequence.
    """

    kind: ClassVar[str] = "remove-documents"
    documents: tuple[int, ...]
    how: str = "replace"  # replace | mask | repack
    sql: str = ""  # the statement that chose them, for the record

    def _removal(self, run: Run, stream: BatchStream) -> Removal:
        return slots.of_documents(
            run, stream, frozenset(self.documents), self.how, self.first, self.last
        )

    def touches(self, run: Run, stream: BatchStream) -> list[Slot]:
        return self._removal(run, stream).slots

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        return slots.removed(stream, run, self._removal(run, stream), self.how, self.first)

    def check(self, run: Run, first: int, last: int) -> None:
        super().check(run, first, last)
        known = run.corpus.documents.num_rows
        _require_how(self.kind, self.how)
        require(
            bool(self.documents),
            self.kind,
            "documents, the statement selected no document",
            "none",
            "try it with `forensics query --sql`",
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
        return f"removes {n} document{'s' if n != 1 else ''} ({self.how}) in {self.window}"

    def placebo(
        self, run: Run, stream: BatchStream, first: int, last: int, seed: int
    ) -> Intervention | None:
        chosen = slots.elsewhere(self._removal(run, stream), stream, first, last, seed)
        return RemoveSequences(
            first, last, tuple(dataclasses.astuple(slot) for slot in chosen), self.how
        )


@dataclass(frozen=True)
class RemoveSequences(Windowed):
    """Sequences, by (step, slot, first target, last target), are taken out as documents are."""

    kind: ClassVar[str] = "remove-sequences"
    every = True
    at: tuple[tuple[int, int, int, int], ...]
    how: str = "replace"
    sql: str = ""

    @property
    def _slots(self) -> list[Slot]:
        return [Slot(*each) for each in self.at]

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        return slots.removed(stream, run, Removal(self._slots, frozenset()), self.how, self.first)

    def check(self, run: Run, first: int, last: int) -> None:
        super().check(run, first, last)
        _require_how(self.kind, self.how)
        require(
            bool(self.at),
            self.kind,
            f"sequences inside {self.window}",
            "none",
            "sql chooses `step` and `slot`",
        )
        _require_places(run, self, [(s.step, s.slot) for s in self._slots])

    def sentence(self) -> str:
        n = len({(s.step, s.slot) for s in self._slots})
        return f"removes {n} sequence{'s' if n != 1 else ''} ({self.how}) in {self.window}"

    def touches(self, run: Run, stream: BatchStream) -> list[Slot]:
        return self._slots

    def batches(self) -> Collection[int]:
        return {slot.step for slot in self._slots}

    def placebo(
        self, run: Run, stream: BatchStream, first: int, last: int, seed: int
    ) -> Intervention | None:
        chosen = slots.elsewhere(Removal(self._slots, frozenset()), stream, first, last, seed)
        return RemoveSequences(
            first, last, tuple(dataclasses.astuple(slot) for slot in chosen), self.how
        )


@dataclass(frozen=True)
class MaskTokens(InWindow):
    """Targets weigh 0: those with these token ids, and those at these (step, slot, position).

    The denominator is kept, or renormalised: scaled by what is left of the batch's weight, so that
    each target left weighs more. A batch of which nothing is left keeps it.
    """

    kind: ClassVar[str] = "mask-tokens"
    tokens: tuple[int, ...] = ()
    sql: str = ""
    at: tuple[tuple[int, int, int], ...] = ()
    renormalise: bool = False

    def _masked(self, s: int, batch: Batch) -> torch.Tensor:
        """(B, T) whether a target is meant."""
        found = torch.isin(batch.tokens[:, 1:], torch.tensor(self.tokens, dtype=torch.int64))
        for step, slot, position in self.at:
            if step == s:
                found[slot, position] = True
        return found

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        def altered(s: int) -> Batch:
            batch = stream(s)
            if not self.first <= s < self.last:
                return batch
            weight = batch.weight.masked_fill(self._masked(s, batch), 0.0)
            denominator = batch.denominator
            if self.renormalise and (left := float(weight.double().sum())):
                denominator *= left / float(batch.weight.double().sum())
            return replace(batch, weight=weight, denominator=denominator)

        return altered

    def check(self, run: Run, first: int, last: int) -> None:
        super().check(run, first, last)
        require(
            bool(self.tokens or self.at),
            self.kind,
            "tokens",
            "no token selected",
            "sql returns a column `token`",
        )
        require_tokens(run, self.kind, self.tokens)
        _require_places(run, self, [(step, slot) for step, slot, _ in self.at])
        T = run.recipe.data.sequence_length
        for _, _, position in self.at:
            require(
                0 <= position < T,
                self.kind,
                f"positions below {T}",
                position,
                "`position` is the target's",
            )

    def sentence(self) -> str:
        what = [f"{len(self.tokens)} token ids as targets"] * bool(self.tokens)
        what += [f"{len(self.at):,} targets"] * bool(self.at)
        return f"masks {' and '.join(what)} in {self.window}" + (
            ", denominator renormalised" * self.renormalise
        )

    def touches(self, run: Run, stream: BatchStream) -> list[Slot]:
        found = []
        for step in range(self.first, self.last):
            masked = self._masked(step, stream(step))
            found += [Slot(step, slot, p, p + 1) for slot, p in masked.nonzero().tolist()]
        return found

    def batches(self) -> Collection[int]:
        return (
            {step for step, _, _ in self.at}
            if self.at and not self.tokens
            else range(self.first, self.last)
        )

    def placebo(
        self, run: Run, stream: BatchStream, first: int, last: int, seed: int
    ) -> Intervention | None:
        """As many other targets of the same batches."""
        rng = np.random.default_rng(seed)
        chosen: list[tuple[int, int, int]] = []
        for step in range(self.first, self.last):
            masked = self._masked(step, stream(step))
            free = (~masked).nonzero().tolist()
            n = min(int(masked.sum()), len(free))
            chosen += (
                [(step, *free[int(i)]) for i in np.sort(rng.choice(len(free), n, replace=False))]
                if n
                else []
            )
        return replace(self, tokens=(), sql="", at=tuple(chosen)) if chosen else None


@dataclass(frozen=True)
class BoostToken(InWindow):
    """`times` sequences that hold a token come in the place of as many of the window that do not.

    The corpus is scanned through its memory maps; which sequences come, and where, follows from the
    seed and is written down by `resolved`. Where fewer hold the token, they come several times.
    """

    kind: ClassVar[str] = "boost-token"
    token: int
    times: int
    seed: int = 0
    sequences: tuple[int, ...] = ()
    at: tuple[Place, ...] = ()

    def resolved(self, run: Run) -> BoostToken:
        if self.sequences:
            return self
        require_tokens(run, self.kind, (self.token,))
        require(
            self.times > 0,
            self.kind,
            "1 or more times",
            self.times,
            "e.g. --boost-token 17 --times 10",
        )
        rng = np.random.default_rng(self.seed)
        holders = slots.holding(run, self.token)
        if not len(holders):
            raise ForensicsError(
                "missing",
                f"boost-token: no sequence of {run.name} that may be trained on holds token "
                f"{self.token}",
                "insert a text that has it: --insert STEP=TEXT",
            )
        free: list[Place] = []
        for step in range(self.first, self.last):
            without = ~(run.stream(step).tokens[:, 1:] == self.token).any(1)
            free += [(step, int(slot)) for slot in without.nonzero()[:, 0]]
        require(
            len(free) >= self.times,
            self.kind,
            f"{self.times} sequences of {self.window} without the token",
            len(free),
            "widen the window, or boost it less",
        )
        come = rng.permutation(holders)
        where = sorted(free[int(i)] for i in rng.choice(len(free), self.times, replace=False))
        return replace(
            self,
            sequences=tuple(int(come[i % len(come)]) for i in range(self.times)),
            at=tuple(where),
        )

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        own = self.resolved(run)
        by_step: dict[int, list[tuple[int, int]]] = {}
        for (step, slot), sequence in zip(own.at, own.sequences):
            by_step.setdefault(step, []).append((slot, sequence))

        def altered(s: int) -> Batch:
            batch = stream(s)
            if s not in by_step:
                return batch
            at, ids = zip(*by_step[s])
            return slots.put(batch, at, run.batches.make(np.array(ids)))

        return altered

    def check(self, run: Run, first: int, last: int) -> None:
        super().check(run, first, last)
        own = self.resolved(run)
        require_tokens(run, self.kind, (self.token,))
        require(
            len(own.at) == len(own.sequences) == self.times,
            self.kind,
            f"{self.times} sequences and places",
            f"{len(own.sequences)} and {len(own.at)}",
            "leave both out",
        )
        require_sequences(run, self.kind, own.sequences)
        _require_places(run, self, own.at)

    def sentence(self) -> str:
        return (
            f"puts {self.times} sequences that hold token {self.token} in the place of others in"
            f" {self.window}"
        )

    def touches(self, run: Run, stream: BatchStream) -> list[Slot]:
        return slots.rows(stream, self.resolved(run).at)

    def placebo(
        self, run: Run, stream: BatchStream, first: int, last: int, seed: int
    ) -> Intervention | None:
        """Another token of about the same count."""
        counts = _token_counts(run)
        others = np.flatnonzero(
            (counts > 0)
            & (np.arange(len(counts)) != self.token)
            & (np.arange(len(counts)) != run.corpus.eot)
        )
        gap = np.abs(np.log(counts[others]) - np.log(max(int(counts[self.token]), 1)))
        near = others[np.argsort(gap, kind="stable")[:NEAR]]
        for token in np.random.default_rng(seed).permutation(near).tolist():
            try:
                return BoostToken(self.first, self.last, token, self.times, seed).resolved(run)
            except (
                ForensicsError
            ):  # this one stands only in held-out text, or in every sequence of the window
                continue
        return None


@lru_cache(maxsize=4)
def _token_counts(run: Run) -> np.ndarray:
    return slots.token_counts(run)


def _require_how(kind: str, how: str) -> None:
    require(
        how in slots.HOWS,
        kind,
        f"how = {', '.join(slots.HOWS)}",
        repr(how),
        nearest(how, slots.HOWS),
    )


def _require_places(run: Run, own: Windowed, places: Iterable[Place]) -> None:
    """Errors: usage, for a row outside the window or the batch."""
    B = run.recipe.train.batch
    for step, slot in places:
        require(
            own.first <= step < own.last,
            own.kind,
            f"rows inside {own.window}",
            f"step {step}",
            "widen the window",
        )
        require(
            0 <= slot < B,
            own.kind,
            f"slots below {B}",
            slot,
            "`slot` is a row of the batch, from 0",
        )


KINDS: list[type[Intervention]] = [
    Shuffle,
    Reorder,
    EditTokens,
    RemoveDocuments,
    RemoveSequences,
    MaskTokens,
    BoostToken,
]
