"""What an ablation found: the differences, the runs that take them over, and what each changes."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from forensics.result_records import ResultRecord

Measure = Literal["spike_score", "loss_spike_score", "grad_norm_slope", "final_loss", "held_out"]


class MeasureText(NamedTuple):
    """A measure's name and unit in sentences and over columns."""

    title: str
    unit: str


@dataclass(frozen=True)
class Difference:
    """One key in which the two recipes differ, every default and family knob filled in."""

    key: str  # dotted
    a: Any
    b: Any
    # why no arm takes it over by itself; empty: one does
    not_varied: str


@dataclass(frozen=True)
class AblationArm:
    """One run: recipe A with the keys of `changed` taken from B."""

    changed: tuple[str, ...]  # empty: A itself; all that are varied: B
    seed: int
    run: str  # its name; "" where the recipe is refused
    spike_score: float | None  # of the gradient norm, percent of the steps judged (OLMo 2's)
    loss_spike_score: float | None  # of the loss
    grad_norm_slope: float | None  # of ln ‖g‖ after the warm-up, per 1,000 steps
    final_loss: float | None  # nats per token, mean of the last ten steps
    held_out: float | None  # held-out loss at the end, nats per token
    diverged: bool | None  # None: the recipe is refused
    refused: str  # why this combination is no recipe; empty: it was trained


@dataclass(frozen=True)
class AblationEffect:
    """What taking a change over does to one measure, against A with the same seed."""

    changed: tuple[str, ...]
    measure: Measure
    seeds: int  # pairs of runs of which both have the measure
    median: float
    low: float  # the smallest and largest over the seeds
    high: float
    beyond_sum: float | None  # of several changes: median − the sum of what each does alone
    p: float | None  # two-sided, corrected for the number of changes; None: one seed shows none
    least_p: float | None  # the smallest that so many runs could give
    # shown: p times the number of measures is at most 0.05
    finding: Literal["shown", "not shown", "no p"]


@dataclass(frozen=True)
class AblationResult(ResultRecord):
    """The runs between two recipes."""

    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "ablation"
    AGAIN: ClassVar[str] = "run `forensics ablate` again"

    a: str  # names of the recipes
    b: str
    steps: int
    seeds: int
    pairs: bool
    differences: tuple[Difference, ...]
    arms: tuple[AblationArm, ...]
    effects: tuple[AblationEffect, ...]
    notes: tuple[str, ...]


SHOWN_P = 0.05  # over all measures and single changes, from which down an effect is called shown
SHUFFLES = 10_000  # of who is who within a seed: p is then known to about 0.002 near 0.05
TIE = 1e-9  # relative: sums of the same numbers in another order count as equal

MEASURES: dict[Measure, MeasureText] = {
    "spike_score": MeasureText("spike score of the gradient norm", "% of steps"),
    "loss_spike_score": MeasureText("spike score of the loss", "% of steps"),
    "grad_norm_slope": MeasureText("slope of the log gradient norm", "per 1,000 steps"),
    "final_loss": MeasureText("loss (mean of the last ten steps)", "nats"),
    "held_out": MeasureText("held-out loss at the end", "nats"),
}


def effects_of(arms: Sequence[AblationArm]) -> list[AblationEffect]:
    """Compare every change with A, seed by seed: one effect for each change and measure.

    p: if no change did anything, the runs of one seed could be exchanged. Of A and all single
    changes, who is who is shuffled within every seed, and the largest |mean gap| to A of any change
    is compared with the one seen: corrected for the number of changes, exact whatever the
    distribution (Westfall and Young 1993, step-down: the largest is judged among all, the next
    among the rest, and no p is below one before it). Two changes together, and all of them, are
    held against A alone. A small effect beside a large noisy one is hard to show.
    """
    base = {arm.seed: arm for arm in arms if not arm.changed}
    changes = list(dict.fromkeys(arm.changed for arm in arms if arm.changed))
    singles = single_changes(changes)
    by_change = {(arm.changed, arm.seed): arm for arm in arms}
    effects: list[AblationEffect] = []
    for measure in MEASURES:
        gaps = {
            changed: _gaps([(base[seed], by_change[changed, seed]) for seed in base], measure)
            for changed in changes
        }
        median = {changed: float(np.median(g)) for changed, g in gaps.items() if len(g)}
        p_of = _p_values(by_change, sorted(base), singles, measure)
        for changed in median:
            if changed not in singles:
                p_of |= _p_values(by_change, sorted(base), [changed], measure)
            parts = [subset for subset in singles if set(subset) < set(changed)]
            beyond = (
                median[changed] - sum(median[subset] for subset in parts)
                if len(parts) > 1 and all(subset in median for subset in parts)
                else None
            )
            p_value = p_of.get(changed, _NO_P)
            effects.append(
                AblationEffect(
                    changed,
                    measure,
                    len(gaps[changed]),
                    median[changed],
                    float(gaps[changed].min()),
                    float(gaps[changed].max()),
                    beyond,
                    p_value.p,
                    p_value.least,
                    "no p",
                )
            )
    return _judged(effects)


def _judged(effects: Sequence[AblationEffect]) -> list[AblationEffect]:
    """Say of each effect whether it is shown, corrected for the number of measures (Bonferroni)."""
    measures = len({effect.measure for effect in effects if effect.p is not None})
    return [
        effect
        if effect.p is None
        else dataclasses.replace(
            effect, finding="shown" if effect.p * measures <= SHOWN_P else "not shown"
        )
        for effect in effects
    ]


def single_changes(changes: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the changes that hold no other change."""
    return [c for c in changes if not any(set(smaller) < set(c) for smaller in changes)]


def _gaps(pairs: Sequence[tuple[AblationArm, AblationArm]], measure: Measure) -> np.ndarray:
    """Return after − before of each pair in which both are finite."""
    values = [(getattr(before, measure), getattr(after, measure)) for before, after in pairs]
    return np.array([b - a for a, b in values if _finite(a) and _finite(b)])


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


class _P(NamedTuple):
    p: float | None
    least: float | None  # the smallest that these runs could give


_NO_P = _P(None, None)


def _p_values(
    arms: dict[tuple[tuple[str, ...], int], AblationArm],
    seeds: Sequence[int],
    changes: Sequence[tuple[str, ...]],
    measure: Measure,
) -> dict[tuple[str, ...], _P]:
    """Return each change's p among `changes`, over the seeds whose every run has the measure."""
    columns = [(), *changes]
    rows = [[getattr(arms[changed, seed], measure) for changed in columns] for seed in seeds]
    complete = [row for row in rows if all(map(_finite, row))]
    if len(complete) < 2 or not changes:
        return {}
    values_SC = np.array(complete, np.float64)
    shares = _sign_share(values_SC) if len(changes) == 1 else _step_down(values_SC)
    return {
        changed: _P(share, _least_p(len(values_SC), len(changes)))
        for changed, share in zip(changes, shares)
    }


def _least_p(S: int, C: int) -> float:
    """Return the smallest p of C changes over S seeds.

    A and the change keep their places, or exchange them, in every seed; any of the C may be it.
    """
    least = 2 * C * float((C + 1) * C) ** -S
    return least if C == 1 else max(least, 1 / (1 + SHUFFLES))


def _sign_share(values_S2: np.ndarray) -> list[float]:
    """Return the p of one change: every exchange of the two runs of a seed is a sign."""
    gaps_S = values_S2[:, 1] - values_S2[:, 0]
    flips_FS = np.array(list(itertools.product((1.0, -1.0), repeat=len(gaps_S))))
    means_F = np.abs(flips_FS @ gaps_S)
    return [float((means_F >= abs(gaps_S.sum()) * (1 - TIE)).mean())]


def _step_down(values_SC: np.ndarray) -> list[float]:
    """Return each change's p, the largest first: each is judged among those not yet judged."""
    seen_C = _mean_gaps(values_SC)
    shares = np.ones(len(seen_C))
    before = 0.0
    order = np.argsort(-seen_C, kind="stable")
    for place, change in enumerate(order):
        columns = [0, *(order[place:] + 1)]
        shuffled = np.random.default_rng(0).permuted(
            np.broadcast_to(values_SC[:, columns], (SHUFFLES, len(values_SC), len(columns))), axis=2
        )
        largest = np.abs((shuffled[:, :, 1:] - shuffled[:, :, :1]).mean(axis=1)).max(axis=1)
        count = int((largest >= seen_C[change] * (1 - TIE)).sum())
        before = max(before, (1 + count) / (1 + SHUFFLES))
        shares[change] = before
    return shares.tolist()


def _mean_gaps(values_SC: np.ndarray) -> np.ndarray:
    """Return |mean over the seeds of change − A|: (C,); column 0 is A."""
    return np.abs((values_SC[:, 1:] - values_SC[:, :1]).mean(axis=0))
