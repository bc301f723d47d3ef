"""Counts of each token while the batches go by: as input, as target, reached by a gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from forensics.step.batch import MADE
from forensics.tokens.applied_steps import LATER, Moves, batches_of

UNSEEN = -1  # first_step and last_step of a token that was never met


class Stretch(NamedTuple):
    """The steps `low` to `high` of a window, none across a state."""

    low: int
    high: int
    state: int  # the number of the first state that they count for
    complete: bool  # the last of them before that state


class Counts(NamedTuple):
    """Of every token id so far: (V,) int64 each."""

    inputs: np.ndarray
    targets: np.ndarray
    reached: np.ndarray  # by a gradient
    first_step: np.ndarray
    last_step: np.ndarray


def stretches(window: Moves, states: list[int], chunk: int) -> Iterator[Stretch]:
    """Cut a window's steps into stretches of about `chunk` tokens, none across a state."""
    recipe = window.run.recipe
    size = max(1, chunk // (recipe.train.batch * recipe.data.cut.length))
    edges = np.searchsorted(window.steps, states)  # how many of the steps lie before each state
    low = 0
    for state, edge in enumerate(edges.tolist()):
        while low < edge:
            high = min(low + size, edge)
            yield Stretch(low, high, state, high == edge)
            low = high


class Tally:
    """Counts while the batches go by."""

    def __init__(self, vocabulary: int, sequences: int, states: int) -> None:
        self.states = states
        self.counts = np.zeros((3, vocabulary), np.int64)  # in, out, grad
        self.first = np.full(vocabulary, LATER)
        self.last = np.full(vocabulary, UNSEEN, np.int64)
        # of each sequence the first state that has met its inputs, and its last token;
        # `states`: none has
        self.met = np.full(sequences, states, np.uint16)
        self.met_last = np.full(sequences, states, np.uint16)

    def counts_so_far(self) -> Counts:
        """Return the counts as they stand now."""
        inputs, targets, reached = self.counts.copy()
        first_step = np.where(self.first == LATER, UNSEEN, self.first)
        return Counts(inputs, targets, reached, first_step, self.last.copy())

    def add(self, window: Moves, stretch: Stretch) -> None:
        """Add the batches of a stretch of the window's steps."""
        low, high, state = stretch.low, stretch.high, stretch.state
        run, steps = window.run, window.steps[low:high]
        batch = batches_of(run, steps)
        tokens, counted = batch.tokens.numpy(), batch.weight.numpy() != 0
        per_step = len(tokens) // len(steps)
        step_n = np.repeat(steps, per_step)
        applied_n = np.repeat(window.applied[low:high], per_step)
        thawed = ["embed.weight" not in run.policy(c).frozen for c in window.counters[low:high]]
        grad_n = np.repeat(np.array(thawed), per_step)
        ids = batch.sequence.numpy()
        plain_n = counted.all(1) & applied_n & grad_n  # the common case: every token counts
        if plain_n.all():
            self._add_whole(tokens, step_n)
        else:
            self._add_whole(tokens[plain_n], step_n[plain_n])
            partly = ~plain_n
            eot = run.header.eot if run.shape.document_mask else None
            self._add_partly(
                tokens[partly],
                counted[partly],
                step_n[partly],
                applied_n[partly],
                grad_n[partly],
                eot,
            )
        _meet(self.met, ids[applied_n], state)
        _meet(self.met_last, ids[applied_n & counted[:, -1]], state)

    def _add_whole(self, tokens_nT: np.ndarray, step_n: np.ndarray) -> None:
        """Rows of tokens of which every target counts."""
        if not len(tokens_nT):
            return
        every = self._bincount(tokens_nT.reshape(-1))
        inputs = every - self._bincount(tokens_nT[:, -1])
        self.counts += np.stack([inputs, every - self._bincount(tokens_nT[:, 0]), inputs])
        self._met_at(tokens_nT.reshape(-1), np.repeat(step_n, tokens_nT.shape[1]))

    def _add_partly(
        self,
        tokens_nT: np.ndarray,
        counted_nT: np.ndarray,
        step_n: np.ndarray,
        applied_n: np.ndarray,
        grad_n: np.ndarray,
        eot: int | None,
    ) -> None:
        inputs, targets = tokens_nT[:, :-1], tokens_nT[:, 1:]
        step_nT = np.broadcast_to(step_n[:, None], inputs.shape)
        out = counted_nT & applied_n[:, None]
        reached = reachable(inputs, counted_nT, eot) & grad_n[:, None]
        self.counts += np.stack(
            [
                self._bincount(ids)
                for ids in (inputs[applied_n].reshape(-1), targets[out], inputs[reached])
            ]
        )
        self._met_at(inputs[applied_n].reshape(-1), step_nT[applied_n].reshape(-1))
        self._met_at(targets[out], step_nT[out])

    def _bincount(self, tokens: np.ndarray) -> np.ndarray:
        return np.bincount(tokens, minlength=len(self.last))

    def _met_at(self, tokens: np.ndarray, steps: np.ndarray) -> None:
        """Tokens met at these steps, ascending."""
        if not len(tokens):
            return
        last = np.full_like(self.last, UNSEEN)
        last[tokens] = steps  # of repeated indices the last assignment stays
        np.maximum(self.last, last, out=self.last)
        new = self.first[tokens] >= steps[0]  # few: most were met in an earlier stretch
        if new.any():
            first = np.full_like(self.first, LATER)
            first[tokens[new][::-1]] = steps[new][::-1]
            np.minimum(self.first, first, out=self.first)


def reachable(inputs_BT: np.ndarray, counted_BT: np.ndarray, eot: int | None) -> np.ndarray:
    """(B, T) whether a counted target lies at or after a position, and in its document where `eot`
    ends documents.

    Documents as train.advance.documents has them: an end-of-text token belongs to the document it
    ends.
    """
    if eot is None:
        return np.logical_or.accumulate(counted_BT[:, ::-1], axis=1)[:, ::-1]
    ends = (inputs_BT == eot).astype(np.int64)
    document = ends.cumsum(1) - ends
    following = np.where(
        counted_BT, document, LATER
    )  # documents count up, so the smallest that follows is the next
    return np.minimum.accumulate(following[:, ::-1], axis=1)[:, ::-1] == document


def _meet(met: np.ndarray, ids: np.ndarray, state: int) -> None:
    ids = ids[ids != MADE]
    met[ids] = np.minimum(met[ids], state)
