"""The sentences about a finished fork: what became of the spikes, its effect, its control."""

from __future__ import annotations

import math

from app import formatting, safe_html
from app.safe_html import Part, code, strong
from replay.compare.null_test import FEWEST_FOR_TIMES, TIMES, TIMES_AT_P
from replay.forks import sentences
from replay.forks.result import ForkEnd, ForkResult, LossGap

RULE = (
    "A placebo does the same where other data of the run stands in the same places, beside its own"
    " control. “Because of” may be said of a fork only at p ≤ 0.01; at p ≤ 0.05 (19 placebos or"
    f" more) where it ends at least {TIMES_AT_P:g} times as far from its control as the farthest"
    f" placebo; or, with {FEWEST_FOR_TIMES} placebos or more, at least {TIMES:g} times as far."
)
NOTHING_TOLD = "Without placebos nothing tells an effect from chaos."
OUTCOMES = {
    "beyond": "an effect beyond the placebos",
    "unusual": "as unusual as the placebos can show, but not far enough beyond them",
    "not distinguishable": "not distinguishable from the placebos",
    "too few": "too few placebos to tell",
    "none run": "no placebo was run, so no effect is claimed",
    "none exist": "no placebo exists for it, so no effect is claimed",
}
MEASURES = {"logit_kl": "KL divergence on the probe set", "l2": "L2 distance of the parameters"}


def title_of(result: ForkResult) -> list[Part]:
    """Say what the fork does and whether the parent's spikes happen in it, else its finding.

    Of a spike at which the fork has no loss nothing is said, and nothing of any where the control
    lacks it too.
    """
    spikes = [spike for spike in result.spikes if spike.loss is not None]
    judged = [spike for spike in spikes if spike.happens is not None]
    gone = [spike for spike in judged if not spike.happens]
    if result.control.level == "absent":
        outcome = "no verdict, because the control does not show the parent's spike"
    elif len(judged) == 1 or (gone and len(gone) == len(judged)):
        verb = "still happens" if judged[0].happens else "does not happen"
        outcome = f"the spike at step {formatting.count(judged[0].step)} {verb}"
    elif judged:
        outcome = (
            f"{len(gone)} of {len(judged)} spikes {'does' if len(gone) == 1 else 'do'} not happen"
        )
    else:
        outcome = OUTCOMES[result.final.finding]
    return [
        f"Fork of {result.parent} at state {formatting.count(result.first)}, which ",
        result.does,
        f": {outcome}",
    ]


def sentence_of(result: ForkResult) -> list[Part]:
    """Say what became of the spikes, effect, p and N, the way back to the placebos, the loss on
    both sets, and the control.
    """
    spoken_of = [f"{sentence} " for sentence in sentences.spikes(result)]
    return [*spoken_of, *_effect(result), *_losses(result.final), *_control(result)]


def _effect(result: ForkResult) -> list[Part]:
    final, window = result.final, result.last - result.first
    end = f"At state {formatting.count(result.last)} "
    outcome = "no verdict" if result.control.level == "absent" else OUTCOMES[final.finding]
    if not final.placebos:
        distance = final.logit_kl if final.measure == "logit_kl" else final.l2
        return [
            f"{end}the fork's {MEASURES[final.measure]} from the control is"
            f" {formatting.number(distance)}; ",
            strong(outcome),
            ". ",
        ]
    if final.effect is None or not math.isfinite(final.effect):
        size: list[Part] = [f"{end}the placebos end where the control does ({end_of(final)})"]
    else:
        size = [
            f"{end}the fork is ",
            strong(formatting.ratio(final.effect)),
            f" as far from the control as the median placebo ({end_of(final)})",
        ]
    back: list[Part] = (
        [
            "It is back among the placebos after ",
            strong(formatting.steps(result.time_to_reconverge)),
            ". ",
        ]
        if result.time_to_reconverge is not None
        else [
            "It does not come back among the placebos within the ",
            strong(formatting.steps(window)),
            " of the fork. ",
        ]
    )
    probability = f", p = {formatting.number(final.p)} with {_placebos(final.placebos)}: "
    return [*size, probability, strong(outcome), ". ", *back]


def end_of(final: ForkEnd) -> str:
    """Name what the effect is measured by."""
    return MEASURES[final.measure]


def _placebos(n: int) -> str:
    return f"{n} {'placebo' if n == 1 else 'placebos'}"


def _losses(final: ForkEnd) -> list[Part]:
    if final.gap is None:
        return []
    sentence: list[Part] = [
        f"Probe loss at the end: {formatting.loss(final.loss_control)} in the control,"
        f" {formatting.loss(final.loss_fork)} in the fork, a difference of ",
        strong(gap_with_error(final)),
        f" nats/token over {final.probe_sequences} held-out sequences",
    ]
    if final.unseen.sequences:
        sentence += [
            f"; {gap_with_error(final.unseen)} over {final.unseen.sequences} sequences that neither"
            " has trained on"
        ]
    if final.loss_change is not None:
        sentence += [". ", sentences.change(final.loss_change).removesuffix(".")]
    return [*sentence, ". "]


def gap_with_error(losses: LossGap) -> str:
    """Write fork − control with its standard error."""
    error = f" ± {formatting.loss(losses.loss_error)}" if losses.loss_error is not None else ""
    return formatting.gap(losses.gap) + error


def _control(result: ForkResult) -> list[Part]:
    control = result.control
    if control.bitwise:
        return ["The unaltered control equals the parent ", strong("bit for bit ✓"), "."]
    return [
        "The unaltered control equals the parent only within a tolerance (",
        strong(control.level),
        ").",
    ]


def draw_verdict(result: ForkResult) -> None:
    """Draw the sentences, then what limits them."""
    limits = [f"{sentence} " for sentence in sentences.limits(result)]
    safe_html.verdict(
        title_of(result),
        *sentence_of(result),
        hedge=[*limits, RULE if result.final.placebos else f"{NOTHING_TOLD} {RULE}"],
    )
    if not result.control.bitwise:
        safe_html.amber(
            strong("Tolerance only. "),
            "The control is not the parent bit for bit, so every number here holds within that "
            "gap: ",
            result.control.sentence,
            ".",
        )
    if result.control.level == "absent":
        safe_html.amber(
            "The control does not show the parent's spike, so nothing is said about data: suspect"
            " hardware or numerics."
        )


def draw_difference(result: ForkResult) -> None:
    """Draw what fork and control differ by, and where they part."""
    safe_html.heading("What differs")
    safe_html.note(
        code(result.fork),
        " left ",
        code(result.parent),
        f" at state {formatting.count(result.first)} and ran to {formatting.count(result.last)}: ",
        result.does,
        ".",
    )
    where = result.first_difference
    if where is not None:
        safe_html.note(
            "The first number that differs from the control: step ",
            strong(formatting.count(where.step)),
            ", ",
            code(where.tensor),
            f", element {formatting.count(where.element)}.",
        )
    safe_html.note("Control: ", result.control.sentence, ".")
    heights = [barrier for barrier in result.barriers if barrier.arm == "fork"]
    if heights:
        safe_html.heading("Loss barrier on the line from the control to the fork")
        safe_html.frame(
            [
                {
                    "state": barrier.step,
                    "height, nats": barrier.height,
                    "highest at α": barrier.alpha,
                }
                for barrier in heights
            ]
        )
