"""Every number by which blame decides, with its unit; docs/formulas.md, "Blame", gives the reasons.

A result carries all of them (`rules`), so that it can be read without this file.
"""

from __future__ import annotations

from dataclasses import dataclass

from replay.compare.null_test import (
    ENOUGH_P,
    FEWEST_FOR_TIMES,
    STRICT_P,
    TIMES,
    TIMES_AT_P,
)

# what is explained
SIGMAS = 6.0
HEIGHT_FACTOR = 2.0
PROBES = 32
# where causes are looked for
WINDOW = 16
LONGEST = 64
CALM_BAND = 3.0
CALM_STEPS = 5
BEFORE = 8
AFTER = 3
RISEN = 0.05
MARGIN = 2
NEGLIGIBLE = 0.05
# what takes the spike away
AWAY = 0.75
HALF = 0.5
SHARE = 0.5
SINGLE = 3
TOGETHER = (2, 4, 8)
SPAN = 8
BUDGET = 200
RESCUE = 80
# what it is held against
NULL_WINDOWS = 19
RANDOM_REMOVALS = 3
LEAD = 1.0
# what tells data from state and policy
OTHERS = 3
JUMP = 1.5
LONG = 0.98
PAST = 32
STALE = 1.5
EARLIER = (16, 48, 112)
TRUSTED = 0.1


@dataclass(frozen=True)
class Rule:
    """A number by which blame decides."""

    name: str
    value: float
    unit: str


RULES: tuple[Rule, ...] = (
    Rule("SIGMAS", SIGMAS, "σ above an ordinary batch that make a spike"),
    Rule("HEIGHT_FACTOR", HEIGHT_FACTOR, "× between the excess and the recorded height, at most"),
    Rule("PROBES", PROBES, "sequences on which the model is measured"),
    Rule("WINDOW", WINDOW, "steps before the spike that are looked at, at least"),
    Rule("LONGEST", LONGEST, "steps back to where the run was calm, at most"),
    Rule("CALM_BAND", CALM_BAND, "σ above the baseline up to which a loss is calm"),
    Rule("CALM_STEPS", CALM_STEPS, "calm losses in a row that make a calm run"),
    Rule("BEFORE", BEFORE, "steps before the window that tell an ordinary batch"),
    Rule("AFTER", AFTER, "steps after it in which an inexact control may spike"),
    Rule("RISEN", RISEN, "of the state part, above which the probes' loss has begun to rise"),
    Rule("MARGIN", MARGIN, "steps before that which are gone into"),
    Rule("NEGLIGIBLE", NEGLIGIBLE, "of the excess, below which the state part is not gone into"),
    Rule("AWAY", AWAY, "of the excess, whose going takes the spike away"),
    Rule("HALF", HALF, "of the excess, with which it still spikes"),
    Rule("SHARE", SHARE, "of the window's sequences, the most that may be a cause"),
    Rule("SINGLE", SINGLE, "leading documents removed each by itself"),
    Rule("TOGETHER", max(TOGETHER), "leading documents removed together, at most"),
    Rule("SPAN", SPAN, "targets of bisection's shortest span"),
    Rule("BUDGET", BUDGET, "replays of a bisection"),
    Rule("RESCUE", RESCUE, "replays of a bisection where influences find nothing"),
    Rule("NULL_WINDOWS", NULL_WINDOWS, "windows without a spike, at most"),
    Rule("STRICT_P", STRICT_P, "p that is enough by itself"),
    Rule("ENOUGH_P", ENOUGH_P, "p that is enough far enough beyond the largest of them"),
    Rule("TIMES_AT_P", TIMES_AT_P, "× the largest of them, which is far enough at that p"),
    Rule("TIMES", TIMES, "× the largest of them, which is enough where p is not"),
    Rule("FEWEST_FOR_TIMES", FEWEST_FOR_TIMES, "windows that this needs"),
    Rule("RANDOM_REMOVALS", RANDOM_REMOVALS, "random removals that take steps"),
    Rule("LEAD", LEAD, "× their range, by which a set leads the best of them"),
    Rule("OTHERS", OTHERS, "draws of other data"),
    Rule("JUMP", JUMP, "× the learning rate before, from which it has changed"),
    Rule("LONG", LONG, "β₂ from which second moments can be out of date"),
    Rule("PAST", PAST, "steps before the window that tell a usual staleness"),
    Rule("STALE", STALE, "× its usual staleness, from which a tensor is out of date"),
    Rule("EARLIER", max(EARLIER), "steps before the window from which it is tried again, at most"),
    Rule("TRUSTED", TRUSTED, "relative error up to which influences are believed"),
)
