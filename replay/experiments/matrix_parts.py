"""How much of a rise is the batch's, how much the state's, how much the pair's: parts with a p.

    parts_of(Layout(states, first, window_RW, placebos_RN))

R states in rising order, the last of which is judged; W batches of the window; N placebo batches,
which no state has been trained on; B sequences of a batch. A cell of the window whose state was
trained on its batch is NaN and takes no part. docs/formulas.md, "Matrix", gives the definitions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from replay.compare.medians import median_of_present, spread_of_present
from replay.compare.null_test import ENOUGH_P
from replay.experiments.results import (
    TESTS,
    BatchEffect,
    JointEffect,
    MatrixConclusion,
    MatrixEffects,
    Part,
    PartEffect,
    StateEffect,
)

SIGMAS = 6.0  # scales of its null that a part must rise by: those of the robust spike detector
NEAR = 0.5  # of the largest part's rise, from which another one is named beside it
RELABELLINGS = 9_999  # random ones of sequences, for the data part of a loss
SEED = 0  # of the relabellings: the same table has the same p
CHUNK = 1 << 20  # numbers drawn at once


@dataclass(frozen=True)
class Layout:
    """One measure at every state. By sequence, where the batch is the mean of its sequences."""

    states: Sequence[int]
    first: int  # batch of the window's first column
    window: np.ndarray  # (R, W)
    placebos: np.ndarray  # (R, N)
    window_sequences: np.ndarray | None = None  # (R, W, B)
    placebo_sequences: np.ndarray | None = None  # (R, N, B)


class _Contrast(NamedTuple):
    """One degree of freedom of a part: a rise, and its place in the null of ordinary ones."""

    rise: float
    square: float  # of the same expectation for every contrast on pure noise
    p: float
    p_at_best: float  # the least that the null can show
    scale: float  # 1.4826·MAD of the null
    step: int | None  # of the batch; None: the judged state's


def parts_of(layout: Layout) -> MatrixEffects | None:
    """Take one measure apart; None where a cell that takes part is not finite.

    Also where no state stands beside the judged one.
    """
    states, window = np.asarray(layout.states), layout.window
    steps = layout.first + np.arange(window.shape[1])
    unconsumed = states[:, None] <= steps[None, :]
    if not (np.isfinite(layout.placebos).all() and np.isfinite(window[unconsumed]).all()):
        return None
    if len(states) < 2 or layout.placebos.shape[1] < 2:
        return None
    usual = layout.placebos.mean(1)  # (R,)
    above = np.where(unconsumed, window - usual[:, None], np.nan)
    tried = unconsumed[:-1].any(0)  # a batch of which no other state is left has no data part
    alpha = np.full(len(steps), np.nan)
    alpha[tried] = np.nanmean(above[:-1, tried], axis=0)
    sigma = usual - usual[:-1].mean()
    gamma = above - alpha
    noise = _residual(layout.placebos)
    spread = [spread_of_present(row) for row in layout.placebos.tolist()]
    return MatrixEffects(
        judged=int(states[-1]),
        mean=float(usual[:-1].mean()),
        data=tuple(BatchEffect(int(b), float(a)) for b, a in zip(steps, alpha) if np.isfinite(a)),
        state=tuple(StateEffect(int(s), float(x)) for s, x in zip(states, sigma)),
        interaction=tuple(
            JointEffect(int(s), int(b), float(gamma[i, j]))
            for i, s in enumerate(states)
            for j, b in enumerate(steps)
            if np.isfinite(gamma[i, j])
        ),
        parts=(
            _part("data", _data(layout, alpha, unconsumed), noise),
            _part("state", _state(states, usual, layout.placebos.shape[1]), noise),
            _part("interaction", _interaction(layout, gamma, unconsumed), noise),
        ),
        noise=noise,
        placebo_scale=median_of_present(spread),
    )


def _residual(placebos: np.ndarray) -> float:
    """Mean square per degree of freedom of what neither batch nor state explains of placebos."""
    R, N = placebos.shape
    residual = _centred(placebos)
    return float(np.square(residual).sum() / ((R - 1) * (N - 1)))


def _centred(table: np.ndarray) -> np.ndarray:
    by_row, by_column = table.mean(1, keepdims=True), table.mean(0, keepdims=True)
    centred: np.ndarray = table - by_row - by_column + table.mean()
    return centred


def _data(layout: Layout, alpha: np.ndarray, unconsumed: np.ndarray) -> list[_Contrast]:
    """Hold each batch, over the states beside the judged one, to the placebos over the same."""
    N, contrasts = layout.placebos.shape[1], []
    for j in np.flatnonzero(unconsumed[:-1].any(0)):
        rows = np.flatnonzero(unconsumed[:-1, j])
        means = layout.placebos[rows].mean(0)  # (N,)
        if layout.window_sequences is None or layout.placebo_sequences is None:
            p = float(1 + np.sum(means >= layout.window[rows, j].mean())) / (N + 1)
            least = 1 / (N + 1)
        else:
            batch = layout.window_sequences[rows, j].mean(0)
            p = _relabelled(batch, layout.placebo_sequences[rows].mean(0).ravel())
            least = 1 / (RELABELLINGS + 1)
        square = len(rows) * N / (N + 1) * alpha[j] ** 2
        scale = spread_of_present(means.tolist()) or 0.0
        step = layout.first + int(j)
        contrasts.append(_Contrast(float(alpha[j]), square, p, least, scale, step))
    return contrasts


def _relabelled(batch: np.ndarray, pool: np.ndarray) -> float:
    """Share of random sets of sequences, as many as the batch has, with a mean as high as its."""
    together, size = np.concatenate((batch, pool)), len(batch)
    observed = together[:size].sum()
    slack = 1e-12 * np.abs(together).sum()  # roundings of a sum in another order
    random, high = np.random.default_rng(SEED), 0
    chunk = max(1, CHUNK // len(together))
    for start in range(0, RELABELLINGS, chunk):
        draws = random.random((min(chunk, RELABELLINGS - start), len(together)))
        chosen = draws.argpartition(size - 1, axis=1)[:, :size]
        high += int((together[chosen].sum(1) >= observed - slack).sum())
    return (1 + high) / (RELABELLINGS + 1)


def _state(states: np.ndarray, usual: np.ndarray, N: int) -> list[_Contrast]:
    """Hold the rise to the judged state, over the placebo batches, to those between the others.

    A rise from one state to the next is what a falling loss leaves exchangeable; only where the
    states are as far from one another are the rises alike.
    """
    rises = np.diff(usual)  # (R − 1,)
    if len(rises) < 2 or len(set(np.diff(states).tolist())) > 1:
        return []
    rise, R = float(rises[-1]), len(usual)
    p = float(np.sum(rises >= rise)) / (R - 1)
    scale = spread_of_present(rises[:-1].tolist()) or 0.0
    return [_Contrast(rise, N / 2 * rise**2, p, 1 / (R - 1), scale, None)]


def _interaction(layout: Layout, gamma: np.ndarray, unconsumed: np.ndarray) -> list[_Contrast]:
    """Hold the judged state's cell of each batch to all cells of that batch and the placebos.

    Batch and placebos × states make one table, without its row and column means; each cell is
    divided by the median size of its row and of its column, for an odd batch wanders more from
    state to state than others. Where states and batches are ordinary, it is any of the cells.
    """
    R, N = layout.placebos.shape
    contrasts = []
    for j in np.flatnonzero(unconsumed[-1]):
        table = _centred(np.column_stack((layout.window[:, j], layout.placebos)))
        size = _usual_size(table, 1) * _usual_size(table, 0)
        cells = np.divide(table, size, out=np.zeros_like(table), where=size > 0)
        p = float(np.sum(cells >= cells[-1, 0])) / cells.size
        nulls = (table[-1, 1:].tolist(), gamma[:-1, j].tolist())
        scale = max(spread_of_present(null) or 0.0 for null in nulls)
        rise = float(gamma[-1, j])
        square = (R - 1) / R * N / (N + 1) * rise**2
        contrasts.append(_Contrast(rise, square, p, 1 / cells.size, scale, layout.first + int(j)))
    return contrasts


def _usual_size(table: np.ndarray, axis: int) -> np.ndarray:
    size: np.ndarray = np.median(np.abs(table), axis=axis, keepdims=True)
    return size


def _part(part: Part, contrasts: Sequence[_Contrast], noise: float) -> PartEffect:
    """Describe a part by its strongest contrast; p is corrected over all of them (Šidák)."""
    if not contrasts:
        return PartEffect(part, None, 0, None, None, None, None, None, None, False)
    strongest = min(contrasts, key=lambda contrast: (contrast.p, -contrast.rise))
    count, rise = len(contrasts), strongest.rise
    p, least = _of_many(strongest.p, count), _of_many(strongest.p_at_best, count)
    scales = rise / strongest.scale if strongest.scale else math.inf if rise > 0 else 0.0
    mean_square = float(np.mean([contrast.square for contrast in contrasts]))
    return PartEffect(
        part=part,
        mean_square=mean_square,
        freedom=count,
        over_noise=mean_square / noise if noise else None,
        rise=rise,
        step=strongest.step,
        p=p,
        p_at_best=least,
        scales=scales,
        present=rise > 0 and (p * TESTS <= ENOUGH_P or (p <= ENOUGH_P and scales >= SIGMAS)),
    )


def _of_many(p: float, count: int) -> float:
    """Return the chance that the least of as many independent p is at most this one."""
    return p if count == 1 else 1 - (1 - p) ** count


def conclude(effects: dict[str, MatrixEffects | None]) -> MatrixConclusion:
    """Conclude from the batch's own loss, and from the jump after it where that tells nothing."""
    for measure in ("loss", "jump"):
        split = effects.get(measure)
        present = [effect for effect in split.parts if effect.present] if split else []
        if split and present:
            largest = max(effect.rise or 0.0 for effect in present)
            leading = [effect for effect in present if (effect.rise or 0.0) >= NEAR * largest]
            leading.sort(key=lambda effect: -(effect.rise or 0.0))
            verdict = leading[0].part if len(leading) == 1 else "several"
            return MatrixConclusion(
                verdict, measure, tuple(effect.part for effect in leading), "shown"
            )
    split = effects.get("loss")
    if split is None:
        return MatrixConclusion("cannot tell", "loss", (), "not finite")
    # a part that could not have been shown, or was not judged, is not one that is not there
    few = any(effect.p_at_best is None or effect.p_at_best > ENOUGH_P for effect in split.parts)
    return MatrixConclusion(
        "cannot tell", "loss", (), "too few to show" if few else "no p is small enough"
    )
