"""The rule for causal words; one p for two measures is exact; a group is judged by all ways to
part it, and a change has a sign.
"""

from __future__ import annotations

import numpy as np
import pytest

from replay.compare import null_test
from replay.compare.null_test import corrected_p, group_p, judge_change, judge_group, rank_p


def test_a_rank_counts_the_fork_itself() -> None:
    assert rank_p([5.0, 1.0, 2.0, 3.0]) == 0.25
    assert rank_p([1.0, 1.0, 1.0]) == 1.0


def test_two_measures_that_agree_cost_nothing_and_two_that_do_not_cost_a_rank() -> None:
    distances = [20.0, *range(19)]
    same_way = [2.0, *(0.01 * i for i in range(19))]
    assert corrected_p(distances, same_way) == 0.05
    other_first = [0.0, *(0.01 * i for i in range(18)), 9.0]  # a placebo's loss moved farthest
    assert corrected_p(distances, other_first) == 0.1
    assert corrected_p(distances, []) == 0.05  # one measure


def test_the_p_for_both_is_uniform_where_fork_and_placebos_are_alike() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(2000, 2, 20))
    draws[:, 1] = 0.7 * draws[:, 0] + 0.7 * draws[:, 1]  # measures that hang together
    p = np.array([corrected_p(np.exp(d).tolist(), change.tolist()) for d, change in draws])
    for level in (0.05, 0.1, 0.25, 0.5):  # at most: ties of small ranks make it smaller
        assert (p <= level).mean() <= level + 2 * np.sqrt(level * (1 - level) / 2000)
    assert (p <= 0.1).mean() > 0.04


def test_a_change_has_a_sign_and_says_how_many_lie_on_either_side() -> None:
    change = judge_change(-0.091, [0.037, 0.04, 0.049])
    assert change is not None
    assert (change.lower, change.higher) == (0, 3)
    assert change.p == 0.25  # the least that three placebos can show
    inside = judge_change(0.04, [0.03, 0.05, 0.06])
    assert inside is not None and (inside.lower, inside.higher, inside.p) == (1, 2, 1.0)
    assert judge_change(1.0, []) is None


def test_a_group_is_judged_by_all_ways_to_part_it() -> None:
    assert group_p([3.0, 3.2, 2.9], [0.1, -0.2, 0.05]) == 1 / 20
    assert group_p([0.1], [0.1, 0.1, 0.1]) == 1.0
    assert group_p([1.0, 2.0], [0.0]) == pytest.approx(1 / 3)
    assert judge_group([3.0, 3.2, 2.9], [0.1, -0.2, 0.05]).causal
    assert not judge_group([0.3, 0.2, 0.4], [0.1, -0.2, 0.05]).causal


def test_a_large_group_is_judged_by_splits_of_a_fixed_seed() -> None:
    own, others = [float(i) for i in range(10, 20)], [float(i) for i in range(10)]
    assert group_p(own, others) == group_p(own, others) < 0.001


def test_causal_words_follow_the_rule() -> None:
    assert not null_test.judge_effect(1.0, []).causal
    assert (
        not null_test.judge_effect(1.0, [0.1, 0.1]).causal
        and "too few" in null_test.judge_effect(1.0, [0.1, 0.1]).sentence()
    )
    assert null_test.judge_effect(1.0, [0.2, 0.1, 0.1]).causal
    assert not null_test.judge_effect(1.0, [0.21, 0.1, 0.1]).causal
    # at p = 0.05 three times the largest is needed, and rank alone only at p = 0.01
    enough, unusual = (null_test.judge_effect(1.0, [size] * 19) for size in (0.33, 0.5))
    assert enough.causal and enough.p == unusual.p == 0.05
    assert unusual.finding == "unusual" and not unusual.causal
    assert null_test.judge_effect(1.0, [0.99] * 99).causal
    assert not null_test.judge_effect(1.0, [0.99] * 98).causal
    assert not null_test.judge_effect(1.0, [0.33] * 18).causal
    assert not null_test.judge_effect(0.0, [0.0] * 3).causal
    assert all(f"N = {n}" in null_test.judge_effect(1.0, [0.5] * n).sentence() for n in (1, 3, 18))
    assert "as unusual as 19 placebos can show" in unusual.sentence()


def test_reconverging_means_staying_below_the_placebos() -> None:
    placebos = [[1.0, 1.0, 1.0, 1.0]] * 3
    assert null_test.time_to_reconverge([2, 4, 6, 8], [3, 2, 0.5, 0.5], placebos, 0) == 6
    assert null_test.time_to_reconverge([2, 4, 6, 8], [0.5, 2, 0.5, 0.5], placebos, 0) == 6
    assert null_test.time_to_reconverge([2, 4, 6, 8], [3, 2, 0.5, 1.5], placebos, 0) is None
    assert null_test.time_to_reconverge([2, 4, 6, 8], [0.1] * 4, placebos, 0) == 2
    assert null_test.time_to_reconverge([2, 4], [0.1] * 2, [], 0) is None
