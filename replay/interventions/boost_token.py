"""Show a token more often than the run did."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from forensics.errors import ForensicsError
from forensics.step.batch import Batch, BatchStream
from replay.interventions import corpus_search
from replay.interventions.base import Draft, Null
from replay.interventions.fields import Option, about
from replay.interventions.flags import Flag, one
from replay.interventions.order import BatchesOfWindow
from replay.interventions.requirements import (
    require,
    require_places,
    require_sequences,
    require_tokens,
)
from replay.interventions.rows import Place, Slot, put, whole_rows

if TYPE_CHECKING:
    from forensics.train.run import Run

NEAR = 16  # tokens of about the same count that a placebo chooses from


def another_token(
    boost: BoostToken, run: Run, first: int, last: int, number: int
) -> BoostToken | None:
    """Return the boost of another token that the corpus holds about as often, by sequences that
    hold none of the boosted one; None: there is none.
    """
    counts = _token_counts(run)
    candidates = np.flatnonzero(
        (counts > 0)
        & (np.arange(len(counts)) != boost.token)
        & (np.arange(len(counts)) != run.corpus.eot)
    )
    gap = np.abs(np.log(counts[candidates]) - np.log(max(int(counts[boost.token]), 1)))
    near = candidates[np.argsort(gap, kind="stable")[:NEAR]]
    for token in np.random.default_rng(number).permutation(near).tolist():
        pool = np.setdiff1d(_holders(run, token), _holders(run, boost.token))
        if not len(pool):
            continue
        try:
            placebo = BoostToken(boost.first, boost.last, token, boost.times, number)
            return placebo.resolved(run).bringing(pool)
        except (
            ForensicsError
        ):  # this one stands only in held-out text, or in every sequence of the window
            continue
    return None


@lru_cache(maxsize=4)
def _token_counts(run: Run) -> np.ndarray:
    return corpus_search.token_counts(run)


@lru_cache(maxsize=2 * NEAR)
def _holders(run: Run, token: int) -> np.ndarray:
    return corpus_search.holding(run, token)


@dataclass(frozen=True)
class BoostToken(BatchesOfWindow):
    """Put `times` sequences that hold a token in the place of as many of the window that do not.

    Which sequences come, and where, follows from the seed; where fewer hold the token, they come
    several times.
    """

    kind = "boost-token"
    title = "Show a token more often"
    flags = (Flag("ID", "Sequences that hold it for others.", "17", one("token", int), type=int),)
    null = Null("a token of about the same count", another_token)
    token: int = field(metadata=about(label="Token"))
    times: int = field(
        metadata=about(
            label="Sequences that hold it",
            begin=10,
            option=Option("--times", "With --boost-token: how many sequences.", default=1),
        )
    )
    seed: int = field(default=0, metadata=about(seed=True))
    sequences: tuple[int, ...] = ()
    at: tuple[Place, ...] = field(default=(), metadata=about(step=True))

    def resolved(self, run: Run, draft: Draft | None = None) -> BoostToken:
        """Scan the corpus for the token, draw sequences and places and write them down. Errors:
        usage, missing.
        """
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
        holders = corpus_search.holding(run, self.token)
        if not len(holders):
            raise ForensicsError(
                "missing",
                f"boost-token: no sequence of {run.name} that may be trained on holds token "
                f"{self.token}",
                "insert a text that has it: --insert STEP=TEXT",
            )
        stream = run.stream if draft is None else draft.stream
        free: list[Place] = []
        for step in range(self.first, self.last):
            without = ~(stream(step).tokens[:, 1:] == self.token).any(1)
            free += [(step, int(slot)) for slot in without.nonzero()[:, 0]]
        require(
            len(free) >= self.times,
            self.kind,
            f"{self.times} sequences of {self.window} without the token",
            len(free),
            "widen the window, or boost it less",
        )
        drawn = rng.permutation(holders)
        places = sorted(free[int(i)] for i in rng.choice(len(free), self.times, replace=False))
        return replace(
            self,
            sequences=tuple(int(drawn[i % len(drawn)]) for i in range(self.times)),
            at=tuple(places),
        )

    def bringing(self, pool: np.ndarray) -> BoostToken:
        """Return the same boost by sequences of this pool, (n,) ids, drawn by the seed."""
        drawn = np.random.default_rng(self.seed).permutation(pool)
        sequences = tuple(int(drawn[i % len(drawn)]) for i in range(self.times))
        return replace(self, sequences=sequences)

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        """Put the sequences in their places."""
        boost = self.resolved(run)
        by_step: dict[int, list[tuple[int, int]]] = {}
        for (step, slot), sequence in zip(boost.at, boost.sequences):
            by_step.setdefault(step, []).append((slot, sequence))

        def altered(s: int) -> Batch:
            batch = stream(s)
            if s not in by_step:
                return batch
            slots, ids = zip(*by_step[s])
            return put(batch, slots, run.batches.make(np.array(ids)))

        return altered

    def check(self, run: Run, first: int, last: int) -> None:
        """Refuse a token, sequences or places that there are not. Errors: usage, missing."""
        super().check(run, first, last)
        boost = self.resolved(run)
        require_tokens(run, self.kind, (self.token,))
        require(
            len(boost.at) == len(boost.sequences) == self.times,
            self.kind,
            f"{self.times} sequences and places",
            f"{len(boost.sequences)} and {len(boost.at)}",
            "leave both out",
        )
        require_sequences(run, self.kind, boost.sequences)
        require_places(run, self, boost.at)

    def sentence(self) -> str:
        """Say how many sequences come with which token."""
        return (
            f"puts {self.times} sequences that hold token {self.token} in the place of others in"
            f" {self.window}"
        )

    def touches(self, run: Run, stream: BatchStream) -> list[Slot]:
        """List the rows that give way."""
        return whole_rows(stream, self.resolved(run).at)
