"""What a matrix found, in words: made from the fields of its record, for commands and pages.

headline(result)        # "Above all the data: batch 401 is 1.66 nats/token …"
"""

from __future__ import annotations

from collections.abc import Callable

from replay.compare.null_test import ENOUGH_P
from replay.experiments.results import TESTS, MatrixEffects, MatrixResult, Part, PartEffect

NAMES: dict[Part, str] = {"data": "the batch", "state": "the state", "interaction": "the pair"}
UNIT = "nats/token"


def headline(result: MatrixResult) -> str:
    """Say what the rise at the judged state is made of, or why that cannot be told."""
    effects, conclusion = result.effects[result.conclusion.measure], result.conclusion
    first, last = result.batches
    if conclusion.verdict == "cannot tell" or effects is None:
        why = {
            "not finite": (
                "a cell is not finite, or there is no state beside the judged one, so nothing can"
                " be taken apart"
            ),
            "too few to show": (
                f"with {len(result.states) - 1} other states and {result.placebos} placebo batches"
                " not every part could have been shown, and of those that could none is"
            ),
            "no p is small enough": (
                f"no p of batches {first}:{last}, of state {result.states[-1]} or of the two"
                f" together is small enough ({ENOUGH_P} after correction for {TESTS})"
            ),
            "shown": "",
        }[conclusion.reason]
        return f"Cannot tell data from state: {why}."
    parts = {effect.part: effect for effect in effects.parts}
    sentences = [_SAID[name](parts[name], effects) for name in conclusion.parts]
    title = {
        "data": "Cause: the data.",
        "state": "Cause: the state.",
        "interaction": "Cause: this batch with this state, neither alone.",
        "several": "Causes: " + " and ".join(NAMES[name] for name in conclusion.parts) + ".",
        "cannot tell": "",
    }[conclusion.verdict]
    if conclusion.measure == "jump":
        title += " By the probe loss after one step, for the batch's own loss tells nothing:"
    return " ".join([title, *sentences])


def _data(part: PartEffect, effects: MatrixEffects) -> str:
    return (
        f"Batch {part.step} is {part.rise:+.3g} {UNIT} above the placebo batches at the states"
        f" beside {effects.judged} too ({_p(part)})."
    )


def _state(part: PartEffect, effects: MatrixEffects) -> str:
    return (
        f"At state {effects.judged} the placebo batches too have risen by {part.rise:+.3g} {UNIT}"
        f" since the state before it ({_p(part)})."
    )


def _interaction(part: PartEffect, effects: MatrixEffects) -> str:
    return (
        f"Batch {part.step} is {part.rise:+.3g} {UNIT} higher at state {effects.judged} than the"
        f" batch at other states and other batches at this state account for ({_p(part)})."
    )


_SAID: dict[Part, Callable[[PartEffect, MatrixEffects], str]] = {
    "data": _data,
    "state": _state,
    "interaction": _interaction,
}


def _p(part: PartEffect) -> str:
    return f"p = {part.p:.2g}"


def beside_blame(result: MatrixResult) -> str:
    """Say how the matrix stands to the kept blame of the same spike; empty where there is none."""
    blame = result.blame
    if blame is None:
        return ""
    text = f"`replay blame` of step {blame.step} says: {blame.verdict}."
    why = {
        "agree": "The two agree.",
        "one cannot tell": "They do not contradict each other: one of them cannot tell.",
        "the state was made before it": (
            f"Both can be true: blame's excess is {blame.state:+.3g} nats of state and"
            f" {blame.data:+.3g} of the batch, and it looks for what made the state before the"
            " spike; the matrix finds that state worse."
        ),
        "blame tries more": (
            "Both can be true: blame also replays other optimizer moments and another policy, and a"
            " batch's loss before the update, which the matrix measures, does not feel them."
        ),
        "they differ": (
            f"They differ: blame measures {blame.data:+.3g} nats of batch and {blame.state:+.3g} of"
            f" state from replays of the window, the matrix against {result.placebos} placebo"
            f" batches and {len(result.states) - 1} other states. Read both before either is"
            " believed."
        ),
    }[blame.comparison]
    return f"{text} {why}"
