import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forensics.data import repeats
from forensics.data.repeats import (
    LONGEST,
    TIMES,
    repeat_share,
    repeat_share_pieces,
    repeat_share_rows,
)


def naive(tokens):
    """By the definition: every n-gram at every place, compared copy by copy."""
    tokens, inside = list(tokens), [False] * len(tokens)
    for n in range(1, LONGEST + 1):
        for i in range(len(tokens) - n * TIMES + 1):
            if tokens[i : i + n] * TIMES == tokens[i : i + n * TIMES]:
                inside[i : i + n * TIMES] = [True] * (n * TIMES)
    return sum(inside) / len(tokens) if tokens else 0.0


pieces = st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.integers(1, 40))
stretches = st.lists(pieces, max_size=6).map(
    lambda ps: [t for gram, times in ps for t in gram * times]
)


@settings(max_examples=80, deadline=None)
@given(stretches)
def test_it_is_the_share_of_tokens_in_an_n_gram_repeated_32_times(tokens):
    assert repeat_share(np.array(tokens)) == pytest.approx(naive(tokens))


@pytest.mark.parametrize("n", range(1, LONGEST + 1))
def test_31_times_are_too_few_and_32_are_enough_for_every_n(n):
    gram, others = list(range(n)), list(range(100, 100 + 7))
    assert repeat_share(np.array(others + gram * 31 + others)) == 0
    assert repeat_share(np.array(others + gram * 32 + others)) == pytest.approx(
        32 * n / (32 * n + 14)
    )


def test_an_n_gram_of_14_is_not_looked_for():
    assert repeat_share(np.array(list(range(14)) * 40)) == 0


def test_nothing_repeats_across_rows_or_pieces():
    rows = np.array([[7] * 31 + [8], [7] * 32, list(range(32))])
    assert repeat_share_rows(rows).tolist() == [0, 1, 0]
    halves = np.full(62, 7)
    assert repeat_share_pieces(halves, np.array([0, 31])).tolist() == [0, 0]
    assert repeat_share(halves) == 1


def test_nothing_is_no_repeat():
    assert repeat_share(np.array([], int)) == 0
    assert repeat_share_rows(np.zeros((0, 8), int)).shape == (0,)


@settings(max_examples=30, deadline=None)
@given(st.lists(stretches.filter(bool), min_size=1, max_size=5))
def test_pieces_of_a_stream_are_judged_as_if_alone(parts):
    first = np.cumsum([0, *map(len, parts)])[:-1]
    found = repeat_share_pieces(np.concatenate([np.array(p) for p in parts]), first)
    assert found.tolist() == pytest.approx([naive(p) for p in parts])


def test_a_long_document_is_looked_at_in_blocks_with_the_same_result(monkeypatch):
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 4, 3000)
    for start, n, times in ((10, 1, 40), (400, 3, 33), (900, 7, 50), (2000, 13, 60)):
        tokens[start : start + n * times] = np.tile(rng.integers(0, 9, n), times)
    first = np.array([0, 30, 950, 951, 2500])
    whole = repeats.repeat_share_pieces(tokens, first)
    for block in (1, 7, 64, 1000):
        monkeypatch.setattr(repeats, "BLOCK", block)
        assert repeats.repeat_share_pieces(tokens, first).tolist() == whole.tolist()
    assert whole.max() > 0.5
