"""Do the sequences of the largest influence do what it says? They are left out, by replay.

The null: which sequences of a batch have the largest influence says nothing about what leaving
them out does. Then the chosen set is one of all sets with as many sequences of the same batches,
and its rank among distinct random ones of them is uniform. Where these batches leave too few other
sets, random ones come from the whole window, and the result says so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from replay.blame.query.replays import TargetReplays
from replay.blame.query.result import Direction, RemovalFinding, RemovalTest
from replay.blame.query.sentences import removal_sentence
from replay.compare.null_test import ENOUGH_P
from replay.interventions.random_rows import Pool, RandomSets
from replay.interventions.rows import Slot

TOP = 8  # sequences of a set that is tested
SHARE = 0.25  # of the window's sequences that a set may be: more is not "some of the data"
FEWEST = 3  # random removals after which a set that one of them matches is given up
DIRECTIONS: tuple[Direction, ...] = ("lower", "raise")


def enough(tests: int) -> int:
    """Count the random removals with which p, corrected for `tests` sets, can reach the level."""
    return math.ceil(tests / ENOUGH_P) - 1


@dataclass(frozen=True)
class ChosenSet:
    """The strongest sequences of one direction."""

    direction: Direction
    slots: tuple[Slot, ...]
    predicted: float  # change of the target without them, −Σ influence


def choose_sets(influence: dict[Slot, float]) -> list[ChosenSet]:
    """Choose the sets to test from the influences alone: up to TOP, strongest first."""
    most = max(1, min(TOP, int(SHARE * len(influence))))
    chosen = []
    for direction, sign in zip(DIRECTIONS, (-1.0, 1.0)):
        aligned = {row: sign * nats for row, nats in influence.items() if sign * nats > 0}
        strongest = sorted(aligned, key=lambda row: (-aligned[row], row))[:most]
        predicted = -sum(influence[row] for row in strongest)
        chosen.append(ChosenSet(direction, tuple(strongest), predicted))
    return chosen


class Others(NamedTuple):
    """Sets that a chosen one is held against."""

    sets: RandomSets
    in_steps: bool  # of the same batches; else of the whole window


def others_than(replays: TargetReplays, chosen: Sequence[Slot], number: int, seed: int) -> Others:
    """Draw from the chosen set's batches where these have `number` other sets, else from all."""
    needed = Counter(slot.step for slot in chosen)
    by_step = {step: replays.rows([step]) for step in needed}
    sets = math.prod(math.comb(len(by_step[step]), count) for step, count in needed.items())
    in_steps = sets - 1 >= number
    pools = (
        [Pool(by_step[step], count) for step, count in needed.items()]
        if in_steps
        else [Pool(replays.rows(), len(chosen))]
    )
    return Others(RandomSets(pools, seed, besides=[chosen]), in_steps)


def try_removal(
    replays: TargetReplays,
    chosen: ChosenSet,
    tests: int,
    number: int | None,
    seed: int,
    on_test: Callable[[RemovalTest], None],
) -> None:
    """Leave a set out and hold it against `number` random ones, or as many as p needs.

    `on_test` hears of the test after each of them. Without `number` it ends after the first random
    removal that reaches as far, for then p ≤ 0.05 cannot be met: (1 + 1)/(n + 1) after n removals
    is no less than the 1/n of such a stop (Besag & Clifford 1991).
    """
    number_needed = number or enough(tests)
    drawn = others_than(replays, chosen.slots, number_needed, seed) if chosen.slots else None
    matched_steps = drawn is None or drawn.in_steps
    if drawn is None:
        on_test(judge_removal(chosen, None, [], matched_steps, tests))
        return
    note = f"without {len(chosen.slots)} that {chosen.direction} the loss"
    measured = replays.change(chosen.slots, note)
    random: list[float] = []
    on_test(judge_removal(chosen, measured, random, matched_steps, tests))
    while len(random) < number_needed:
        slots = drawn.sets.draw()
        if slots is None:
            break
        random.append(replays.change(slots, f"random removal {len(random) + 1}"))
        on_test(judge_removal(chosen, measured, random, matched_steps, tests))
        reached = _as_far(chosen.direction, measured, random)
        if number is None and len(random) >= FEWEST and reached:
            break
    on_test(judge_removal(chosen, measured, random, matched_steps, tests, ended=True))


def _as_far(direction: Direction, measured: float, random: Sequence[float]) -> int:
    """Count random removals that move the target at least as far in the set's direction."""
    sign = _sign(direction)
    return sum(not sign * change < sign * measured for change in random)  # NaN counts


def _sign(direction: Direction) -> float:
    """Without sequences that lower the loss it rises."""
    return 1.0 if direction == "lower" else -1.0


def judge_removal(
    chosen: ChosenSet,
    measured: float | None,
    random: Sequence[float],
    matched_steps: bool,
    tests: int,
    ended: bool = False,
) -> RemovalTest:
    """Judge a set by its random removals; p is corrected for the number of sets that are tested."""
    p = corrected = None
    if measured is not None and random:
        p = (1 + _as_far(chosen.direction, measured, random)) / (len(random) + 1)
        corrected = min(1.0, tests * p)
    finding = _finding(chosen, measured, random, corrected, tests, ended)
    removal = RemovalTest(
        direction=chosen.direction,
        removal=tuple(sorted(chosen.slots)),
        predicted=chosen.predicted,
        measured=measured,
        random=tuple(random),
        matched="steps" if matched_steps else "window",
        p=p,
        tests=tests,
        corrected_p=corrected,
        finding=finding,
        sentence="",
    )
    return replace(removal, sentence=removal_sentence(removal))


def _finding(
    chosen: ChosenSet,
    measured: float | None,
    random: Sequence[float],
    corrected: float | None,
    tests: int,
    ended: bool,
) -> RemovalFinding:
    if not chosen.slots:
        return "no influence"
    if measured is not None and not math.isfinite(measured):
        return "not finite"
    # the direction itself must be that of the influence
    if measured is not None and corrected is not None:
        if corrected <= ENOUGH_P and _sign(chosen.direction) * measured > 0:
            return "beyond"
        if _as_far(chosen.direction, measured, random):
            return "not beyond random removals"
    if not ended:
        return "interrupted"
    if len(random) < enough(tests):
        return "too few random removals"
    return "not beyond random removals"
