"""What `forensics spikes` says of its result, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.cli.console import say, table

if TYPE_CHECKING:
    from forensics.detect.trend import NormTrend
    from replay.first_bad_step import FirstBadStep
    from replay.spike_list import SpikeList

RULES = {
    "robust": "above the band of the {window} values before",
    "monitor": "above the mean of the {window} values before",
    "skip-step": "of loss or gradient norm above the mean of the {window} values before, where"
    " SkipStep would hold the update",
}
COLUMNS = {
    "step": "step",
    "metric": "metric",
    "kind": "kind",
    "value": "value",
    "baseline": "expected",
    "sigma": "σ above",
    "onset": "began at",
    "recovered_at": "back to normal at",
}


def tell_spikes(listed: SpikeList) -> None:
    """Tell the spikes, how many steps could be judged, the spike score and the trend."""
    count = len(listed.spikes)
    rule = f"{listed.threshold:g}σ {RULES[listed.detector].format(window=listed.window)}"
    if count:
        say(f"{listed.run} has {count} spike{'s' * (count != 1)}: {rule}.")
        table(
            list(COLUMNS.values()),
            [[getattr(spike, key) for key in COLUMNS] for spike in listed.spikes],
        )
    elif listed.judged:
        say(f"{listed.run} has no spike: nothing is {rule}.")
    say(_judged(listed))
    if listed.every > 1:
        say(
            f"It has a row every {listed.every:,} steps: windows and counts are of rows, and no"
            " spike's kind can be told."
        )
    score = listed.spike_score
    for share, words in ((score.loss, "loss"), (score.grad_norm, "gradient norm")):
        told = (
            f"{share:.2f}% of {score.n} {_rows(listed)} lie at least 7 standard deviations from the"
            " mean of"
            " those before"
            if share is not None
            else "none, it needs 128 steps before a step"
        )
        say(f"Spike score of the {words}: {told}.")
    say(trend_sentence(listed.trend.grad_norm))


def tell_first_bad(result: FirstBadStep) -> None:
    """Tell the first bad step and what was far out there."""
    looked = f"{result.series} series over the steps {result.first} to {result.last - 1}"
    if result.found is None:
        say(f"{result.run} has no bad step: of {looked}, never many were far out together.")
        return
    found = result.found
    say(
        f"The first bad step of {result.run} is {found.step}: {found.out} of {found.judged} series"
        f" are 6 scales or more off what the values before let one expect ({looked} were read)."
    )
    table(
        ["series", "value", "before", "scales off"],
        [[moved.name, moved.value, moved.level, moved.scales] for moved in found.moved],
    )


def _judged(listed: SpikeList) -> str:
    """Say of how many steps it can be told whether they are spikes."""
    if not listed.judged:
        return (
            f"None of its {listed.steps} {_rows(listed)} could be judged: that takes"
            f" {listed.fewest} values before a step, and only NaN and infinity are told without"
            " them."
        )
    return (
        f"{listed.judged} of its {listed.steps} {_rows(listed)} have the {listed.fewest} values"
        " before them"
        " that it takes to be judged."
    )


def _rows(listed: SpikeList) -> str:
    return "steps" if listed.every == 1 else "recorded steps"


def trend_sentence(norm: NormTrend) -> str:
    """Say how the gradient norm changed over the steps that there are, and not beyond them."""
    if norm.change is None or norm.change_low is None or norm.change_high is None:
        return "Trend of the gradient norm: too few steps after the warm-up."
    span = f"from step {norm.first} to {norm.last}"
    interval = f"95 % interval {100 * norm.change_low:+.1f} to {100 * norm.change_high:+.1f} %"
    if norm.change_low <= 0 <= norm.change_high:
        return f"Trend of the gradient norm: none that stands out {span} ({interval})."
    return f"Trend of the gradient norm: {100 * norm.change:+.1f} % {span} ({interval})."
