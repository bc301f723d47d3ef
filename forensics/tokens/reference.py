"""Which ids are known to be unused, so that others can be held against them; found without anyone's
help.

Where the data is known, the ids that were never met. Else rows that nothing but the model's drift
ever moved lie on top of each other: the largest cluster of near-identical rows of the unembedding.
Unused bytes, special tokens and padded rows in it are witnesses that it is what it seems; where no
rows cluster, they alone are the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forensics.errors import ForensicsError
from forensics.model.vocabulary_matrices import Weights
from forensics.tokens.categories import Categories

LEAST = 3  # rows of a cluster
NEAR = (
    0.01,
    0.03,
    0.1,
    # distances that count as near-identical, in typical distances of two rows; the first that
    # finds any
)
BITS, TABLES, NEIGHBOURS = 128, 8, 16
UNLIKE = 24  # of BITS: rows whose signs differ in more are not looked at
PAIRS = 1 << 14  # compared at a time

Close = Callable[[Tensor, Tensor], Tensor]  # ids (n,), ids (n,) → (n,) bool


@dataclass(frozen=True, eq=False)
class Reference:
    """ids (n,), in order; kind: given | exposure | cluster | witnesses; why: a sentence."""

    ids: np.ndarray
    kind: str
    why: str


def given(text: str, rows: int) -> Reference:
    """`3,7-16` as ids. Errors: usage."""
    ids: set[int] = set()
    for word in text.split(","):
        first, dash, last = word.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ForensicsError(
                "usage", f"wanted --reference IDS, found {text!r}", "ids and ranges, e.g. 5,7-16"
            )
        low, high = int(first), int(last) if dash else int(first)
        if low > high or high >= rows:
            raise ForensicsError(
                "usage",
                f"--reference: wanted ids from 0 to {rows - 1}, found {word.strip()!r}",
                "the ids are rows of the embedding",
            )
        ids.update(range(low, high + 1))
    reference_ids = np.array(sorted(ids), np.int64)
    return Reference(reference_ids, "given", f"{_rows(len(reference_ids))} given by --reference")


def never_met(ids: np.ndarray, run: str, step: int) -> Reference:
    """Ids that were neither input nor target up to a step."""
    return Reference(
        ids,
        "exposure",
        f"{len(ids):,} ids that {run} never met up to step {step:,}, counted from its data",
    )


def found(weights: Weights, categories: Categories) -> Reference | None:
    """Return the reference that the rows themselves show.

    None where neither rows cluster nor witnesses exist.
    """
    kinds = witnesses(weights, categories)
    vouching = np.concatenate(list(kinds.values()))
    unvouched: Reference | None = None
    for nearest, (words, clusters) in enumerate(_clusters(weights)):
        vouched = [c for c in clusters if np.isin(c, vouching).any()]
        if vouched:
            return _cluster(vouched[0], words, kinds)
        # rows that are only roughly alike are taken for unused where a witness says so, and nowhere
        # else
        if nearest == 0 and clusters:
            unvouched = _cluster(clusters[0], words, kinds)
    if unvouched is not None:
        return unvouched
    for kind in ("padded rows", "unused bytes"):
        if len(ids := kinds[kind]):
            return Reference(
                ids,
                "witnesses",
                f"the {len(ids)} {kind}, because no rows of the unembedding cluster",
            )
    return None


def _cluster(ids: np.ndarray, words: str, kinds: dict[str, np.ndarray]) -> Reference:
    described = [
        f"{n} {kind}"
        for kind, witnesses in kinds.items()
        if (n := int(np.isin(ids, witnesses).sum()))
    ]
    why = f"{_rows(len(ids))} of the unembedding {words}, the largest such cluster"
    return Reference(ids, "cluster", f"{why}; witnesses: {', '.join(described) or 'none'}")


def witnesses(weights: Weights, categories: Categories) -> dict[str, np.ndarray]:
    """Rows that no training text can hold, or that are likely never to have been in one; empty rows
    left out.
    """
    has_row = categories.ids < weights.rows
    unused = np.array([kind == "unused_utf8" for kind in categories.byte], bool)
    kinds = {
        "padded rows": np.setdiff1d(np.arange(weights.rows), categories.ids),
        "unused bytes": categories.ids[unused & has_row],
        "special tokens": categories.ids[categories.special & has_row],
    }
    filled = (weights.unembedding != 0).any(1).numpy()
    return {kind: ids[filled[ids]] for kind, ids in kinds.items()}


def _rows(n: int) -> str:
    return f"{n:,} row{'s' if n != 1 else ''}"


def _clusters(weights: Weights) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Clusters of near-identical rows, largest first, by one tolerance after the other."""
    U = weights.unembedding
    a, b, order = _candidate_pairs(U)
    if weights.grain is not None:
        grain = weights.grain
        yield (
            "equal within one quantisation step",
            _joined(a, b, order, U, lambda x, y: within_a_step(U[x], U[y], grain[x], grain[y])),
        )
    picked = torch.from_numpy(np.random.default_rng(0).choice(order, (2, 2000)))
    typical = torch.linalg.vector_norm(U[picked[0]] - U[picked[1]], dim=1).median()
    for near in NEAR:
        words = f"less than {100 * near:.0f}% of the usual distance apart"
        yield words, _joined(a, b, order, U, _within(U, near * float(typical)))


def _within(U: Tensor, distance: float) -> Close:
    return lambda x, y: torch.linalg.vector_norm(U[x] - U[y], dim=1) <= distance


def within_a_step(x: Tensor, y: Tensor, grain_x: Tensor, grain_y: Tensor) -> Tensor:
    """Which rows (n,) differ in no number by more than the coarser of the two quantisation steps
    there.
    """
    blocks = grain_x.shape[1]
    apart = (x - y).abs().view(len(x), blocks, -1).amax(2)
    return (apart <= 1.01 * torch.maximum(grain_x, grain_y)).all(
        1
    )  # 1 %: the step itself is rounded


def _candidate_pairs(U: Tensor) -> tuple[Tensor, Tensor, np.ndarray]:
    """Pairs of rows (n,), (n,) that may be near each other, and the ids of the rows that are not
    empty.

    The signs of BITS random projections of the centred rows agree for neighbours (Charikar 2002);
    in each of TABLES orders by some of them, each row is paired with the NEIGHBOURS that come next.
    """
    order = np.flatnonzero((U != 0).any(1).numpy())
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(U.shape[1], BITS, generator=generator)
    offset = U.mean(0) @ directions
    signs = np.concatenate([(X @ directions > offset).numpy() for X in U.split(1 << 14)])[order]
    packed = np.packbits(signs, axis=1).view(np.uint64)
    pairs = []
    for table in range(TABLES):
        # each table sorts by another stretch of the bits first; equal signatures lie side by side
        # in all of them
        words = np.packbits(np.roll(signs, table * BITS // TABLES, axis=1), axis=1).view(">u8")
        place = np.lexsort(words.T[::-1])
        for shift in range(1, min(NEIGHBOURS, len(place) - 1) + 1):
            x, y = place[:-shift], place[shift:]
            alike = np.bitwise_count(packed[x] ^ packed[y]).sum(1) <= UNLIKE
            pairs.append(np.stack([x[alike], y[alike]]))
    both = (
        np.unique(np.sort(np.concatenate(pairs, axis=1), axis=0), axis=1)
        if pairs
        else np.empty((2, 0), np.int64)
    )
    return torch.from_numpy(order[both[0]]), torch.from_numpy(order[both[1]]), order


def _joined(a: Tensor, b: Tensor, order: np.ndarray, U: Tensor, close: Close) -> list[np.ndarray]:
    """Rows linked by close pairs and close to the middle of their cluster, at least LEAST of them,
    largest first.
    """
    close_pairs = [close(x, y) for x, y in zip(a.split(PAIRS), b.split(PAIRS))]
    linked = torch.cat(close_pairs).numpy() if close_pairs else np.empty(0, bool)
    x, y = a.numpy()[linked], b.numpy()[linked]
    label = np.arange(len(U))
    while True:  # each row takes the smallest label it is linked to
        lower = np.minimum(label[x], label[y])
        np.minimum.at(label, x, lower)
        np.minimum.at(label, y, lower)
        label = label[label]
        if (label[x] == label[y]).all():
            break
    names, sizes = np.unique(label[order], return_counts=True)
    clusters = []
    for name in names[sizes >= LEAST]:
        rows = torch.from_numpy(np.flatnonzero(label == name))
        middle = U[rows].median(0).values
        medoid = rows[torch.linalg.vector_norm(U[rows] - middle, dim=1).argmin()]
        near = rows[close(rows, medoid.expand(len(rows)))].numpy()
        if len(near) >= LEAST:
            clusters.append(near)
    return sorted(clusters, key=len, reverse=True)
