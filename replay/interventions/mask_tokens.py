"""Mask targets in the loss."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from forensics.step.batch import Batch, BatchStream
from replay.interventions.base import Null
from replay.interventions.fields import Option, about
from replay.interventions.flags import Flag, one
from replay.interventions.order import BatchesOfWindow
from replay.interventions.requirements import require, require_places, require_tokens
from replay.interventions.rows import Slot
from replay.interventions.selection import TARGETS, TOKENS

if TYPE_CHECKING:
    from torch import Tensor

    from forensics.train.run import Run


def _other_targets(
    mask: MaskTokens, run: Run, first: int, last: int, number: int
) -> MaskTokens | None:
    """Draw as many targets of each step as are masked there, among all that weigh anything, the
    masked ones too: only then is the real choice one of the same draws.
    """
    rng = np.random.default_rng(number)
    chosen: list[tuple[int, int, int]] = []
    for step in range(mask.first, mask.last):
        batch = run.stream(step)
        masked, eligible = mask.masked(step, batch), batch.weight > 0
        places = (eligible | masked).nonzero().tolist()
        count = int(masked.sum())
        if count:
            drawn = np.sort(rng.choice(len(places), count, replace=False))
            chosen += [(step, *places[int(i)]) for i in drawn]
    return replace(mask, tokens=(), sql="", at=tuple(chosen)) if chosen else None


@dataclass(frozen=True)
class MaskTokens(BatchesOfWindow):
    """Let targets weigh 0: those with these token ids, and those at these (step, slot, position).

    The denominator is kept, or renormalised: scaled by what is left of the batch's weight, so that
    each target left weighs more. A batch of which nothing is left keeps it.
    """

    kind = "mask-tokens"
    title = "Mask tokens in the loss"
    flags = (
        Flag("SQL", "SQL: token (ids), or step, slot and position.", "'select …'", one("sql")),
    )
    null = Null("as many targets of each step, at random", _other_targets)
    tokens: tuple[int, ...] = field(
        default=(), metadata=about(label="Tokens, by id", help="Or by SQL, below.", columns=TOKENS)
    )
    sql: str = ""
    at: tuple[tuple[int, int, int], ...] = field(
        default=(), metadata=about(step=True, columns=TARGETS)
    )
    renormalise: bool = field(
        default=False,
        metadata=about(
            label="Scale the loss by what weight is left",
            option=Option(
                "--renormalise", "With --mask-tokens: the denominator is what weight is left."
            ),
        ),
    )

    def masked(self, s: int, batch: Batch) -> Tensor:
        """Tell which targets of batch s weigh 0: (B, T)."""
        import torch

        mask = torch.isin(batch.tokens[:, 1:], torch.tensor(self.tokens, dtype=torch.int64))
        for step, slot, position in self.at:
            if step == s:
                mask[slot, position] = True
        return mask

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        """Mask the batches of the window as they are asked for."""

        def altered(s: int) -> Batch:
            batch = stream(s)
            if not self.first <= s < self.last:
                return batch
            weight = batch.weight.masked_fill(self.masked(s, batch), 0.0)
            denominator = batch.denominator
            if self.renormalise and (left := float(weight.double().sum())):
                denominator *= left / float(batch.weight.double().sum())
            return replace(batch, weight=weight, denominator=denominator)

        return altered

    def check(self, run: Run, first: int, last: int) -> None:
        """Refuse no targets, and those outside the vocabulary, window or batch. Errors: usage."""
        super().check(run, first, last)
        require(
            bool(self.tokens or self.at),
            self.kind,
            "tokens",
            "no token selected",
            "sql returns a column `token`",
        )
        require_tokens(run, self.kind, self.tokens)
        require_places(run, self, [(step, slot) for step, slot, _ in self.at])
        T = run.recipe.data.cut.targets
        for _, _, position in self.at:
            require(
                0 <= position < T,
                self.kind,
                f"positions below {T}",
                position,
                "`position` is the target's",
            )

    def sentence(self) -> str:
        """Say how many token ids and targets are masked."""
        masked = [f"{len(self.tokens)} token ids as targets"] * bool(self.tokens)
        masked += [f"{len(self.at):,} targets"] * bool(self.at)
        return f"masks {' and '.join(masked)} in {self.window}" + (
            ", denominator renormalised" * self.renormalise
        )

    def touches(self, run: Run, stream: BatchStream) -> list[Slot]:
        """List the masked targets, each by itself."""
        slots = []
        for step in range(self.first, self.last):
            masked = self.masked(step, stream(step))
            slots += [Slot(step, slot, p, p + 1) for slot, p in masked.nonzero().tolist()]
        return slots

    def batches(self) -> Collection[int]:
        """Name the steps of the targets; the whole window where token ids are masked."""
        return (
            {step for step, _, _ in self.at}
            if self.at and not self.tokens
            else range(self.first, self.last)
        )
