"""Fused matrices are split into the rows that are ours; what lacks or differs is named."""

from pathlib import Path

import pytest
import torch

from forensics.errors import ForensicsError
from forensics.formats.foreign_run import LazyTensor
from forensics.formats.pieces import Piece, combined, joined, place


def lazy(tensor, name="w"):
    return LazyTensor(name, tuple(tensor.shape), "float32", Path("f"), lambda: tensor)


Q, K, V = torch.arange(8.0), torch.arange(8.0, 12), torch.arange(12.0, 16)  # 4 heads of 2, 2 of 2


def test_blocks_one_after_the_other_are_split():
    fused = lazy(torch.cat([Q, K, V]))
    for piece, rows in [((0, 4), Q), ((4, 6), K), ((6, 8), V)]:
        cut = Piece("w", 1, 8, *piece).cut(fused)
        assert cut.shape == tuple(rows.shape) and torch.equal(cut.read(), rows)


def test_groups_of_heads_are_split():
    # each of 2 groups: its 2 query heads, its key head, its value head (Megatron's layout)
    fused = torch.cat([Q[:4], K[:2], V[:2], Q[4:], K[2:], V[2:]])
    for piece, rows in [((0, 2), Q), ((2, 3), K), ((3, 4), V)]:
        assert torch.equal(Piece("w", 2, 4, *piece).cut(lazy(fused)).read(), rows)


def test_rotated_pairs_side_by_side_become_halves():
    # a head of 4: pairs (0, 1), (2, 3) become first ones, then second ones
    rows = torch.arange(8.0)
    turned = Piece("w", interleaved=2).cut(lazy(rows)).read()
    assert turned.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    # one head of 8: four pairs
    turned = Piece("w", interleaved=1).cut(lazy(rows)).read()
    assert turned.tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_what_lacks_or_has_another_shape_is_named_with_the_nearest():
    plan = {"a": Piece("theirs.a"), "b": Piece("theirs.b", 1, 3, 0, 1)}
    shapes = {"a": (2,), "b": (2,)}
    whole = {"theirs.a": lazy(torch.ones(2)), "theirs.b": lazy(torch.ones(6)), "more": lazy(Q)}
    placed = place(whole, plan, shapes, "a test")
    assert set(placed.tensors) == {"a", "b"} and placed.unplaced == ("more",)
    with pytest.raises(ForensicsError, match=r"theirs.a, theirs.b.*did you mean 'theirs.c'"):
        place({"theirs.c": lazy(Q)}, plan, shapes, "a test")
    for rows in (7, 3):  # no thirds; thirds of another size
        with pytest.raises(ForensicsError, match=r"wanted shape \(2,\) for b"):
            place(whole | {"theirs.b": lazy(torch.ones(rows))}, plan, shapes, "a test")


def test_shards_are_joined_summed_or_averaged():
    matrix = torch.arange(12.0).reshape(3, 4)
    halves = [lazy(matrix[:, :2]), lazy(matrix[:, 2:])]
    assert joined(halves, 1).shape == (3, 4) and torch.equal(joined(halves, 1).read(), matrix)
    assert torch.equal(combined([lazy(Q), lazy(Q)], mean=False).read(), 2 * Q)
    assert torch.equal(combined([lazy(Q), lazy(Q)], mean=True).read(), Q)
    with pytest.raises(ForensicsError, match="fit together"):
        joined([lazy(matrix), lazy(matrix[:2])], 1)
    with pytest.raises(ForensicsError, match="several shapes"):
        combined([lazy(Q), lazy(K)], mean=True)
