"""What `replay blame --query` says, made from its numbers."""

from __future__ import annotations

from collections.abc import Sequence

from replay.blame.query.result import DatamodelScore, QueryDescription, RemovalTest
from replay.blame.sentences import nats


def asked_sentence(query: QueryDescription, noun: str, loss: float, at: int) -> str:
    """Say what the loss is, of what and where."""
    windows = "" if query.windows == 1 else f" in {query.windows} windows"
    texts = "" if query.texts == 1 else f", {query.texts} texts"
    return (
        f"The loss of {noun} at state {at} is {loss:.4g} nats/token ({query.tokens:,} predicted"
        f" token{'s' * (query.tokens != 1)}{texts}{windows})."
    )


def _sequences(count: int) -> str:
    return f"{count} sequence{'s' * (count != 1)}"


def removal_sentence(removal: RemovalTest) -> str:
    """Say what leaving a set out does, what random ones do, and what follows."""
    does = {"lower": "lowers", "raise": "raises"}[removal.direction]
    if removal.finding == "no influence":
        return f"No sequence of the window has an influence that {does} the loss."
    count = len(removal.removal)
    influence = (
        f"Without the {_sequences(count)} whose influence {does} the loss most it changes by"
        f" {{measured}} nats/token (to first order {nats(removal.predicted, signed=True)})."
    )
    if removal.measured is None:
        return f"The {_sequences(count)} whose influence {does} the loss most were not left out."
    words = [influence.format(measured=nats(removal.measured, signed=True)), _random(removal)]
    words.append(_follows(removal))
    return " ".join(word for word in words if word)


def _random(removal: RemovalTest) -> str:
    if not removal.random or removal.p is None or removal.corrected_p is None:
        return "No random removal was held against it."
    where = "the same batches" if removal.matched == "steps" else "the whole window"
    both = f", corrected for the {removal.tests} sets tested" * (removal.tests > 1)
    low, high = min(removal.random), max(removal.random)
    return (
        f"Without {len(removal.removal)} random ones of {where} instead it changes by"
        f" {nats(low, signed=True)} to {nats(high, signed=True)} (N = {len(removal.random)} trials,"
        f" p = {removal.corrected_p:.2g}{both})."
    )


def _follows(removal: RemovalTest) -> str:
    did = {"lower": "lowered", "raise": "raised"}[removal.direction]
    match removal.finding:
        case "beyond":
            return f"So these sequences {did} it."
        case "not beyond random removals":
            return "That cannot be told from leaving out random sequences."
        case "too few random removals":
            return (
                f"That cannot be told: {len(removal.random)} distinct random removals are too few"
                " for p ≤ 0.05."
            )
        case "not finite":
            return "The loss is not a finite number then, so nothing can be told."
    return "It was interrupted before that could be told."


def score_sentence(score: DatamodelScore) -> str:
    """Say how well the influences foretell what leaving data out does."""
    subsets, share = len(score.subsets), f"{score.share:.0%}"
    begin = (
        f"Over {subsets} random subsets of {share} of the window's sequences, left out by replay,"
    )
    if score.score is None or score.low is None or score.high is None or score.p is None:
        return f"{begin} the loss or its prediction does not vary: no score."
    follows = (
        ""
        if score.low > 0
        else " The influences cannot be told from noise here: trust the replays alone."
    )
    slope = f", slope {score.slope:.2f}" if score.slope is not None else ""
    return (
        f"{begin} the predicted change of the loss ranks with the measured one at"
        f" {score.score:.2f} (Spearman; {score.level:.0%} interval {score.low:.2f} to"
        f" {score.high:.2f}, p = {score.p:.2g}{slope}).{follows}"
    )


def whole_sentence(asked: str, removals: Sequence[RemovalTest], interrupted: bool) -> str:
    """Join the sentences of a result."""
    words = [asked, *(removal.sentence for removal in removals)]
    if interrupted and not removals:
        words.append("It was interrupted before anything was left out.")
    return " ".join(words)
