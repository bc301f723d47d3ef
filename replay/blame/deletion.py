"""Proof by replay: the deletion curve, the smallest set that takes the spike away, and its null.

The most influential 1, 2, 4, 8, … sequences are removed together; beside each point as many random
other sequences, of the same steps where these leave a choice. What counts is the difference, by the
rule for causal words (docs/formulas.md, "Forks").
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from replay.blame.result import AWAY, CurvePoint, Proof, SuspectKind
from replay.blame.window_replays import SlotSet, WindowReplays
from replay.compare.null_test import (
    ENOUGH_P,
    FEWEST_FOR_TIMES,
    TIMES,
    Finding,
    judge_effect,
)
from replay.interventions.rows import Slot

HALF = 0.5  # share of the excess that a cause must carry, over and above random removals
# largest share of the window that may be called a cause: removing most of the data proves nothing
SHARE = 0.5
MANY = 19  # random removals: p ≤ 0.05 needs so many


@dataclass(frozen=True)
class Suspect:
    """A part of the window that may be the cause: its targets, and what it is named after."""

    kind: SuspectKind
    slots: tuple[Slot, ...]
    name: str | None = None  # the path of its (first) document, or its source
    source: str | None = None  # of that document
    count: int = 1  # documents or sequences

    @property
    def sequences(self) -> int:
        """Count the sequences that it touches."""
        return len({(slot.step, slot.slot) for slot in self.slots})

    @property
    def words(self) -> str:
        """Name it in a few words."""
        plural = "s" if self.count != 1 else ""
        return {
            "document": f"document {self.name} ({self.source})",
            "documents": f"{self.count} documents, the first {self.name} ({self.source})",
            "source": f"source {self.name}",
            "strongest": f"the {self.count} strongest sequences",
            "bisection": f"{self.count} sequence{plural} found by bisection",
        }[self.kind]


def beyond_random(proof: Proof) -> float:
    """Return the nats that a removal takes away over and above the random removals' median."""
    return proof.excess_removed - (float(np.median(proof.random)) if proof.random else 0.0)


def sizes(sequences: int, window: int) -> list[int]:
    """List 1, 2, 4, … up to `sequences`, and never more than SHARE of the window's sequences."""
    most = min(sequences, int(SHARE * window))
    powers = [2**i for i in range(most.bit_length()) if 2**i <= most]
    return powers if not powers or powers[-1] == most else [*powers, most]


def deletion_curve(
    replays: WindowReplays,
    ranked: Sequence[Slot],
    window: int,
    seed: int,
    on_point: Callable[[CurvePoint], None],
) -> int | None:
    """Remove more and more of `ranked` (most influential first) until the spike is gone.

    Returns the smallest number that takes it away, or None. `on_point` hears of each point as it
    is known.
    """
    failed = 0
    for size in sizes(len(ranked), window):
        removal = frozenset(ranked[:size])
        left = replays.without(removal, f"without the top {size}")
        excess_removed = replays.excess_removed(removal)
        random_removal = at_random(replays, removal, seed)
        random = (
            replays.excess_removed(random_removal, f"without {size} random ones")
            if random_removal is not None
            else None
        )
        on_point(CurvePoint(size, left.data, left.state, random, excess_removed))
        if excess_removed >= AWAY * replays.excess:
            return _smallest(replays, ranked, failed, size)
        failed = size
    return None


def _smallest(replays: WindowReplays, ranked: Sequence[Slot], failed: int, works: int) -> int:
    """Find by halving the smallest number that takes the spike away, above one that does not."""
    while works - failed > 1:
        middle = (works + failed) // 2
        note = f"without the top {middle}"
        if replays.excess_removed(ranked[:middle], note) >= AWAY * replays.excess:
            works = middle
        else:
            failed = middle
    return works


def at_random(replays: WindowReplays, removal: SlotSet, seed: int) -> SlotSet | None:
    """Draw as many random other sequences, the same stretches of targets; None: too few others.

    They come from the same steps, as far as each has twice as many others as are needed, so that
    there is a choice; what is missing then comes from the whole window.
    """
    control, rng = replays.control, np.random.default_rng(seed)
    by_row: dict[tuple[int, int], list[Slot]] = {}
    for slot in sorted(removal):
        by_row.setdefault((slot.step, slot.slot), []).append(slot)
    free = {
        step: [row.slot for row in replays.rows([step]) if (step, row.slot) not in by_row]
        for step in range(control.begin, control.last + 1)
    }
    needed = Counter(step for step, _ in by_row)
    roomy = {step for step, count in needed.items() if len(free[step]) >= 2 * count}
    drawn: list[Slot] = []
    elsewhere = []
    for (step, _), spans in by_row.items():
        if step in roomy:
            row = free[step].pop(int(rng.integers(len(free[step]))))
            drawn += [Slot(step, row, span.first, span.last) for span in spans]
        else:
            elsewhere.append(spans)
    for spans in elsewhere:
        places = [(step, i) for step, rows in free.items() for i in range(len(rows))]
        if not places:
            return None
        step, i = places[int(rng.integers(len(places)))]
        row = free[step].pop(i)
        drawn += [Slot(step, row, span.first, span.last) for span in spans]
    return frozenset(drawn)


def prove(
    replays: WindowReplays,
    suspect: Suspect,
    seed: int,
    number: int | None,
    on_proof: Callable[[Proof], None],
) -> Proof:
    """Hold a removal against random ones: `number` of them, or as many as the rule needs.

    `on_proof` hears of the proof after each of them.
    """
    removal = frozenset(suspect.slots)
    excess_removed = replays.excess_removed(removal, "without the suspects")
    random: list[float] = []
    drawn: set[SlotSet] = set()
    proof = judge_removal(replays, suspect, excess_removed, random)
    most = MANY if number is None else number
    for i in range(2 * most):
        random_removal = at_random(replays, removal, seed + i)
        if random_removal is None or len(random) == most:
            break
        if random_removal in drawn:  # the same removal again is no other one
            continue
        drawn.add(random_removal)
        free = replays.cost(random_removal) == 0
        note = f"random removal {len(random) + 1}"
        random.append(replays.excess_removed(random_removal, note))
        proof = judge_removal(replays, suspect, excess_removed, random)
        on_proof(proof)
        decided = proof.causal or excess_removed <= max(random)
        if number is None and not free and len(random) >= FEWEST_FOR_TIMES and decided:
            break  # the rule is met, or p ≤ 0.05 cannot be met any more
    return proof


def judge_removal(
    replays: WindowReplays, suspect: Suspect, excess_removed: float, random: Sequence[float]
) -> Proof:
    """Apply the rule for causal words to signed effects.

    A random removal that makes the spike worse is as large as one that helps.
    """
    # not finite: it spikes all the same
    finite = [x if x > -math.inf else -abs(replays.excess) for x in random]
    effect = judge_effect(excess_removed, finite)
    largest = max((abs(x) for x in finite), default=math.inf)
    causal = effect.p is not None and (
        effect.p <= ENOUGH_P
        or (
            len(finite) >= FEWEST_FOR_TIMES
            and excess_removed > max(0.0, *finite)
            and excess_removed >= TIMES * largest
        )
    )
    finding: Finding = effect.finding
    if causal:
        finding = "beyond"
    elif effect.causal:
        finding = "not distinguishable"
    share = (
        float(excess_removed > 0)
        if math.isinf(replays.excess)
        else excess_removed / replays.excess
        if replays.excess > 0
        else 0.0
    )
    times = effect.effect
    removal = frozenset(suspect.slots)
    left = replays.without(removal)
    return Proof(
        who=suspect.words,
        kind=suspect.kind,
        name=suspect.name,
        source=suspect.source,
        removal=tuple(sorted(removal)),
        excess_removed=excess_removed,
        share=share,
        data=left.data,
        state=left.state,
        random=tuple(finite),
        effect=times if times is not None and math.isfinite(times) and times > 0 else None,
        p=effect.p,
        causal=causal,
        finding=finding,
        words=replace(effect, finding=finding).sentence("random removal"),
    )
