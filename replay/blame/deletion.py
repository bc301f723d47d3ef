"""Proof by replay: the deletion curve, the smallest set that takes the spike away, and random
removals as the null.

The strongest 1, 2, 4, 8, … sequences are removed together; beside each point as many random other
sequences, of the same steps where these leave a choice. What counts is the difference, by the rule
for causal words (docs/formulas.md, "Forks").
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from replay.blame.window_replays import Removal, Replays
from replay.compare import null_test
from replay.interventions.rows import Slot

AWAY = 0.75  # share of the excess whose going takes the spike away
HALF = 0.5  # share of it that a cause must carry, over and above random removals
# largest share of the window that may be called a cause: removing most of the data proves nothing
SHARE = 0.5
FEW, MANY = 3, 19  # random removals: the rule needs 3 (effect 5 times the largest) or 19 (p ≤ 0.05)
TIMES = 5.0


@dataclass(frozen=True)
class Point:
    """One point of the deletion curve, in nats."""

    removed: int
    data: float  # what is left
    state: float
    taken: float  # what went
    random: float | None  # what went with as many random sequences


@dataclass(frozen=True)
class Proof:
    """A set, what its removal takes away, and what random removals of its size take away."""

    removal: tuple[Slot, ...]
    taken: float  # nats
    share: float  # of the excess
    data: float  # what is left
    state: float
    random: tuple[float, ...]  # nats, one for each random removal
    effect: float | None  # over the random removals' median
    p: float | None
    causal: bool
    words: str

    @property
    def sequences(self) -> int:
        return len({(s.step, s.slot) for s in self.removal})

    @property
    def beyond(self) -> float:
        """Nats over and above the random removals' median."""
        return self.taken - (float(np.median(self.random)) if self.random else 0.0)

    @property
    def away(self) -> bool:
        return self.share >= AWAY


def sizes(n: int, window: int) -> list[int]:
    """1, 2, 4, … up to n, and never more than SHARE of the window's sequences."""
    most = min(n, int(SHARE * window))
    powers = [2**i for i in range(most.bit_length()) if 2**i <= most]
    return powers if not powers or powers[-1] == most else [*powers, most]


def deletion_curve(
    replays: Replays,
    ranked: Sequence[Slot],
    window: int,
    seed: int,
    point: Callable[[Point], None],
) -> int | None:
    """Remove more and more of `ranked` (strongest first) until the spike is gone; returns the
    smallest number that
    takes it away, or None. `point` is told each point as it is known."""
    last_failed = 0
    for k in sizes(len(ranked), window):
        top = frozenset(ranked[:k])
        left = replays.without(top, f"without the top {k}")
        taken = replays.taken(top)
        random = None
        other = at_random(replays, top, seed)
        if other is not None:
            random = replays.taken(other, f"without {k} random ones")
        point(Point(k, left.data, left.state, taken, random))
        if taken >= AWAY * replays.excess:
            return _smallest(replays, ranked, last_failed, k)
        last_failed = k
    return None


def _smallest(replays: Replays, ranked: Sequence[Slot], failed: int, works: int) -> int:
    """Between a number that does not take the spike away and one that does: the smallest that does,
    by halving.
    """
    while works - failed > 1:
        middle = (works + failed) // 2
        if replays.taken(ranked[:middle], f"without the top {middle}") >= AWAY * replays.excess:
            works = middle
        else:
            failed = middle
    return works


def at_random(replays: Replays, removal: Removal, seed: int) -> Removal | None:
    """As many random other sequences, the same stretches of targets; None where there are too few
    others.

    From the same steps, as far as each has twice as many others as are needed, so that there is a
    choice; what is missing then comes from the whole window.
    """
    control, rng = replays.control, np.random.default_rng(seed)
    by_row: dict[tuple[int, int], list[Slot]] = {}
    for slot in sorted(removal):
        by_row.setdefault((slot.step, slot.slot), []).append(slot)
    free = {
        s: [r.slot for r in replays.rows([s]) if (s, r.slot) not in by_row]
        for s in range(control.begin, control.last + 1)
    }
    needed = Counter(step for step, _ in by_row)
    roomy = {step for step, n in needed.items() if len(free[step]) >= 2 * n}
    chosen: list[Slot] = []
    elsewhere = []
    for (step, _), spans in by_row.items():
        if step in roomy:
            row = free[step].pop(int(rng.integers(len(free[step]))))
            chosen += [Slot(step, row, span.first, span.last) for span in spans]
        else:
            elsewhere.append(spans)
    for spans in elsewhere:
        places = [(step, i) for step, rows in free.items() for i in range(len(rows))]
        if not places:
            return None
        step, i = places[int(rng.integers(len(places)))]
        row = free[step].pop(i)
        chosen += [Slot(step, row, span.first, span.last) for span in spans]
    return frozenset(chosen)


def prove(
    replays: Replays,
    removal: Sequence[Slot],
    seed: int,
    number: int | None,
    known: Callable[[Proof], None],
) -> Proof:
    """Hold a removal against random ones: `number` of them, or as many as the rule for causal words
    needs.
    """
    own = frozenset(removal)
    taken, left = replays.taken(own, "without the suspects"), replays.without(own)
    random: list[float] = []
    seen: set[Removal] = set()
    proof = _judged(replays, own, taken, left.data, left.state, random)
    wanted = MANY if number is None else number
    for i in range(2 * wanted):
        other = at_random(replays, own, seed + i)
        if other is None or len(random) == wanted:
            break
        if other in seen:  # the same removal again is no other one
            continue
        seen.add(other)
        free = replays.cost(other) == 0
        random.append(replays.taken(other, f"random removal {len(random) + 1}"))
        proof = _judged(replays, own, taken, left.data, left.state, random)
        known(proof)
        if (
            number is None
            and not free
            and len(random) >= FEW
            and (proof.causal or taken <= max(random))
        ):
            break  # the rule is met, or p ≤ 0.05 cannot be met any more
    return proof


def _judged(
    replays: Replays,
    removal: Removal,
    taken: float,
    data: float,
    state: float,
    random: Sequence[float],
) -> Proof:
    """The rule, on signed effects; a random removal that makes the spike worse is as large as one
    that helps.
    """
    finite = [
        x if x > -math.inf else -abs(replays.excess) for x in random
    ]  # not finite: it spikes all the same
    found = null_test.judge_effect(taken, finite)
    largest = max((abs(x) for x in finite), default=math.inf)
    causal = found.p is not None and (
        found.p <= 0.05
        or (len(finite) >= 3 and taken > max(0.0, *finite) and taken >= TIMES * largest)
    )
    words = (
        f"beyond the random removals (N = {len(finite)})"
        if causal
        else found.sentence("random removal")
    )
    if not causal and found.causal:
        words = f"not distinguishable from the random removals (N = {len(finite)})"
    share = (
        float(taken > 0)
        if math.isinf(replays.excess)
        else taken / replays.excess
        if replays.excess > 0
        else 0.0
    )
    effect = (
        found.effect
        if found.effect is not None and math.isfinite(found.effect) and found.effect > 0
        else None
    )
    return Proof(
        tuple(sorted(removal)),
        taken,
        share,
        data,
        state,
        tuple(finite),
        effect,
        found.p,
        causal,
        words,
    )
