"""What is said of a step that is not finite, made from its numbers."""

from __future__ import annotations

from dataclasses import replace

from replay.blame.nonfinite.result import NonFiniteProof, NonFiniteResult, Place
from replay.blame.sentences import cause

NAMED = 2  # documents that a sentence names


def sentence(result: NonFiniteResult) -> NonFiniteResult:
    """Return the result with its sentence."""
    words = [cause(result.verdict), _begins(result)]
    if result.place is not None:
        words.append(place_sentence(result.place, len(result.sequences)))
    words.append(_follows(result))
    return replace(result, sentence=" ".join(word for word in words if word))


def _begins(result: NonFiniteResult) -> str:
    noun = {"loss": "loss", "grad_norm": "gradient norm"}[result.of]
    recorded = f"The {noun} of step {result.spike} was recorded as {result.value}"
    if result.first_step is None:
        return f"{recorded}."
    if result.first_step == result.spike:
        return f"{recorded}; every step before it is finite."
    return f"{recorded}, because step {result.first_step} is not finite already."


def place_sentence(place: Place, sequences: int) -> str:
    """Say where the first number is that is not finite."""
    element = f", element {list(place.element)}" if place.element else ""
    if place.slot is None:
        return f"The first number that is not finite is {place.value} in {place.tensor}{element}."
    document = f" of {place.document.path} ({place.document.source})" if place.document else ""
    many = f" {sequences} sequences of the batch are not finite." if sequences > 1 else ""
    return (
        f"The first number that is not finite is {place.value} in {place.tensor} at token"
        f" {place.position} ({place.text!r}) of slot {place.slot}{document}{element}.{many}"
    )


def _follows(result: NonFiniteResult) -> str:
    match result.reason:
        case "no finite state before it":
            return f"No saved state up to {result.spike} is finite, so nothing can be replayed."
        case "the replay is finite":
            return (
                "The replay is finite up to there: suspect the hardware or the numerics of that"
                " step. Nothing is said about the data."
            )
        case "interrupted":
            return "It was interrupted before that could be told."
        case "no other data":
            return "There are no other sequences to put in their place, so nothing can be told."
    words = [_proof(result.proof) if result.proof else "", _other_data(result)]
    if result.other_state is not None:
        finite = "is finite" if result.other_state.finite else "is not finite either"
        words.append(f"{result.other_state.what.capitalize()} {finite}.")
    if result.policy is not None:
        finite = "it is finite" if result.policy.finite else "it is not finite either"
        words.append(f"With {result.policy.what} {finite}.")
    if not result.complete:
        words.append("The search ended at its budget of replays: the set may not be the smallest.")
    return " ".join(word for word in words if word)


def _proof(proof: NonFiniteProof) -> str:
    count, steps = len(proof.removal), sorted({slot.step for slot in proof.removal})
    plural, batches = "s" * (count != 1), ", ".join(map(str, steps))
    names = [f"{d.path} ({d.source})" for d in proof.documents[:NAMED]]
    more = len(proof.documents) - len(names)
    names += [f"{more} other document{'s' * (more != 1)}"] if more else []
    with_text = f" with text of {' and '.join(names)}" if names else ""
    slots = ", ".join(str(slot.slot) for slot in proof.removal)
    where = f"slot{plural} {slots} of batch {batches}" if len(steps) == 1 else f"batches {batches}"
    every = "each of" if proof.exhaustive else "N ="
    p = "" if proof.exhaustive or proof.p is None else f", p = {proof.p:.2g}"
    return (
        f"With other sequences in place of {count} ({where}{with_text}) the step is finite, in"
        f" {1 + proof.again} of {1 + proof.draws} draws; in place of {count} others instead it is"
        f" in {proof.others_finite} ({every} {proof.others} other set{'s' * (proof.others != 1)}"
        f"{p})."
    )


def _other_data(result: NonFiniteResult) -> str:
    trials = result.other_data
    if not trials or result.proof is not None:
        return ""
    finite = sum(trial.finite for trial in trials)
    words = trials[0].what.partition(", draw")[0]
    return f"With {words} it is finite in {finite} of {len(trials)} draws."
