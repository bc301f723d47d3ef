"""The null of blame: the same search on windows of the same run that hold no spike.

A window without a spike is as long as the spike's, its last batch stands for S, and everything is
done to it that was done to the spike's: its sequences are ranked, the strongest 1, 2, 4, … and the
leading documents and sources are removed, and the most that any of these sets takes away is what
it shows. The spike's removal is held against these largest values, so its p is corrected over all
points of the curve and all suspects.

    windows = WindowsWithoutSpike(run, control, calm, depth, spikes, on_step)
    null = windows.hold_against(proof.excess_removed)

They are searched as far as a decision needs. A search ends where a set takes away as much as the
spike's removal: only the rank counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from forensics.detect.spikes import Spike
from forensics.train.run import Run
from replay.blame.candidates import Influences, suspects
from replay.blame.deletion import sizes
from replay.blame.excess import WindowControl
from replay.blame.ranking import add_metagradient, own_influences
from replay.blame.result import NullRule, NullWindow, NullWindows
from replay.blame.rules import BEFORE, ENOUGH_P, FEWEST_FOR_TIMES, MARGIN, NULL_WINDOWS
from replay.blame.stretch import Stretch
from replay.blame.window_replays import SlotSet, WindowReplays
from replay.compare.null_test import judge_effect
from replay.lineage import lowest_state, root

GROUP = 4  # windows after the first that share a stretch

Window = TypeVar("Window")


class WindowsWithoutSpike:
    """Windows that match the spike's in length and offset, nearest to it first."""

    def __init__(
        self,
        run: Run,
        control: WindowControl,
        calm: int,
        depth: int,
        spikes: Sequence[Spike],
        on_step: Callable[[int, str], None],
        group: str | None = None,
    ) -> None:
        """Match the window of `control`, of which `depth` batches before S were ranked.

        `group`: the attribute whose values are suspects too, as in the search. They end at state
        `calm` at the latest, or after the spike recovered; no spike of `spikes` lies in them.
        """
        self.run, self.control, self.depth, self.spikes = run, control, depth, spikes
        self._on_step, self._group = on_step, group
        self.length = control.last - control.first
        self.edge = min(calm + 1, control.begin)
        self.replays = 0  # that trained a step
        self.steps = 0

    def hold_against(
        self,
        excess_removed: float,
        number: int | None = None,
        on_null: Callable[[NullWindows], None] = lambda _: None,
    ) -> NullWindows:
        """Search `number` windows, or as many as decide; `on_null` hears after each."""
        groups = self._groups(NULL_WINDOWS if number is None else number)
        searched_groups = (self._searched(group, excess_removed) for group in groups)
        return decided(excess_removed, searched_groups, self.depth, number is None, on_null)

    def search(self, number: int) -> list[NullWindow]:
        """Search `number` windows whole, nearest to the spike first."""
        return [
            window for group in self._groups(number) for window in self._searched(group, math.inf)
        ]

    def ends(self) -> list[list[int]]:
        """List the last batches: those before the spike, nearest first, and those after it."""
        run, length, stride = self.run, self.length, self.depth + 1
        lowest = max(lowest_state(run), root(run).recipe.train.warmup) + length
        trained = min(run.header.steps, run.last_step())
        recovered = [
            spike.recovered_at or trained
            for spike in self.spikes
            if spike.onset <= self.control.last
        ]
        after = max([self.control.last, *recovered]) + length + 1
        sides = (
            range(self.edge - 1, lowest - 1, -stride),
            range(after, trained if recovered else after, stride),
        )
        return [[end for end in side if not self._touched(end)] for side in sides]

    def _touched(self, end: int) -> bool:
        """Whether a spike lies in the batches that are searched, or shortly before them."""
        first = end - self.depth - MARGIN
        return any(
            spike.onset <= end and (spike.recovered_at is None or spike.recovered_at > first)
            for spike in self.spikes
        )

    def _groups(self, number: int) -> Iterator[list[int]]:
        """Yield windows that share a stretch: all where they take no replay, else a few."""
        left = number
        for side in self.ends():
            yield from map(list, grouped(side[:left], self.depth))
            left -= len(side[:left])

    def _searched(self, ends: Sequence[int], limit: float) -> Iterator[NullWindow]:
        """Replay the stretch that holds these windows, and search each of them."""
        first, last = min(ends) - self.length, max(ends)
        stretch = Stretch(
            self.run,
            first - BEFORE,
            last,
            self.control.probes,
            self._on_step,
            witness=False,
            known=self.control.stretch,
            note="to windows without a spike",
        )
        self.replays += stretch.steps > 0
        self.steps += stretch.steps
        for end in ends:
            control = WindowControl(stretch, end - self.length, end, begin=end - self.depth)
            replays = WindowReplays(control, self._on_step)
            influences = own_influences(control)
            if self.depth:
                add_metagradient(influences, control, self._on_step, check=False)
            yield searched(replays, influences, limit, self._group)
            self.replays += replays.replays
            self.steps += replays.steps


def grouped(windows: Sequence[Window], depth: int) -> Iterator[Sequence[Window]]:
    """Yield windows in groups that are judged together: all where they take no replay (depth 0),
    else as few as can decide, then GROUP at a time.
    """
    start, size = 0, FEWEST_FOR_TIMES if depth else len(windows)
    while group := windows[start : start + size]:
        yield group
        start, size = start + size, GROUP


def decided(
    excess_removed: float,
    groups: Iterable[Iterable[NullWindow]],
    depth: int,
    early: bool,
    on_null: Callable[[NullWindows], None] = lambda _: None,
) -> NullWindows:
    """Judge a removal by groups of windows; `early`: no more of them than decide."""
    windows: list[NullWindow] = []
    null = judged(excess_removed, windows, depth)
    for group in groups:
        for window in group:
            windows.append(window)
            null = judged(excess_removed, windows, depth)
            on_null(null)
        beaten = any(window.excess_removed >= excess_removed for window in windows)
        enough = early and len(windows) >= FEWEST_FOR_TIMES
        if enough and (beaten or null.finding == "beyond"):
            break
    return null


def searched(
    replays: WindowReplays, influences: Influences, limit: float, group: str | None = None
) -> NullWindow:
    """Return the most that any set of the search takes away; it ends at `limit`."""
    step, largest = replays.control.last, -math.inf
    for removal in _sets(replays, influences, group):
        removed = replays.excess_removed(removal, f"a window without a spike, to {step}")
        largest = max(largest, removed)
        if largest >= limit:
            return NullWindow(step, largest, complete=False)
    return NullWindow(step, max(largest, 0.0))


def _sets(replays: WindowReplays, influences: Influences, group: str | None) -> Iterator[SlotSet]:
    """Yield every set that the search removes; those that take no replay are as good first."""
    control = replays.control
    window = len(replays.rows(range(control.begin, control.last + 1)))
    ranked = influences.ranked(replays)
    for size in sizes(len(ranked), window):
        yield frozenset(ranked[:size])
    for suspect in suspects(replays, influences, window, group):
        yield frozenset(suspect.slots)


def judged(excess_removed: float, windows: Sequence[NullWindow], depth: int) -> NullWindows:
    """Judge a removal by the rule for causal words: its rank, or TIMES the largest of too few."""
    effect = judge_effect(excess_removed, [window.excess_removed for window in windows], False)
    rule: NullRule = "none"
    if effect.causal and effect.p is not None:
        rule = "rank" if effect.p <= ENOUGH_P else "factor"
    least_p = 1 / (len(windows) + 1)
    return NullWindows(tuple(windows), depth, effect.p, least_p, rule, effect.finding)
