"""The exact test: which rows of the input embedding has no gradient ever moved? Two answers, which
must be one.

    exact_test(run, 300).sentence

The ledger answers from the data order (`exposure_grad` is 0). The state answers from its own bits:
a row that only weight decay has touched equals the run's own optimizer folded over it with zero
gradient from the start, and its moments are exactly 0. The two use nothing in common, so a
difference is a defect of the data, the loader, or the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forensics.progress import ProgressCallback, silent
from forensics.step.state import TrainState
from forensics.tokens.applied_steps import Moves, moves
from forensics.tokens.exposure import ledger
from forensics.train.optimizer import decayed_names, update
from forensics.train.run import Run

EMBED = "embed.weight"
UNIT = 64  # rows; no vector of a kernel holds more elements


@dataclass(frozen=True, eq=False)
class ExactTest:
    """What the ledger says and what the bits say, of the rows of the input embedding at state
    `step`.
    """

    step: int
    applies: bool  # False where the embedding is tied: then softmax moves every row, seen or not
    never: np.ndarray  # ids (n,) whose exposure_grad is 0
    found: np.ndarray  # ids (m,) that are bit for bit what zero gradient makes of them
    precision: float | None  # share of `found` that is in `never`; None where nothing was found
    recall: float | None  # share of `never` that was found; None where every token was seen
    only_ledger: np.ndarray  # ids that the order never shows and whose rows moved all the same
    only_bits: np.ndarray  # ids that the order shows and whose rows did not move
    sentence: str

    @property
    def holds(self) -> bool:
        """Whether the two sets are the same."""
        return self.applies and not len(self.only_ledger) and not len(self.only_bits)


def exact_test(run: Run, step: int, progress: ProgressCallback = silent) -> ExactTest:
    """Hold the ledger against the bits of state `step`; a fork is opened with its lineage. Errors:
    missing, integrity.
    """
    never = ledger(run, step, progress).never
    none = np.empty(0, np.int64)
    if run.shape.tied:
        return ExactTest(
            step,
            False,
            never,
            none,
            None,
            None,
            none,
            none,
            "The test does not apply: the embedding is tied to the output matrix, so every step"
            " changes every row.",
        )
    untouched_ids = untouched(run, step, progress)
    both = np.intersect1d(untouched_ids, never)
    only_ledger, only_bits = np.setdiff1d(never, untouched_ids), np.setdiff1d(untouched_ids, never)
    return ExactTest(
        step,
        True,
        never,
        untouched_ids,
        precision=len(both) / len(untouched_ids) if len(untouched_ids) else None,
        recall=len(both) / len(never) if len(never) else None,
        only_ledger=only_ledger,
        only_bits=only_bits,
        sentence=_sentence(run, step, never, untouched_ids, only_ledger, only_bits),
    )


def untouched(run: Run, step: int, progress: ProgressCallback = silent) -> np.ndarray:
    """Ids (n,), ascending, whose rows and moments in the input embedding are, at state `step`, bit
    for bit what the run's
    own optimizer makes of them with zero gradient from state 0, where the moments are 0.

    Over a fork's own window from the fork's own start, so that what an intervention did to the
    state there is no touch; below it, its ancestors'. Errors: missing, integrity.
    """
    windows = {window.run.name: window for window in moves(run, step)}
    return _untouched(run, step, windows, progress)


def _untouched(
    run: Run, step: int, windows: dict[str, Moves], progress: ProgressCallback
) -> np.ndarray:
    first = run.header.first_step
    ids = np.arange(run.shape.vocabulary)
    if run.parent is not None:
        ids = _untouched(run.parent, min(step, first), windows, progress)
    if step < first or not len(ids):
        return ids
    start = _rows(run.load(first), ids)
    end = _rows(run.load(step) if step in run.saved_steps() else run.state_at(step), ids)
    if (
        run.parent is None
    ):  # a row whose moments are not 0 cannot be one: most are known before anything is folded
        still = (
            torch.stack([(_bits(moment) == 0).all(1) for moment in end[1:]]).all(0).nonzero()[:, 0]
        )
        ids, start, end = ids[still.cpu().numpy()], _at(start, still), _at(end, still)
    folded = zero_gradient(run, start, ids, windows.get(run.name), progress)
    same = torch.stack([(_bits(a) == _bits(b)).all(1) for a, b in zip(folded, end)]).all(0)
    return ids[same.cpu().numpy()]


Rows = tuple[Tensor, Tensor, Tensor]  # of the input embedding and its two moments, (n, D) each


def _rows(state: TrainState, ids: np.ndarray) -> Rows:
    at = torch.from_numpy(ids).to(state.params[EMBED].device)
    return _at((state.params[EMBED], state.exp_avg[EMBED], state.exp_avg_sq[EMBED]), at)


def _at(rows: Rows, at: Tensor) -> Rows:
    return rows[0][at], rows[1][at], rows[2][at]


def zero_gradient(
    run: Run,
    start: Rows,
    ids: np.ndarray,
    window: Moves | None,
    progress: ProgressCallback = silent,
) -> Rows:
    """Tell what these rows become in a window in which no gradient reaches them: the run's own
    `update`, by its own policy, counters and implementation, step by step.

    The kernels go by vectors of elements and finish a tensor's last few one by one, which may round
    otherwise. So each row is computed as in the whole embedding: as many elements are left over,
    and only the last row's are among them.
    """
    last = run.shape.vocabulary - 1
    place = np.arange(len(ids))
    rows = len(ids) + (last - len(ids)) % UNIT + 1  # that of the whole, modulo UNIT
    place[ids == last] = rows - 1
    at = torch.from_numpy(place).to(start[0].device)
    param, exp_avg, exp_avg_sq = (
        moment.new_zeros(rows, moment.shape[1]).index_copy_(0, at, moment) for moment in start
    )
    state = TrainState({EMBED: param}, {EMBED: exp_avg}, {EMBED: exp_avg_sq})
    zeros = torch.zeros_like(param)
    train = run.recipe.train
    decayed = decayed_names([EMBED], train.undecayed, train.decay_embeddings)
    steps = window.counters if window is not None else ()
    for i, counters in enumerate(steps):
        state.counters = counters
        update(state, {EMBED: zeros}, run.policy(counters), decayed, train.optimizer)
        if i % 256 == 255:
            progress(i + 1, len(steps), "folding zero gradient")
    return _at((param, exp_avg, exp_avg_sq), at)


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32)


def _sentence(
    run: Run,
    step: int,
    never: np.ndarray,
    found: np.ndarray,
    only_ledger: np.ndarray,
    only_bits: np.ndarray,
) -> str:
    where = f"{run.name}@{step}"
    if not len(only_ledger) and not len(only_bits):
        return (
            f"{where}: by the data order no gradient reached {len(never):,} tokens, and exactly"
            f" their rows in the embedding are, bit for bit, what they are without a gradient."
        )
    parts = []
    if len(only_ledger):
        parts.append(
            f"{len(only_ledger):,} rows changed although the data order never shows their tokens"
            f" ({_some(only_ledger)})"
        )
    if len(only_bits):
        parts.append(
            f"{len(only_bits):,} rows did not change although the data order shows their tokens"
            f" ({_some(only_bits)})"
        )
    return (
        f"{where}: a defect of the data, the loader or the ledger. By the data order no gradient"
        f" reached {len(never):,} tokens, but " + ", and ".join(parts) + "."
    )


def _some(ids: np.ndarray) -> str:
    return ", ".join(map(str, ids[:8].tolist())) + (", …" if len(ids) > 8 else "")
