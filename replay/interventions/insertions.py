"""Put other batches in: in the place of a window's, or before a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from forensics.step.batch import MADE, Batch, BatchStream
from replay.interventions import placebo, text_edit
from replay.interventions.base import Intervention, Null
from replay.interventions.fields import about
from replay.interventions.flags import Flag, split
from replay.interventions.order import BatchesOfWindow
from replay.interventions.requirements import require, require_sequences
from replay.interventions.selection import SEQUENCES

if TYPE_CHECKING:
    from forensics.train.run import Run


def _replace_at_random(
    replacement: Replace, run: Run, first: int, last: int, number: int
) -> Replace | None:
    sequences = replacement.sequences
    if replacement.batch is not None:
        batches = range(replacement.batch, replacement.batch + replacement.last - replacement.first)
        sequences = tuple(int(i) for step in batches for i in run.stream(step).sequence)
    drawn = _others(run, replacement.text, sequences, first, last, number)
    return replace(replacement, batch=None, sql="", **drawn) if drawn else None


def _others(
    run: Run, text: str, sequences: Sequence[int], first: int, last: int, number: int
) -> dict[str, Any] | None:
    """Draw a text as long, or as many sequences, from data that the run had met as often."""
    if sequences:
        ids = placebo.others_like(run, sequences, first, last, number)
        return {"sequences": ids} if ids else None
    length = len(text_edit.encode(run, text))
    cut = run.recipe.data.cut
    rows = placebo.fresh_sequences(run, -(-length // cut.stride), last, number)
    if not rows:
        return None
    tokens = run.corpus.sequences(np.array(rows), cut)[:, : cut.stride]
    return {"text": run.corpus.decode(tokens.reshape(-1)[:length])}


@dataclass(frozen=True)
class Replace(BatchesOfWindow):
    """Put other batches in the window's place: those from step `batch` on, a text, or sequences of
    the corpus; one of the three.

    A text is tokenised and packed into sequences as the corpus is. Text
    and sequences fill the window row by row, and begin again where they end.
    """

    kind = "replace"
    title = "Replace batches by others"
    flags = (
        Flag(
            "A:B=S",
            "Batches A:B by those from S on.",
            "200:204=100",
            split("=", window=str, batch=int),
        ),
        Flag(
            "A:B=TEXT",
            "By a text, packed to length.",
            "'200:204=to be'",
            split("=", window=str, text=str),
            "--replace-text",
        ),
        Flag(
            "A:B=SQL",
            "By SQL that returns `sequence`.",
            "'200:204=select 7 as sequence'",
            split("=", window=str, sql=str),
            "--replace-sequences",
        ),
    )
    null = Null("other data of the run's order, as much of it and met as often", _replace_at_random)
    batch: int | None = field(
        default=None, metadata=about(label="By those from batch", instead_of_sql=True)
    )
    text: str = field(default="", metadata=about(instead_of_sql=True))
    sequences: tuple[int, ...] = field(default=(), metadata=about(columns=SEQUENCES))
    sql: str = ""

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        """Ask elsewhere for the window's batches."""
        if self.batch is not None:
            gap = self.batch - self.first
            return lambda s: stream(s + gap if self.first <= s < self.last else s)
        fresh = _batches_of(run, self.text, self.sequences, self.last - self.first)
        return lambda s: fresh(s - self.first) if self.first <= s < self.last else stream(s)

    def check(self, run: Run, first: int, last: int) -> None:
        """Refuse none or several of batch, text and sequences, and batches or sequences that the
        run has not. Errors: usage, missing.
        """
        super().check(run, first, last)
        sources = [
            name
            for name in ("batch", "text", "sequences")
            if getattr(self, name) not in (None, "", ())
        ]
        require(
            len(sources) == 1,
            self.kind,
            "one of batch, text and sequences",
            " and ".join(sources) or "none",
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
        """Say what comes in the place of which batches."""
        source = (
            f"those from {self.batch} on"
            if self.batch is not None
            else _described(self.text, self.sequences)
        )
        return f"replaces batches {self.window} by {source}"


def _insert_at_random(
    insertion: Insert, run: Run, first: int, last: int, number: int
) -> Insert | None:
    drawn = _others(run, insertion.text, insertion.sequences, first, last, number)
    return replace(insertion, sql="", **drawn) if drawn else None


@dataclass(frozen=True)
class Insert(Intervention):
    """Put batches of a text, or of sequences, before batch `at`, as many as hold all of it; later
    ones move back.

    The last of them is filled up from the start of the text or of the sequences.
    """

    kind = "insert"
    title = "Insert a text"
    flags = (
        Flag(
            "S=TEXT",
            "Batches of a text before S; later ones move back.",
            "'200=to be'",
            split("=", at=int, text=str),
        ),
        Flag(
            "S=SQL",
            "By SQL that returns `sequence`.",
            "'200=select 7 as sequence'",
            split("=", at=int, sql=str),
            "--insert-sequences",
        ),
    )
    null = Null("other data of the run's order, as much of it and met as often", _insert_at_random)
    at: int = field(metadata=about(step=True, label="Before batch"))
    text: str = field(default="", metadata=about(label="Text", wide=True, instead_of_sql=True))
    sequences: tuple[int, ...] = field(default=(), metadata=about(columns=SEQUENCES))
    sql: str = ""

    def count(self, run: Run) -> int:
        """Count the batches that it adds."""
        rows = len(self.sequences) or len(text_edit.packed(run, self.text))
        return -(-rows // run.recipe.train.batch)

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        """Move the batches from `at` on back behind the new ones."""
        count = self.count(run)
        fresh = _batches_of(run, self.text, self.sequences, count)

        def altered(s: int) -> Batch:
            if s < self.at:
                return stream(s)
            return fresh(s - self.at) if s < self.at + count else stream(s - count)

        return altered

    def source_step(self, step: int, run: Run) -> int | None:
        """Name the batch that stands there; None: a new one."""
        count = self.count(run)
        return step if step < self.at else step - count if step >= self.at + count else None

    def check(self, run: Run, first: int, last: int) -> None:
        """Refuse a place outside the fork's window, both or none of text and sequences, and
        sequences that the run has not. Errors: usage, missing.
        """
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
        """Say what comes before which batch."""
        return (
            f"inserts {_described(self.text, self.sequences)} before batch {self.at}, later ones"
            " move back"
        )


def _batches_of(run: Run, text: str, sequences: Sequence[int], batches: int) -> BatchStream:
    """Batches 0 … batches−1 of a text or of sequences, which begin again where they end."""
    import torch

    B = run.recipe.train.batch
    if sequences:
        ids = np.resize(np.array(sequences, np.int64), batches * B)
        return lambda s: run.batches.make(ids[s * B : (s + 1) * B])
    tokens = text_edit.packed(run, text, batches * B)
    T = tokens.shape[1] - 1

    def batch_of_text(s: int) -> Batch:
        return Batch(
            tokens[s * B : (s + 1) * B].clone(),
            torch.ones(B, T),
            float(B * T),
            torch.full((B,), MADE),
        )

    return batch_of_text


def _described(text: str, sequences: Sequence[int]) -> str:
    if sequences:
        return f"{len(sequences)} sequence{'s' if len(sequences) != 1 else ''}"
    return f"the text {text if len(text) <= 40 else text[:39] + '…'!r}"
