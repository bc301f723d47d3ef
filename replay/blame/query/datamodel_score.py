"""How good are the influences? The linear datamodeling score, by replays that leave subsets out.

After Park et al. 2023, "TRAK" (arXiv 2303.14186, section 3): random subsets of the data are left
out; what the influences foretell, the sum over what is left out, is ranked against what the loss
really does. Subsets leave out a tenth, as for other metagradients (arXiv 2504.16430): half of the
data, as in TRAK, is no small change of a window, and influences are derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from forensics.tokens.ranking import spearman
from replay.blame.query.replays import TargetReplays
from replay.blame.query.result import DatamodelScore, SubsetChange
from replay.blame.query.sentences import score_sentence
from replay.interventions.rows import Slot

SUBSETS = 32  # replays, where --validate names no number
FEWEST = 8  # subsets below which a rank correlation says nothing
LEFT_OUT = 0.1  # share of the window's sequences that a subset leaves out
RESAMPLES = 2000  # of the bootstrap, and of the permutation test
LEVEL = 0.95  # of the interval


def measure_subsets(
    replays: TargetReplays,
    influence: dict[Slot, float],
    number: int,
    seed: int,
    on_subset: Callable[[SubsetChange], None],
) -> None:
    """Leave `number` random subsets of the window's sequences out; `on_subset` hears of each."""
    rng, rows = np.random.default_rng(seed), sorted(influence)
    size = max(1, round(LEFT_OUT * len(rows)))
    for i in range(number):
        subset = [rows[k] for k in rng.choice(len(rows), size, replace=False)]
        measured = replays.change(subset, f"random subset {i + 1} of {number}")
        on_subset(SubsetChange(size, -sum(influence[row] for row in subset), measured))


def datamodel_score(subsets: Sequence[SubsetChange], seed: int = 0) -> DatamodelScore:
    """Score the subsets; interval by bootstrap over them, p by permutation."""
    predicted = np.array([subset.predicted for subset in subsets])
    measured = np.array([subset.measured for subset in subsets])
    finite = len(subsets) >= FEWEST and bool(np.isfinite(predicted + measured).all())
    value = spearman(predicted, measured) if finite else None
    score = DatamodelScore(
        LEFT_OUT, tuple(subsets), value, None, None, LEVEL, None, _slope(predicted, measured), ""
    )
    if value is not None:
        rng, n = np.random.default_rng(seed), len(subsets)
        resampled = []
        for _ in range(RESAMPLES):
            pick = rng.integers(0, n, n)
            resampled.append(spearman(predicted[pick], measured[pick]) or 0.0)
        tail = 100 * (1 - LEVEL) / 2
        low, high = np.percentile(resampled, [tail, 100 - tail])
        chance = [spearman(predicted, rng.permutation(measured)) or 0.0 for _ in range(RESAMPLES)]
        p = (1 + sum(by_chance >= value for by_chance in chance)) / (RESAMPLES + 1)
        score = replace(score, low=float(low), high=float(high), p=p)
    return replace(score, sentence=score_sentence(score))


def _slope(predicted: np.ndarray, measured: np.ndarray) -> float | None:
    """Fit measured = slope · predicted; None where nothing is predicted or not all is finite."""
    square = float(predicted @ predicted)
    slope = float(predicted @ measured) / square if square > 0 else np.nan
    return slope if np.isfinite(slope) else None
