"""What `replay trace` and `replay attention` say of their results, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.cli.console import say, table
from replay import tolerance

if TYPE_CHECKING:
    from replay.step.result import AttentionStudy, StepTrace, TraceEvent

EXACT = {
    True: "It is the recorded step, bit for bit.",
    False: tolerance.not_bitwise("it", "the recorded step") + ".",
    None: "No digest of the step was recorded, so nothing says that it is the same step.",
}


def trace(result: StepTrace, top: int) -> None:
    """Tell the events in order, what moved most, and the update taken apart."""
    from replay.step.trace_conclusion import sentence

    say(sentence(result))
    say(f"Step {result.step} of {result.run}, run again beside step {result.baseline}.")
    say(EXACT[result.exact])
    say(
        f"It ran {_as_the_run_did(result)}: once counted, once timed by the {result.clock}'s clock."
    )
    if result.saved is not None:
        say(f"Its raw gradients and activations are in {result.saved}.")
    say("\nEvents in order; in brackets, times the value of the step before")
    table(
        ["at ms", "ms", "event", "values"],
        [
            _event_row(event)
            for event in result.events
            if event.phase != "update" or event.seconds is not None
        ],
    )
    say("\nWhat changed most against the step before")
    table(
        ["event", "what", "value", "before", "ratio"],
        [
            [change.event, change.what, change.value, change.baseline, change.ratio]
            for change in result.largest[:top]
        ],
    )
    blame = result.layer_blame
    say(
        f"\nUpdate {result.baseline} changed the loss of batch {result.step} by"
        f" {blame.rise_batch:+.4f} nats/token: {blame.memory_batch:+.4f} by what the moments"
        f" carried alone, {blame.data_batch:+.4f} by what the gradient added alone. By tensor: what"
        " its part does alone, and all others without it"
    )
    table(
        ["tensor", "alone", "without"],
        [
            [effect.tensor, effect.alone_batch, effect.without_batch]
            for effect in blame.tensors[:top]
        ],
    )
    say("\nLoss (nats/token) along the update: α = 0 is before it, 1 after it, 2 twice as far")
    table(["α", "batch", "probes"], [[p.alpha, p.batch, p.probe] for p in result.line_scan])


def _event_row(event: TraceEvent) -> list[object]:
    values = "  ".join(
        f"{name} {value:.4g}" + _ratio(event, name)
        for name, value in event.values.items()
        if value is not None
    )
    return [_ms(event.start), _ms(event.seconds), event.name, values]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 2)


def _as_the_run_did(result: StepTrace) -> str:
    words = ["compiled" if result.compiled else "eagerly"]
    return " and ".join([*words, *(["recomputing activations"] if result.recomputed else [])])


def _ratio(event: TraceEvent, name: str) -> str:
    ratio = event.ratio.get(name)
    return f" ({ratio:.2f}×)" if ratio else ""


def attention(study: AttentionStudy, top: int) -> None:
    """Tell which heads moved their attention most, and what the logit lens reads."""
    if False in study.exact:
        say(tolerance.limits(tolerance.A_STATE, "the recorded one"))
    say(
        f"Sequence {study.sequence} (slot {study.slot} of batch {study.step}) of {study.run}, read"
        f" by the model of states {', '.join(map(str, study.states))}."
    )
    first, *later = study.states
    say(
        "\nBy head: the largest attention logit, and the share of the attention that is elsewhere"
        f" than at state {first}"
    )
    heads = sorted(study.heads, key=lambda head: -max(head.moved))[:top]
    table(
        ["head", *(f"logit @{s}" for s in study.states), *(f"moved @{s}" for s in later)],
        [[f"L{head.layer}.H{head.head}", *head.logit_max, *head.moved[1:]] for head in heads],
    )
    if study.lens_loss:
        layers = [f"L{layer}" for layer in range(len(study.lens_loss[0]) - 1)]
        say("\nLogit lens: loss (nats/token) if the model stopped after the embedding or a layer")
        table(
            ["state", "embedding", *layers],
            [[state, *losses] for state, losses in zip(study.states, study.lens_loss)],
        )
    elif study.why:
        say(f"\nNo logit lens: {study.why}.")
    say(f"\nThe patterns of all heads are kept in {study.file}.")
