import dataclasses
import time
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forensics.config import Data, Phase
from forensics.data.order import SLOTS, make_order, quotas
from forensics.errors import ForensicsError

FAST = settings(max_examples=60, deadline=None)
sizes = st.lists(st.integers(1, 400), min_size=1, max_size=4)
seeds = st.integers(0, 2**63)


def order_over(counts, batch=8, seed=0, **data):
    names = [f"s{i}" for i in range(len(counts))]
    firsts = [sum(counts[:i]) for i in range(len(counts))]
    return make_order(Data(**{"held_out": 0, **data}), names, counts, firsts, batch, seed)


def phases(*mixes):
    """(until, share of s0, share of s1, …) → phases"""
    return tuple(
        Phase({f"s{i}": x for i, x in enumerate(mix) if x}, until) for until, *mix in mixes
    )


@FAST
@given(st.integers(1, 3000), seeds, st.integers(0, 10**9))
def test_every_epoch_visits_each_sequence_exactly_once(size, seed, epoch):
    order = order_over([size], seed=seed)
    assert sorted(order.draws(0, epoch * size, size)) == list(range(size))


@FAST
@given(sizes, seeds, st.integers(0, 40))
def test_an_epoch_visits_all_but_the_held_out_sequences(counts, seed, held_out):
    order = order_over(counts, seed=seed, held_out=held_out)
    ids = np.concatenate(
        [
            order.draws(s, 0, n - int((order.source_of(order.held_out) == s).sum()))
            for s, n in enumerate(counts)
        ]
    )
    assert sorted([*ids, *order.held_out]) == list(range(sum(counts)))


@FAST
@given(sizes, seeds, st.integers(0, 400))
def test_at_most_a_tenth_of_a_source_is_held_out_and_it_is_spread_evenly(counts, seed, wanted):
    order = order_over(counts, seed=seed, held_out=wanted)
    for s, n in enumerate(counts):
        held = order.held_out[order.source_of(order.held_out) == s]
        assert len(held) <= n // 10
        distances = np.diff(held)
        assert not len(distances) or distances.max() - distances.min() <= 1
    assert len(order.held_out) <= wanted


def test_held_out_sequences_come_from_the_first_phase_alone_in_proportion():
    order = order_over(
        [1000, 1000, 1000], held_out=40, phases=phases((10, 3, 1, 0), (None, 0, 0, 1))
    )
    assert np.bincount(order.source_of(order.held_out), minlength=3).tolist() == [30, 10, 0]
    assert (
        np.isin(order.held_out, np.concatenate([order.sequence_ids(s) for s in range(2000)])).sum()
        == 0
    )


@FAST
@given(sizes, seeds, st.integers(1, 64), st.lists(st.integers(0, 300), min_size=1, max_size=10))
def test_a_batch_depends_on_nothing_but_its_step(counts, seed, batch, steps):
    order, again = (order_over(counts, batch, seed, held_out=5) for _ in range(2))
    alone = {step: order.sequence_ids(step) for step in sorted(steps)}
    for step in steps:
        assert (again.sequence_ids(step) == alone[step]).all()


@FAST
@given(sizes, seeds, st.integers(1, 6), st.sampled_from([1, 2, 4, 8]))
def test_any_split_of_the_same_draws_into_batches_gives_the_same_ids(counts, seed, size, ranks):
    whole, split = order_over(counts, size * ranks, seed), order_over(counts, size, seed)
    wanted = np.concatenate([whole.sequence_ids(step) for step in range(12)])
    assert (
        wanted == np.concatenate([split.sequence_ids(step) for step in range(12 * ranks)])
    ).all()


@FAST
@given(
    st.lists(st.integers(1, 400), min_size=2, max_size=2),
    seeds,
    st.integers(1, 200),
    st.integers(1, 40),
    st.integers(1, 40),
    st.floats(0.01, 0.99),
)
def test_drawn_and_draws_tell_what_the_batches_read(counts, seed, batch, first, second, share):
    order = order_over(
        counts,
        batch,
        seed,
        held_out=7,
        phases=phases((first, 1, 0), (first + second, share, 1 - share), (None, 0.5, 0.5)),
    )
    end = first + second + 5
    read = np.concatenate([order.sequence_ids(step) for step in range(end)])
    for s in range(2):
        of_source = read[order.source_of(read) == s]
        assert order.drawn(s, end) == len(of_source)
        assert (order.draws(s, 0, len(of_source)) == of_source).all()
        before = np.concatenate([read[:0], *(order.sequence_ids(step) for step in range(first))])
        assert order.drawn(s, first) == (order.source_of(before) == s).sum()


def test_a_source_that_comes_back_goes_on_where_it_was():
    order = order_over([500, 500], 16, phases=phases((10, 1, 0), (20, 0, 1), (None, 1, 0)))
    back = np.concatenate([order.sequence_ids(step) for step in (*range(10), *range(20, 30))])
    assert (back == order.draws(0, 0, 320)).all() and len(set(back.tolist())) == 320


@FAST
@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=20).filter(any), seeds, st.integers(0, 3)
)
def test_any_aligned_1024_draws_of_a_phase_give_each_source_its_exact_quota(shares, seed, block):
    order = order_over([50] * len(shares), 32, seed, phases=phases((None, *shares)))
    ids = np.concatenate([order.sequence_ids(step) for step in range(block * 32, block * 32 + 32)])
    found = np.bincount(order.source_of(ids), minlength=len(shares)).tolist()
    assert found == quotas([Fraction(x) for x in shares])
    for share, slots in zip(shares, found):
        exact = share * SLOTS / sum(shares)
        assert (slots >= 1) == (share > 0)
        assert abs(slots - exact) < 1 + len(shares) or slots == 1


def test_quotas_are_by_largest_remainder_and_no_source_with_a_share_is_left_without():
    assert quotas([Fraction(1), Fraction(2)]) == [341, 683]
    assert quotas([Fraction(10**12), Fraction(1), Fraction(0)]) == [1023, 1, 0]
    assert sum(quotas([Fraction(10**6)] + [Fraction(1)] * 1000)) == SLOTS
    assert quotas([Fraction(10**6)] + [Fraction(1)] * 1000)[0] == 24


@pytest.mark.parametrize("share", [0.5, 0.25, 0.1])
@pytest.mark.parametrize("seed", range(5))
def test_even_four_short_steps_come_near_their_share(share, seed):
    order = order_over(
        [5000, 5000], 16, seed, phases=phases((200, 1, 0), (204, 1 - share, share), (None, 1, 0))
    )
    window = np.concatenate([order.sequence_ids(step) for step in range(200, 204)])
    assert abs((order.source_of(window) == 1).sum() - 64 * share) <= 2


def test_the_pattern_is_mixed_and_changes_with_the_seed():
    first, second = (order_over([5000, 5000], 64, s, phases=phases((None, 1, 1))) for s in (0, 1))
    a, b = (
        order.source_of(np.concatenate([order.sequence_ids(i) for i in range(16)]))
        for order in (first, second)
    )
    assert (a != b).any()
    assert 300 < (a[1:] != a[:-1]).sum() < 900  # neither sorted nor strictly alternating


def test_without_phases_sources_are_read_in_proportion_to_their_size():
    order = order_over([3000, 1000], 64)
    ids = np.concatenate([order.sequence_ids(step) for step in range(16)])
    assert np.bincount(order.source_of(ids)).tolist() == [768, 256]


@pytest.mark.parametrize("size", [2, 3, 4, 16])
def test_each_place_of_an_epoch_holds_each_sequence_equally_often(size):
    epochs = 6000
    order = order_over([size], seed=11)
    ids_EN = order.draws(0, 0, epochs * size).reshape(epochs, size)
    counts = np.stack([np.bincount(ids_EN[:, place], minlength=size) for place in range(size)])
    expected, spread = epochs / size, np.sqrt(epochs / size * (1 - 1 / size))
    assert np.abs(counts - expected).max() < 4.5 * spread


def test_draws_of_a_large_source_are_uniform_and_neighbours_are_unrelated():
    ids = order_over([10**12], seed=5).draws(0, 0, 200_000)
    counts = np.bincount(ids * 100 // 10**12, minlength=100)
    assert ((counts - 2000) ** 2 / 2000).sum() < 160  # χ² of 99 degrees of freedom; 1 in 10,000
    unit = ids / 10**12
    assert abs(np.corrcoef(unit[1:], unit[:-1])[0, 1]) < 0.01
    assert abs((np.diff(ids) > 0).mean() - 0.5) < 0.005
    assert len(set(ids.tolist())) == len(ids)


def test_one_two_and_three_sequences_repeat_by_epochs():
    for size in (1, 2, 3):
        ids = order_over([size], 30, seed=2).sequence_ids(7)
        assert (np.bincount(ids, minlength=size) == 30 // size).all()
    orders = {
        tuple(order_over([3], 3, seed=1).sequence_ids(epoch).tolist()) for epoch in range(200)
    }
    assert len(orders) == 6


def test_seeds_and_epochs_give_other_permutations():
    a, b = order_over([1000], seed=0), order_over([1000], seed=1)
    assert (a.draws(0, 0, 1000) == b.draws(0, 0, 1000)).sum() < 20
    assert (a.draws(0, 0, 1000) == a.draws(0, 1000, 1000)).sum() < 20


def test_a_trillion_sequences_after_a_billion_steps_cost_what_a_million_do():
    order = order_over([10**12, 10**6], 512, held_out=64)
    step = 10**9
    ids = order.sequence_ids(step)
    assert ids.dtype == np.int64 and ids.min() >= 0 and ids.max() < 10**12 + 10**6
    assert order.drawn(0, step) + order.drawn(1, step) == 512 * step
    of_source = ids[order.source_of(ids) == 0]
    assert (order.draws(0, order.drawn(0, step), len(of_source)) == of_source).all()

    tracemalloc.start()
    for i in range(20):
        order.sequence_ids(step + i)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    seconds = []
    for i in range(50):
        start = time.perf_counter()
        order.sequence_ids(step + i)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1e-3


def test_the_fingerprint_tells_orders_apart_and_knows_an_equal_one():
    same = order_over([100, 50], 8, 3, held_out=4)
    assert same.fingerprint == order_over([100, 50], 8, 3, held_out=4).fingerprint
    others = [
        order_over([100, 50], 8, 4, held_out=4),
        order_over([100, 50], 9, 3, held_out=4),
        order_over([100, 51], 8, 3, held_out=4),
        order_over([100, 50], 8, 3, held_out=5),
        order_over([100, 50], 8, 3, held_out=4, phases=phases((None, 1, 1))),
    ]
    assert len({same.fingerprint, *(order.fingerprint for order in others)}) == 6
    with pytest.raises(dataclasses.FrozenInstanceError):
        same.seed = 1


class TestAnOrderFile:
    def write(self, folder, ids):
        np.save(folder / "order.npy", ids)
        return str(folder / "order.npy")

    @pytest.mark.parametrize("dtype", [np.uint32, np.int64, np.uint64])
    def test_replays_the_ids_as_they_are(self, tmp_path, dtype):
        ids = np.random.default_rng(0).permutation(100).astype(dtype)
        order = order_over([60, 40], 8, order_file=self.write(tmp_path, ids))
        assert (np.concatenate([order.sequence_ids(step) for step in range(12)]) == ids[:96]).all()
        assert order.sequence_ids(0).dtype == np.int64

    def test_counts_the_draws_of_a_source_as_the_keyed_order_does(self, tmp_path):
        ids = np.random.default_rng(1).permutation(100)
        order = order_over([60, 40], 8, order_file=self.write(tmp_path, ids))
        of_source = ids[ids >= 60]
        n = order.drawn(1, 5)
        assert n == (ids[:40] >= 60).sum()
        assert (order.draws(1, n, 3) == of_source[n : n + 3]).all()
        with pytest.raises(ForensicsError, match="wanted draw 40 of source 1, found 40"):
            order.draws(1, 38, 3)

    def test_ends_with_an_error_that_says_how_many_batches_there_were(self, tmp_path):
        order = order_over([100], 8, order_file=self.write(tmp_path, np.arange(20)))
        with pytest.raises(ForensicsError, match="wanted batch 2, found 2 whole batches") as e:
            order.sequence_ids(2)
        assert e.value.kind == "missing"

    def test_holds_out_only_what_it_never_reads(self, tmp_path):
        ids = np.arange(0, 1000, 2)
        order = order_over([1000], 8, order_file=self.write(tmp_path, ids), held_out=5)
        assert len(order.held_out) == 5 and (order.held_out % 2 == 1).all()
        assert (
            len(
                order_over(
                    [500], 8, order_file=self.write(tmp_path, np.arange(500)), held_out=5
                ).held_out
            )
            == 0
        )

    def test_changes_the_fingerprint_with_its_content(self, tmp_path):
        first = order_over([100], 8, order_file=self.write(tmp_path, np.arange(20))).fingerprint
        assert (
            order_over([100], 8, order_file=self.write(tmp_path, np.arange(20))).fingerprint
            == first
        )
        assert (
            order_over([100], 8, order_file=self.write(tmp_path, np.arange(20)[::-1])).fingerprint
            != first
        )

    @pytest.mark.parametrize(
        ("ids", "message"),
        [
            (np.arange(101), "wanted ids from 0 to 99, found 100"),
            (np.array([3, -1]), "wanted ids from 0 to 99, found -1"),
            (np.zeros((2, 2), int), "wanted a flat array of whole numbers"),
            (np.zeros(3), "wanted a flat array of whole numbers, found float64"),
        ],
    )
    def test_is_refused_when_it_does_not_fit(self, tmp_path, ids, message):
        with pytest.raises(ForensicsError, match=message) as e:
            order_over([100], 8, order_file=self.write(tmp_path, ids))
        assert e.value.kind == "data"

    def test_that_is_missing_or_no_npy_is_refused_in_one_line(self, tmp_path):
        with pytest.raises(ForensicsError, match="found no such file"):
            order_over([100], 8, order_file=str(tmp_path / "none.npy"))
        (tmp_path / "text.npy").write_text("no ids")
        with pytest.raises(ForensicsError, match=r"is not a \.npy of ids"):
            order_over([100], 8, order_file=str(tmp_path / "text.npy"))


def test_what_is_usual_in_a_short_phase_is_what_the_longest_has_there() -> None:
    phases = (
        Phase(until=100, mix={"a": 0.5, "b": 0.5}),
        Phase(until=103, mix={"junk": 1.0}),
        Phase(until=None, mix={"a": 0.5, "b": 0.5}),
    )
    data = Data(sources={"a": "x", "b": "x", "junk": "x"}, phases=phases)
    order = make_order(data, ["a", "b", "junk"], [500, 500, 500], [0, 500, 1000], 8, 0)
    own = order.source_of(order.sequence_ids(50)).tolist()
    assert [order.usual_source(50, slot, 160) for slot in range(8)] == own  # a phase of its own
    assert order.source_of(order.sequence_ids(101)).tolist() == [2] * 8
    assert {order.usual_source(101, slot, 160) for slot in range(8)} <= {0, 1}
    assert order.usual_phase(101, 160) == 0 and order.usual_phase(150, 160) == 0
    assert order.usual_phase(150, 200) == 103  # long enough to be a setting of its own
    assert order.shares(101).tolist() == [0, 0, 1]
