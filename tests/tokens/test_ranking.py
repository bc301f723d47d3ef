"""Ranks, ROC-AUC and average precision by their definitions, ties included."""

from __future__ import annotations

import numpy as np
import pytest

from forensics.tokens.ranking import ranks, scores, spearman


@pytest.fixture
def tokens() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    exposure = np.concatenate([np.zeros(20, int), rng.integers(1, 400, 180)])
    return np.round(np.log1p(exposure) + rng.normal(0, 1, 200), 1), exposure


def test_ranks_share_the_mean_over_ties() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_spearman_is_the_correlation_of_ranks_and_none_without_variation(
    tokens: tuple[np.ndarray, np.ndarray],
) -> None:
    x, y = tokens
    assert spearman(x, y) == pytest.approx(np.corrcoef(ranks(x), ranks(y))[0, 1])
    assert spearman(x, np.log1p(y)) == spearman(x, y)
    assert spearman(np.ones(5), np.arange(5)) is None


def test_auc_is_the_share_of_pairs_in_order_and_average_precision_the_mean_over_recalls(
    tokens: tuple[np.ndarray, np.ndarray],
) -> None:
    x, exposure = tokens
    for score in scores(x, exposure, resamples=50):
        positive = exposure <= score.exposure
        low, high = x[positive][:, None], x[~positive][None]
        assert score.auc == pytest.approx(((low < high) + 0.5 * (low == high)).mean())
        at = np.unique(x[positive])
        precision = [positive[x <= value].mean() for value in at]
        share = [(positive & (x == value)).sum() / positive.sum() for value in at]
        assert score.average_precision == pytest.approx(np.dot(precision, share))
        assert score.tokens == positive.sum()
        assert score.auc_interval[0] < score.auc < score.auc_interval[1]
        assert (
            score.average_precision_interval[0]
            < score.average_precision
            < score.average_precision_interval[1]
        )


def test_a_seed_gives_one_interval_and_a_threshold_that_parts_nothing_gives_none(
    tokens: tuple[np.ndarray, np.ndarray],
) -> None:
    x, exposure = tokens
    assert scores(x, exposure, seed=3) == scores(x, exposure, seed=3) != scores(x, exposure, seed=4)
    assert [s.exposure for s in scores(x, exposure)] == [0, 1, 10, 100]
    assert [s.exposure for s in scores(x, np.minimum(exposure, 5))] == [0, 1]
    assert scores(x[:0], exposure[:0]) == []
