"""Take documents or sequences out of a window's batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from forensics.errors import ForensicsError
from forensics.step.batch import BatchStream
from replay.interventions.base import Draft, Windowed
from replay.interventions.corpus_search import documents_holding, sequences_of
from replay.interventions.fields import Choice, Option, about
from replay.interventions.flags import Flag, one
from replay.interventions.order import OTHER_DATA, BatchesOfWindow
from replay.interventions.requirements import require, require_choice, require_places
from replay.interventions.row_removal import (
    HOWS,
    Draws,
    Removal,
    next_draws,
    of_documents,
    removed,
)
from replay.interventions.rows import Slot
from replay.interventions.selection import DOCUMENTS, ROWS

if TYPE_CHECKING:
    from forensics.train.run import Run


def _how() -> Any:
    return field(
        default="replace",
        metadata=about(
            label="How",
            choices=HOWS,
            help="replace: another of the source that the run usually has there; mask: weight 0;"
            " repack: all later ones move up.",
            option=Option("--how"),
        ),
    )


def _draws() -> Any:
    return field(default=None, metadata=about(settled=True))


def _without() -> Any:
    return field(default=None, metadata=about(settled=True))


class Removing(Windowed):
    """Take rows out of a window's batches, by one of HOWS."""

    how: str
    draws: Draws | None
    without: tuple[int, ...] | None  # documents that may not come either: other removals took them

    def removal(self, run: Run, stream: BatchStream) -> Removal:
        """Find the rows that go, and what may not come in their place."""
        removal = self.rows_that_go(run, stream)
        if not self.without:
            return removal
        sharing = sequences_of(run, frozenset(self.without)).tolist()
        return Removal(removal.slots, removal.forbidden | frozenset(sharing))

    def rows_that_go(self, run: Run, stream: BatchStream) -> Removal:
        """Find the rows that go."""
        raise AssertionError("each kind names its rows")

    def touches(self, run: Run, stream: BatchStream) -> list[Slot]:
        """List the rows that go."""
        return self.removal(run, stream).slots

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        """Take the rows out."""
        removal = self.removal(run, stream)
        return removed(stream, run, removal, self.how, self.first, self.draws)

    def erases(self) -> bool:
        """Leave no trace where whole sequences go."""
        return self.how != "mask"

    def resolved(self, run: Run, draft: Draft | None = None) -> Removing:
        """Write down where the draws begin that come in the places. Errors: usage."""
        if draft is None or self.how != "replace":
            return self
        without = draft.removed_documents - frozenset(getattr(self, "documents", ()))
        settled: dict[str, Any] = {
            "without": tuple(sorted(without)) or None,
            "draws": draft.next_draws(),
        }
        for key, value in settled.items():
            written = getattr(self, key)
            require(
                written in (None, value),
                self.kind,
                f"no {key}, or those of this very fork",
                list(written or ()),
                "leave the key out: it is written down when the fork is made",
            )
        return replace(self, **settled)

    def draws_end(self, run: Run, stream: BatchStream) -> Draws:
        """Return, of each source, the number of the draw after the last that came in a place."""
        return next_draws(stream, run, self.removal(run, stream), self.draws).end

    def reach(self, end: int, run: Run) -> int:
        """Count as many batches more as rows go, where later ones move up into their places."""
        if self.how != "repack":
            return end
        return end + -(-len(self.removal(run, run.stream).places) // run.recipe.train.batch)


@dataclass(frozen=True)
class RemoveDocuments(Removing, BatchesOfWindow):
    """Take documents out of the window's batches.

    replace: each sequence that holds one gives way to the next draw, after all that the run, the
    fork and those between them read, of the source that the run usually has in its place. mask: the
    documents' tokens weigh 0 as targets; the denominator stays. repack: the sequences go, and
    everything after them moves up, sequence by sequence.
    """

    kind = "remove-documents"
    title = "Remove documents"
    flags = (
        Flag("SQL", "SQL that returns a column `document`.", "'select …'", one("sql")),
        Flag("TEXT", "Documents that hold this text.", "'import os'", one("text"), "--remove-text"),
    )
    null = OTHER_DATA
    documents: tuple[int, ...] = field(
        metadata=about(label="Documents, by id", help="Or by SQL, below.", columns=DOCUMENTS)
    )
    how: str = _how()
    sql: str = ""  # the statement that chose them, for the record
    draws: Draws | None = _draws()
    without: tuple[int, ...] | None = _without()
    # all documents that hold it are the ones that go; None: no text chose them
    text: str | None = field(
        default=None, metadata=about(chooses=Choice("documents", documents_holding))
    )

    def rows_that_go(self, run: Run, stream: BatchStream) -> Removal:
        """Find the rows that go."""
        return of_documents(run, stream, frozenset(self.documents), self.how, self.first, self.last)

    def placed(self, run: Run) -> RemoveSequences:
        """Name the rows that hold the documents by their places."""
        slots = self.removal(run, run.stream).slots
        places = tuple(dataclasses.astuple(slot) for slot in slots)
        never = tuple(sorted({*self.documents, *(self.without or ())}))
        return RemoveSequences(
            self.first, self.last, places, self.how, draws=self.draws, without=never
        )

    def check(self, run: Run, first: int, last: int) -> None:
        """Refuse no documents, and those that the corpus has not. Errors: usage, missing."""
        super().check(run, first, last)
        documents = run.corpus.documents.num_rows
        require_choice(self.kind, "how", self.how, HOWS)
        require(
            bool(self.documents),
            self.kind,
            "documents, the statement selected no document",
            "none",
            "try it with `forensics query --sql`",
        )
        for document in self.documents:
            if not 0 <= document < documents:
                raise ForensicsError(
                    "missing",
                    f"remove-documents: wanted a document of {run.name}, found id {document}",
                    f"it has documents 0 to {documents - 1}",
                )

    def sentence(self) -> str:
        """Say how many documents go, and how."""
        count = len(self.documents)
        holding = f" that hold{'s' * (count == 1)} {self.text!r}" if self.text else ""
        documents = f"{count} document{'s' if count != 1 else ''}{holding}"
        return f"removes {documents} ({self.how}) in {self.window}"


@dataclass(frozen=True)
class RemoveSequences(Removing):
    """Take sequences out as documents are: rows by (step, slot, first target, last target)."""

    kind = "remove-sequences"
    title = "Remove sequences of batches"
    flags = (Flag("SQL", "SQL: step and slot, or sequence.", "'select …'", one("sql")),)
    null = OTHER_DATA
    needs_all_batches = True
    at: tuple[tuple[int, int, int, int], ...] = field(
        metadata=about(
            step=True,
            label="Sequences step/slot",
            help="Or by SQL: step and slot, or sequence.",
            columns=ROWS,
        )
    )
    how: str = _how()
    sql: str = ""
    draws: Draws | None = _draws()
    without: tuple[int, ...] | None = _without()

    def rows_that_go(self, run: Run, stream: BatchStream) -> Removal:
        """Name the rows that go."""
        return Removal([Slot(*row) for row in self.at], frozenset())

    def check(self, run: Run, first: int, last: int) -> None:
        """Refuse no rows, and those outside the window or the batch. Errors: usage."""
        super().check(run, first, last)
        require_choice(self.kind, "how", self.how, HOWS)
        require(
            bool(self.at),
            self.kind,
            f"sequences inside {self.window}",
            "none",
            "sql chooses `step` and `slot`",
        )
        require_places(run, self, [(step, slot) for step, slot, _, _ in self.at])
        T = run.recipe.data.cut.targets
        for _, _, low, high in self.at:
            require(
                0 <= low < high <= T,
                self.kind,
                f"targets first:last inside 0:{T}",
                f"{low}:{high}",
                f"the whole row is 0, {T}",
            )

    def sentence(self) -> str:
        """Say how many sequences go, and how."""
        count = len({(step, slot) for step, slot, _, _ in self.at})
        return f"removes {count} sequence{'s' if count != 1 else ''} ({self.how}) in {self.window}"

    def batches(self) -> Collection[int]:
        """Name the steps of the rows."""
        return {step for step, _, _, _ in self.at}
