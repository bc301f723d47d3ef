"""What a finished fork shows, in sentences made from its fields: for the terminal and the pages."""

from __future__ import annotations

from collections.abc import Iterator

from replay.compare.null_test import ENOUGH_P, Change
from replay.compare.spike_outcomes import NEAR, SpikeOutcome
from replay.forks.result import ForkEnd, ForkResult

MEASURES = {"logit_kl": "KL", "l2": "L2"}
PLACEBOS_FOR_ENOUGH = round(1 / ENOUGH_P) - 1  # 19: fewer cannot reach p ≤ 0.05


def spikes(result: ForkResult) -> Iterator[str]:
    """Say of each spike of the window whether it happens in the fork; of none, where the control
    does not show what the parent recorded.
    """
    if result.control.level == "absent":
        return
    for outcome in result.spikes:
        yield _spike(outcome)


def _spike(outcome: SpikeOutcome) -> str:
    if outcome.loss is None:
        return (
            f"The fork has a spike of its own at step {outcome.step}: loss"
            f" {outcome.fork_loss:.3f} nats/token, {outcome.sigma:.1f}σ above the steps before."
        )
    spike = f"The spike at step {outcome.step} (loss {outcome.loss:.3f} nats/token"
    spike += f", {outcome.baseline:.3f} before it)" if outcome.baseline is not None else ")"
    if outcome.happens is None:
        return f"{spike}: the fork computes no loss there, so whether it happens is not known."
    verb = "still happens" if outcome.happens else "does not happen"
    return (
        f"{spike} {verb} in the fork, whose highest loss within {NEAR} steps of it is"
        f" {outcome.fork_loss:.3f}."
    )


def change(change: Change) -> str:
    """Say where the placebos' loss went, and how many ended below and above the fork."""
    low, high = min(change.placebos), max(change.placebos)
    N = len(change.placebos)
    if change.higher == N:
        beside = f"The fork is lower than {_all(N)}"
    elif change.lower == N:
        beside = f"The fork is higher than {_all(N)}"
    else:
        beside = f"{change.lower} end below the fork, {change.higher} above"
    placebos = "The placebo ends" if N == 1 else f"The {N} placebos end"
    return f"{placebos} at {low:+.4f} to {high:+.4f}. {beside} (two-sided p = {change.p:.2g})."


def _all(N: int) -> str:
    return "it" if N == 1 else "all of them"


def verdict(result: ForkResult) -> Iterator[str]:
    """Say the verdict, the p it rests on, and what this many placebos could show at best."""
    end = result.final
    if end.effect is None or end.p is None or end.p_corrected is None:
        yield f"Verdict: {end.verdict}."
    else:
        yield (
            f"Verdict: {end.verdict}. The fork's {MEASURES[end.measure]} is {end.effect:.3g} times"
            f" the placebos' median, p = {end.p:.2g}; p = {end.p_corrected:.2g} for distance and"
            " loss together."
        )
    yield from limits(result)


def limits(result: ForkResult) -> Iterator[str]:
    """Say what N placebos could show at best, and what chaos forks tell."""
    end = result.final
    if 0 < end.placebos < result.placebos_asked:
        yield (
            f"{result.placebos_asked} placebos were asked for; {end.placebos} that differ from one"
            " another could be drawn."
        )
    if end.least_p is not None and end.least_p > ENOUGH_P:
        yield (
            f"{end.placebos} placebo{'s' * (end.placebos != 1)} can show p = {end.least_p:.2g} at"
            f" best; --placebos {PLACEBOS_FOR_ENOUGH} can show {ENOUGH_P:g}."
        )
    yield from _chaos(end)


def _chaos(end: ForkEnd) -> Iterator[str]:
    if end.chaos is None:
        return
    forks = "1 chaos fork" if end.chaos.forks == 1 else f"{end.chaos.forks} chaos forks"
    ratio = (
        f"{end.l2 / end.chaos.largest:.3g} times the largest of"
        if end.chaos.largest > 0
        else f"{end.l2:.3g}, against 0 of"
    )
    meaning = (
        "That tells it from rounding; of its data it tells nothing"
        if end.l2 > end.chaos.largest
        else "Rounding alone goes as far"
    )
    yield (
        f"The fork's L2 is {ratio} {forks}, whose start was moved by the smallest noise there is."
        f" {meaning}."
    )


def back(result: ForkResult) -> Iterator[str]:
    """Say when the fork is back among its placebos, and among the chaos forks."""
    window = result.last - result.first
    for nulls, steps, censored in (
        ("placebos", result.time_to_reconverge, result.censored),
        ("chaos forks", result.time_to_reconverge_chaos, result.censored_chaos),
    ):
        if steps is not None:
            yield f"The fork is back among the {nulls} after {steps} steps."
        elif censored:
            yield f"The fork is not back among the {nulls} within its window ({window} steps)."
