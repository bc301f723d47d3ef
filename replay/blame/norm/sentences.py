"""What is said of a spike of the gradient norm, made from its numbers."""

from __future__ import annotations

from dataclasses import replace

from replay.blame.norm.result import NormBlameResult, NormProof
from replay.blame.sentences import cause


def sentence(result: NormBlameResult) -> NormBlameResult:
    """Return the result with its sentence."""
    words = [cause(result.verdict), _height(result), _follows(result)]
    return replace(result, sentence=" ".join(word for word in words if word))


def _height(result: NormBlameResult) -> str:
    excess, S = result.excess, result.spike.step
    return (
        f"The gradient norm of step {S} is {excess.norm:.3g}; that of ordinary batches at the same"
        f" state is {excess.ordinary_at:.3g}, and was {excess.ordinary_before:.3g} at state"
        f" {result.window[0]}."
    )


def _follows(result: NormBlameResult) -> str:
    match result.reason:
        case "control does not spike":
            return (
                f"It was recorded as {result.spike.value:.3g}: the replay does not show the spike."
                " Nothing is said about the data."
            )
        case "no spike":
            return "There is no spike of it to explain."
        case "interrupted":
            return "It was interrupted before any sequence was left out."
    words = [_proof(result.proof, result) if result.proof else "", _others(result)]
    if result.other_state is not None:
        words.append(
            f"At state {result.window[0]} the same batch stands {result.other_state:+.3g} above"
            " ordinary ones."
        )
    if result.before is not None and result.before.measured is not None:
        words.append(_before(result))
    words.append(
        {
            "no removal takes it away": "So no set of sequences is blamed.",
            "not beyond random removals": "That is no proof: random sequences do as well.",
            "not beyond ordinary batches": (
                "That is no proof: the strongest sequences of ordinary batches take as much."
            ),
        }.get(result.reason, "")
    )
    return " ".join(word for word in words if word)


def _proof(proof: NormProof, result: NormBlameResult) -> str:
    count = len(proof.removal)
    plural = "s" * (count != 1)
    return (
        f"Without {proof.who} ({count} sequence{plural} of batch {result.spike.step}) it falls by"
        f" {proof.taken:.3g}, {proof.share:.0%} of the excess; without {count} random ones by"
        f" {min(proof.random, default=0.0):.3g} to {max(proof.random, default=0.0):.3g} (N ="
        f" {len(proof.random)} trials, p = {proof.p_random:.2g}); by the same search on ordinary"
        f" batches by at most {max(proof.ordinary, default=0.0):.3g} (N = {len(proof.ordinary)}"
        f" batches, p = {proof.p_ordinary:.2g})."
    )


def _others(result: NormBlameResult) -> str:
    limit = result.excess.ordinary_before + 0.5 * result.excess.total
    spike = sum(norm >= limit for norm in result.other_data)
    return f"Of {len(result.other_data)} other batches at the same state {spike} spike too."


def _before(result: NormBlameResult) -> str:
    before = result.before
    assert before is not None and before.measured is not None
    low, high = min(before.random, default=0.0), max(before.random, default=0.0)
    p = "" if before.p is None else f", p = {before.p:.2g}"
    return (
        f"Without the {len(before.removal)} sequences before it whose influence raises it most it"
        f" changes by {before.measured:+.3g}, without as many random ones by {low:+.3g} to"
        f" {high:+.3g} (N = {len(before.random)} trials{p})."
    )
