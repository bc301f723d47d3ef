"""Removal by replay: the deletion curve, the smallest set that takes the spike away, a suspect.

The most influential 1, 2, 4, 8, … sequences are removed together; beside each point as many random
other sequences, of the same steps where these leave a choice. A suspect has to take more than
random removals do; what makes it a cause are windows without a spike (`null_windows.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from replay.blame.result import CurvePoint, Proof, SuspectKind
from replay.blame.rules import AWAY, HALF, LEAD, NULL_WINDOWS, RANDOM_REMOVALS, SHARE
from replay.blame.window_replays import SlotSet, WindowReplays
from replay.interventions.random_rows import elsewhere
from replay.interventions.rows import Slot


@dataclass(frozen=True)
class Suspect:
    """A part of the window that may be the cause: its targets, and what it is named after."""

    kind: SuspectKind
    slots: tuple[Slot, ...]
    name: str | None = None  # the path of its (first) document, its source or attribute
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
            "attribute": f"{self.count} document{plural} with {self.name}",
            "strongest": f"the {self.count} strongest sequences",
            "bisection": f"{self.count} sequence{plural} found by bisection",
        }[self.kind]


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
    """Draw as many random other sequences of the window, of the same steps where these leave a
    choice (`elsewhere`); None: too few others.
    """
    control = replays.control
    steps = range(control.begin, control.last + 1)
    return elsewhere(removal, {step: replays.rows([step]) for step in steps}, seed)


def hold_against_random(
    replays: WindowReplays,
    suspect: Suspect,
    seed: int,
    number: int | None,
    on_proof: Callable[[Proof], None],
) -> Proof:
    """Hold a removal against random ones: `number` of them, or RANDOM_REMOVALS that take steps.

    Those that take none are free, and as many as there are windows without a spike. `on_proof`
    hears of the proof after each of them.
    """
    removal = frozenset(suspect.slots)
    excess_removed = replays.excess_removed(removal, "without the suspects")
    random: list[float] = []
    drawn: set[SlotSet] = set()
    proof = judge_removal(replays, suspect, excess_removed, random)
    most = NULL_WINDOWS if number is None else number
    for i in range(2 * most):
        random_removal = at_random(replays, removal, seed + i)
        if random_removal is None or len(random) == most:
            break
        if random_removal in drawn:  # the same removal again is no other one
            continue
        if number is None and len(random) >= RANDOM_REMOVALS and replays.cost(random_removal):
            break
        drawn.add(random_removal)
        note = f"random removal {len(random) + 1}"
        random.append(replays.excess_removed(random_removal, note))
        proof = judge_removal(replays, suspect, excess_removed, random)
        on_proof(proof)
    return proof


def judge_removal(
    replays: WindowReplays, suspect: Suspect, excess_removed: float, random: Sequence[float]
) -> Proof:
    """Judge signed effects: it is beyond random removals where it takes HALF of the excess more.

    It takes more than their median by that, and leads the best of them by more than LEAD times what
    they differ by among each other: where the training is so chaotic that any removal moves the
    loss as far, one that lowers it shows nothing. Where none can be drawn it is not beyond them.
    """
    # not finite: it spikes all the same
    finite = [x if x > -math.inf else -abs(replays.excess) for x in random]
    more = excess_removed - float(np.median(finite)) if finite else -math.inf
    infinite = math.isinf(replays.excess)
    enough = excess_removed > 0 if infinite else more >= HALF * replays.excess
    share = (
        float(excess_removed > 0)
        if infinite
        else excess_removed / replays.excess
        if replays.excess > 0
        else 0.0
    )
    removal = frozenset(suspect.slots)
    left = replays.without(removal)
    return Proof(
        who=suspect.words,
        kind=suspect.kind,
        name=suspect.name,
        source=suspect.source,
        removal=tuple(sorted(removal)),
        share=share,
        data=left.data,
        state=left.state,
        random=tuple(finite),
        beyond_random=enough and leads(excess_removed, random, replays.excess),
        excess_removed=excess_removed,
    )


def leads(excess_removed: float, random: Sequence[float], excess: float) -> bool:
    """Tell whether a removal leads the best random one by more than LEAD times their range.

    All in nats; a random removal after which the loss is not finite (−inf) is as far away as can
    be, unless the spike itself (`excess`) is not finite: then it only has to take more.
    """
    if not random or excess_removed <= max(random):
        return False
    if math.isinf(excess):
        return True
    return excess_removed - max(random) > LEAD * (max(random) - min(random))
