"""Step → sequence ids: a pure function, the same time and memory for 10⁶ or 10¹² sequences.

    order = make_order(recipe.data, ["main"], [10**12], [0], batch=512, seed=0)
    order.sequence_ids(123_456)  →  (512,) int64

Within a phase, 1,024 slots go round and round: a keyed pattern that gives each source its exact
quota of them. The n-th draw of a source is element n mod N of a keyed permutation of its N
sequences, with key (seed, source, n // N); n runs on across phases, so a source that comes back
continues where it was. Or the ids come from an order file.
"""

from __future__ import annotations

import dataclasses
import heapq
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from forensics.data.order_file import OrderIds, open_order
from forensics.errors import ForensicsError

if TYPE_CHECKING:
    from forensics import config

SLOTS = 1024
# of the Feistel network; four make it random (Luby and Rackoff 1988), small N wants more
ROUNDS = 8
GOLDEN = 0x9E3779B97F4A7C15  # increment of SplitMix64
LEAST_PHASE = 64  # steps below which a phase is no setting of its own, as for spikes


@dataclass(frozen=True, eq=False)
class _Stretch:
    """A phase as the order uses it; S sources."""

    start: int  # its first step
    pattern: np.ndarray  # (1024,) source of each slot
    ordinal: np.ndarray  # (1024,) how many slots before this one have the same source
    quota: np.ndarray  # (S,) slots of each source
    base: np.ndarray  # (S,) draws made of each source before the phase


@dataclass(frozen=True, eq=False)
class Order:
    """Hold the order in which a run reads its sequences; `make_order` builds it.

    S sources, B sequences a batch.
    """

    batch: int
    seed: int
    n_sequences: np.ndarray  # (S,) int64
    first_sequence: np.ndarray  # (S,) int64: ids are offset by source
    held_out: np.ndarray  # (H,) int64 ids, ascending: never drawn
    fingerprint: str  # xxh3_128 of all that the order depends on
    stretches: tuple[_Stretch, ...]
    file: OrderIds | None  # ids that are read, instead of all the above
    # A rank counts the ids that are not held out, over all sources; the id is the rank plus the
    # held-out ids before it.
    drawable: np.ndarray  # (S,) ranks of each source
    first_rank: np.ndarray  # (S,)
    held_rank: np.ndarray  # (H,) the rank that follows each held-out id

    def sequence_ids(self, step: int) -> np.ndarray:
        """Return the ids of batch `step`: (B,) int64. Errors: missing, past an order file's end."""
        assert step >= 0, f"batches count from 0, not {step}"
        if self.file is not None:
            ids_B = self.file.read(step * self.batch, (step + 1) * self.batch)
            if len(ids_B) < self.batch:
                raise ForensicsError(
                    "missing",
                    f"wanted batch {step}, found {len(self.file) // self.batch} whole batches in"
                    " the order file",
                    "lower train.steps, or give a longer data.order_file",
                )
            return ids_B
        stretch = self._stretch(step)
        block_B, slot_B = np.divmod(
            (step - stretch.start) * self.batch + np.arange(self.batch), SLOTS
        )
        source_B = stretch.pattern[slot_B]
        draw_B = (
            stretch.base[source_B] + block_B * stretch.quota[source_B] + stretch.ordinal[slot_B]
        )
        return self._draw(source_B, draw_B)

    def drawn(self, source: int, step: int) -> int:
        """Count the draws of a source (its index in the recipe) by the batches before `step`."""
        if self.file is not None:
            read = self.file.chunks(0, step * self.batch)
            return sum(int((self.source_of(ids) == source).sum()) for ids in read)
        stretch = self._stretch(step)
        blocks, slots = divmod((step - stretch.start) * self.batch, SLOTS)
        in_phase = blocks * int(stretch.quota[source]) + int(
            (stretch.pattern[:slots] == source).sum()
        )
        return int(stretch.base[source]) + in_phase

    def draws(self, source: int, n0: int, count: int) -> np.ndarray:
        """Return the ids of draws n0 … n0+count−1 of a source: (count,) int64.

        Errors: missing, as `sequence_ids`.
        """
        if self.file is None:
            return self._draw(np.full(count, source), n0 + np.arange(count, dtype=np.int64))
        pieces, passed = [np.empty(0, np.int64)], 0
        for ids in self.file.chunks():
            if passed >= n0 + count:
                break
            of_source = ids[self.source_of(ids) == source]
            pieces.append(of_source[max(n0 - passed, 0) : n0 + count - passed])
            passed += len(of_source)
        if passed < n0 + count:
            raise ForensicsError(
                "missing",
                f"wanted draw {n0 + count - 1} of source {source}, found {passed} of its "
                "sequences in the order file",
                "give a longer data.order_file",
            )
        return np.concatenate(pieces)

    def shares(self, step: int) -> np.ndarray:
        """Return the share of each source in the phase of `step`: (S,); (0,) under an order
        file.
        """
        if self.file is not None:
            return np.empty(0)
        return self._stretch(step).quota / SLOTS

    def usual_phase(self, step: int, steps: int) -> int:
        """Return the first step of the phase that says what is usual at `step` in a run of `steps`.

        That is its own where it is at least LEAST_PHASE steps long, else the run's longest: what is
        planted, or broke, for a few steps is not the run's usual data. An order file is one phase.
        """
        if self.file is not None:
            return 0
        starts = [stretch.start for stretch in self.stretches if stretch.start < steps]
        ends = [*starts[1:], steps]
        own = self._stretch(step).start
        lengths = {start: end - start for start, end in zip(starts, ends)}
        # the last phase has no end: past the run's it goes on
        if lengths.get(own, LEAST_PHASE) >= LEAST_PHASE:
            return own
        return max(lengths, key=lambda start: lengths[start])

    def usual_source(self, step: int, slot: int, steps: int) -> int | None:
        """Return the source that the usual phase has in this place; None under an order file."""
        if self.file is not None:
            return None
        phase = self._stretch(self.usual_phase(step, steps))
        return int(phase.pattern[((step - phase.start) * self.batch + slot) % SLOTS])

    def unread(self, steps: int, limit: int) -> np.ndarray:
        """Return ids that no batch before `steps` of an order file reads: (n,), n ≤ limit.

        Ids that the file never reads come first, spread evenly; then the last ones that it reads
        after `steps`, which placebos reach last. None of a keyed order, whose held-out sequences
        are these, and none where some batch before `steps` is not known.
        """
        none, end = np.empty(0, np.int64), steps * self.batch
        if self.file is None or not self.file.known(end):
            return none
        total = int(self.n_sequences.sum())
        never = self.file.without(_spread(min(16 * limit, total), total))
        never = never[_spread(min(limit, len(never)), len(never))]
        wanted = limit - len(never)
        later = none
        for chunk in self.file.chunks(max(end, len(self.file) - wanted)):
            later = np.union1d(later, chunk)
        return np.union1d(never, self.file.without(later, 0, end))[:limit]

    def source_of(self, ids: np.ndarray) -> np.ndarray:
        """Return the index of the source each id belongs to, of the ids' shape; −1 for −1."""
        return np.searchsorted(self.first_sequence, ids, side="right") - 1

    def _stretch(self, step: int) -> _Stretch:
        return next(
            stretch for stretch in reversed(self.stretches) if stretch.start <= step
        )  # the last phase has no end

    def _draw(self, source_B: np.ndarray, draw_B: np.ndarray) -> np.ndarray:
        """Return draw n of a source, for many at once: (B,), (B,) → (B,) ids.

        Held-out ids are skipped.
        """
        N_B = self.drawable[source_B]
        epoch_B, index_B = np.divmod(draw_B, N_B)
        rank_B = self.first_rank[source_B] + permuted(
            index_B, N_B, _keys(self.seed, source_B, epoch_B)
        )
        return rank_B + np.searchsorted(self.held_rank, rank_B, side="right")


def make_order(
    data: config.Data,
    source_names: Sequence[str],
    n_sequences: Sequence[int],
    first_sequence: Sequence[int],
    batch: int,
    seed: int,
) -> Order:
    """Make the order of a run over sources of `n_sequences` each. Errors: config, data, missing.

    Without phases there is one, whose shares are the sources' sizes. Held-out sequences are spread
    evenly over the first phase's sources in proportion to their shares, at most a tenth of a
    source; under an order file, only those that the file never reads.
    """
    sizes = [int(count) for count in n_sequences]
    assert batch > 0 and sizes and min(sizes) >= 0 and sum(sizes), (
        f"no order over {sizes} sequences in batches of {batch}"
    )
    file = open_order(data.order_file, data.order_dtype, sum(sizes)) if data.order_file else None
    mixes = [[Fraction(phase.mix.get(name, 0)) for name in source_names] for phase in data.phases]
    mixes = mixes or [[Fraction(count) for count in sizes]]
    starts = [0, *(phase.until or 0 for phase in data.phases[:-1])]
    base_S = np.zeros(len(sizes), np.int64)
    stretches: list[_Stretch] = []
    # a file gives the whole order, whatever the number of sources
    for i, (start, mix) in enumerate(zip(starts, mixes) if file is None else ()):
        if stretches:
            base_S = _drawn_by_the_end(stretches[-1], start, batch)
        stretches.append(_stretch(start, mix, base_S, seed, i))
    first_S = np.array(first_sequence, np.int64)
    held_out = _held_out(data.held_out, mixes[0], sizes, first_S, file)
    fingerprint = _fingerprint(
        seed=seed,
        batch=batch,
        sources=list(source_names),
        sequences=sizes,
        first=first_S.tolist(),
        phases=[dataclasses.asdict(phase) for phase in data.phases],
        held_out=held_out.tolist(),
        file=file.digest if file is not None else "",
    )
    held_before = np.searchsorted(held_out, [*first_S.tolist(), sum(sizes)])
    return Order(
        batch,
        seed,
        np.array(sizes, np.int64),
        first_S,
        held_out,
        fingerprint,
        tuple(stretches),
        file,
        drawable=np.array(sizes, np.int64) - np.diff(held_before),
        first_rank=first_S - held_before[:-1],
        held_rank=held_out - np.arange(len(held_out)),
    )


def quotas(mix: Sequence[Fraction]) -> list[int]:
    """Share 1,024 slots out among the sources, by largest remainder.

    A source with any share has at least one.
    """
    if sum(share > 0 for share in mix) > SLOTS:
        raise ForensicsError(
            "config",
            f"data.phases: wanted at most {SLOTS} sources in a phase, found {len(mix)}",
            "join some of them into one",
        )
    all_shares = sum(mix)
    exact = [share * SLOTS / all_shares for share in mix]
    quota = [max(int(ideal), 1) if ideal > 0 else 0 for ideal in exact]
    missing = SLOTS - sum(quota)  # below 0 where many small sources were each given their one slot
    change = 1 if missing > 0 else -1
    least = (
        1 if missing > 0 else 2
    )  # slots a source must have to be given one, or to lose one and keep one
    neediest = [
        (change * (quota[source] - exact[source]), source)
        for source in range(len(mix))
        if quota[source] >= least
    ]
    heapq.heapify(neediest)
    for _ in range(abs(missing)):
        need, source = heapq.heappop(neediest)
        quota[source] += change
        if quota[source] >= least:
            heapq.heappush(neediest, (need + 1, source))
    return quota


def permuted(index_B: np.ndarray, N_B: np.ndarray, key_B: np.ndarray) -> np.ndarray:
    """Return element `index` of the permutation of 0 … N−1 that belongs to `key`.

    For many at once: (B,) int64 each. A Feistel network on Z_a × Z_b, a·b at least N and below N +
    √N + 1, walked on until the result lies below N (Black and Rogaway 2002, "Ciphers with arbitrary
    finite domains"): rarely more than once. N up to 2⁶².
    """
    a_B = np.sqrt(N_B.astype(np.float64)).astype(np.int64)
    a_B += a_B * a_B < N_B  # the square root, rounded up
    b_B = -(-N_B // a_B)
    # (ROUNDS, B): one key a round
    keys_RB = _mix(key_B + (np.arange(1, ROUNDS + 1, dtype=np.uint64) * np.uint64(GOLDEN))[:, None])
    x_B = _feistel(index_B, a_B, b_B, keys_RB)
    outside = np.flatnonzero(x_B >= N_B)
    while len(outside):
        x_B[outside] = _feistel(x_B[outside], a_B[outside], b_B[outside], keys_RB[:, outside])
        outside = outside[x_B[outside] >= N_B[outside]]
    return x_B


def _feistel(x_B: np.ndarray, a_B: np.ndarray, b_B: np.ndarray, keys_RB: np.ndarray) -> np.ndarray:
    left_B, right_B = (half.astype(np.uint64) for half in np.divmod(x_B, b_B))
    a_B, b_B = a_B.astype(np.uint64), b_B.astype(np.uint64)
    for round_index in range(0, ROUNDS, 2):
        left_B = _add(left_B, right_B, a_B, keys_RB[round_index])
        right_B = _add(right_B, left_B, b_B, keys_RB[round_index + 1])
    return (left_B * b_B + right_B).astype(np.int64)


def _add(
    half_B: np.ndarray, other_B: np.ndarray, size_B: np.ndarray, key_B: np.ndarray
) -> np.ndarray:
    """half + F(other) modulo size, F uniform below size up to size / 2³²."""
    hashed_B = _mix(other_B * np.uint64(GOLDEN) + key_B) >> np.uint64(32)
    half_B = half_B + (hashed_B * size_B >> np.uint64(32))
    return np.where(half_B >= size_B, half_B - size_B, half_B)


def _mix(x: np.ndarray) -> np.ndarray:
    """Apply SplitMix64's finaliser: a bijection of 64-bit words, of an array's shape.

    Source: Steele, Lea and Flood 2014.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _keys(seed: int, *words: np.ndarray) -> np.ndarray:
    """Derive a 64-bit key from a seed and arrays of words, of the arrays' shape."""
    key = np.full(words[0].shape, seed % 2**64, np.uint64)
    for word in words:
        key = _mix(key * np.uint64(GOLDEN) + np.uint64(1)) + word.astype(np.uint64)
    return _mix(key * np.uint64(GOLDEN) + np.uint64(1))


def _stretch(
    start: int, mix: Sequence[Fraction], base_S: np.ndarray, seed: int, phase: int
) -> _Stretch:
    """Lay one slot of each source into each of its q equal intervals, jittered by the key.

    The slots are mixed, yet spread evenly.
    """
    quota_S = np.array(quotas(mix), np.int64)
    source = np.repeat(np.arange(len(mix)), quota_S)
    ordinal = np.concatenate([np.arange(slots) for slots in quota_S])
    jitter = _keys(seed, np.full(SLOTS, -1 - phase), source, ordinal)
    at = (ordinal + (jitter >> np.uint64(11)) * 2.0**-53) / quota_S[source]
    places = np.lexsort((jitter, at))
    return _Stretch(start, source[places], ordinal[places], quota_S, base_S)


def _drawn_by_the_end(stretch: _Stretch, end: int, batch: int) -> np.ndarray:
    blocks, slots = divmod((end - stretch.start) * batch, SLOTS)
    partial_S = np.bincount(stretch.pattern[:slots], minlength=len(stretch.quota))
    return stretch.base + blocks * stretch.quota + partial_S


def _held_out(
    number: int,
    mix: Sequence[Fraction],
    sizes: list[int],
    first_S: np.ndarray,
    file: OrderIds | None,
) -> np.ndarray:
    """Ids spread evenly over each source of the mix, ascending."""
    if not number:
        return np.empty(0, np.int64)
    if (
        file is not None
    ):  # a published order was drawn without us: look wider, keep what it never reads
        ids = _held_out(16 * number, mix, sizes, first_S, None)
        ids = file.without(ids)
        return ids[_spread(min(number, len(ids)), len(ids))]
    all_shares = sum(mix)
    exact = [share * number / all_shares for share in mix]
    count = [int(ideal) for ideal in exact]
    for source in sorted(
        range(len(mix)), key=lambda source: (count[source] - exact[source], source)
    )[: number - sum(count)]:
        count[source] += 1
    capped = [min(allotted, size // 10) for allotted, size in zip(count, sizes)]
    return np.concatenate(
        [first + _spread(allotted, size) for first, allotted, size in zip(first_S, capped, sizes)]
    )


def _spread(count: int, size: int) -> np.ndarray:
    """`count` of 0 … size−1, ascending, at even distances: (count,) int64."""
    if not count:
        return np.empty(0, np.int64)
    index = np.arange(count, dtype=np.int64)
    distance, remainder = divmod(size, count)
    return index * distance + index * remainder // count + distance // 2


def _fingerprint(**parameters: object) -> str:
    import xxhash

    return xxhash.xxh3_128_hexdigest(
        json.dumps({"order": 1, **parameters}, sort_keys=True).encode()
    )
