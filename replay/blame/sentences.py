"""How blame speaks: the sentence of a verdict, made from the facts that it rests on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from replay.blame.policy_changes import NAMES
from replay.blame.result import Excess, NullWindows, Proof, Rule, StaleTensor, Trial, Verdict
from replay.blame.rules import HEIGHT_FACTOR, SIGMAS, STALE, TIMES
from replay.blame.verdict import Facts, Judgement

WHOLE = 0.95  # share of the excess that is called the whole spike
NAMED = 2  # documents of a set that are named
CAUSES: dict[Verdict, str] = {
    "data": "Cause: data.",
    "data and state": "Cause: data and state together.",
    "data and policy": "Cause: data and policy together, both are needed.",
    "data or policy": "Cause: data or policy, either is enough.",
    "policy": "Cause: policy, not the data.",
    "state or policy": "Cause: state or policy, not the data.",
    "before the window": "The cause lies before the window.",
    "numerics": "Cause: numerics or hardware.",
    "cannot tell": "The cause cannot be told.",
}


def cause(verdict: Verdict) -> str:
    """Say the verdict in a few words."""
    return CAUSES[verdict]


def sentence(judgement: Judgement, facts: Facts) -> str:
    """Say why the verdict was given, with its numbers."""
    return _SENTENCES[judgement.verdict](judgement, facts)


def excess_sentence(excess: Excess, step: int) -> str:
    """Say how high the spike is, and which part of it is the batch's and which the model's."""
    return (
        f"Batch {step} stands {nats(excess.total, signed=True)} nats above an ordinary one:"
        f" {nats(excess.data, signed=True)} because the batch itself is odd (data part),"
        f" {nats(excess.state, signed=True)} because the model had become worse before it (state"
        " part)."
    )


def nats(value: float, signed: bool = False) -> str:
    """Write nats with two decimals, or three where they are few; a minus is a minus sign."""
    digits = 2 if abs(value) >= 0.1 or value == 0 else 3
    return format(value, f"{'+' if signed else ''}.{digits}f").replace("-", "−")


def _numerics(judgement: Judgement, facts: Facts) -> str:
    difference = facts.report.first_difference
    where = f"step {difference.step} on (its {difference.what})" if difference else "some step on"
    return (
        f"The replay does not show the spike: the loss of step {facts.blamed.step} was recorded as"
        f" {facts.blamed.value:.3f} nats/token and is {facts.control_loss:.3f} in the replay. The"
        f" replay differs from {where}:"
        " suspect the hardware or the numerics of that step. Nothing is said about the data."
    )


def _cannot_tell(judgement: Judgement, facts: Facts) -> str:
    match judgement.reason:
        case "no spike":
            return _no_spike(facts)
        case "interrupted":
            return "It was interrupted before any removal was held against windows without a spike."
        case "no removal takes it away":
            return f"{_strongest(facts)}, so no set of sequences is blamed. {_other_data(facts)}"
        case "not beyond windows without a spike" | "too few windows without a spike":
            return f"{_removal(facts)} {_null(facts)} That is no proof. {_other_data(facts)}"
        case "random removals take it away too":
            random = _proof_of(facts).random
            median = nats(float(np.median(random))) if random else "no"
            return (
                f"{_removal(facts)} That is no proof: random removals take {median} nats away too"
                " (their median)."
            )
        case "random removals differ by more":
            return (
                f"{_removal(facts)} That is no proof: random removals differ by more among each"
                f" other than this leads the best of them. {_other_data(facts)} {_policy(facts)}"
            )
    return f"{_removal(facts)} {_other_data(facts)} So neither data nor state alone explains it."


def _no_spike(facts: Facts) -> str:
    excess, height = facts.excess, facts.height
    sigma, recorded = excess.total / excess.scale, facts.blamed.sigma
    stands = (
        f"There is no spike to explain: batch {facts.blamed.step} stands"
        f" {nats(excess.total, signed=True)} nats above an ordinary one"
    )
    low = not facts.blamed.is_spike and recorded is not None and recorded <= SIGMAS
    if sigma <= SIGMAS or low or height is None:
        in_record = "" if recorded is None else f", and {_sigmas(recorded)} in the record"
        return (
            f"{stands}, which is {_sigmas(sigma)} of the batches before it{in_record}; a spike has"
            f" more than {SIGMAS:g}σ."
        )
    return (
        f"{stands}, and its recorded loss {nats(height, signed=True)} nats above the calm losses"
        f" before it; of a spike the two agree within a factor of {HEIGHT_FACTOR:g}."
    )


def _sigmas(value: float) -> str:
    return f"{value:.1f}σ".replace("-", "−")


def _strongest(facts: Facts) -> str:
    if not facts.tried:
        return "No removal helps"
    return (
        f"The strongest of {facts.tried} removals lowers the loss by {nats(facts.largest)}"
        f" of the spike's {nats(facts.excess.total)} nats"
    )


def _data(judgement: Judgement, facts: Facts) -> str:
    sentences = [_removal(facts), _null(facts), _documents(facts), _other_data(facts)]
    if judgement.reason == "removal takes it away, no other state could be tried":
        sentences.append("No other state could be tried: none lies far enough before the window.")
    sentences += [_other_states(facts), _policy(facts)]
    if facts.trials.up_to_date is not None:
        sentences.append(_up_to_date(facts, facts.trials.up_to_date))
    if judgement.verdict == "data and state":
        sentences.append(_staleness(facts.stale))
    return " ".join(sentence for sentence in sentences if sentence)


def _not_data(judgement: Judgement, facts: Facts) -> str:
    left = [trial.left for trial in facts.trials.other_data]
    remain = f"{nats(min(left))} to {nats(max(left))} remain"
    sentences = [
        f"Other batches in place of these spike too, in {_counted(facts.trials.other_data)}: of the"
        f" spike's {nats(facts.excess.total)} nats, {remain}."
    ]
    if judgement.reason == "any data spike, at a height of chance":
        sentences = [
            f"Other batches in place of these spike too, more than {SIGMAS:g}σ in each of"
            f" {len(left)} trials: of the spike's {nats(facts.excess.total)} nats, {remain}.",
            f"How high is a matter of chance: {_lower_first(_random_removals(_proof_of(facts)))}",
        ]
    if facts.tried:
        sentences.append(f"{_strongest(facts)}.")
    sentences.append(_policy(facts))
    neither = facts.trials.neither
    if neither is not None:
        stays = "it spikes all the same" if neither.spikes else "it does not spike"
        sentences.append(f"With {neither.what} {stays}: {nats(neither.left)} nats remain.")
    sentences += [_earlier(facts, trial) for trial in facts.trials.earlier]
    if facts.trials.up_to_date is not None:
        sentences.append(_up_to_date(facts, facts.trials.up_to_date))
    return " ".join(sentence for sentence in sentences if sentence)


def _before(judgement: Judgement, facts: Facts) -> str:
    look = f"Look from step {facts.look_from}."
    if judgement.reason == "an earlier start takes it away":
        return f"{_not_data(judgement, facts)} {look}"
    return (
        f"At the window's first state the loss on the probe sequences stood"
        f" {nats(facts.worse_before or 0.0, signed=True)} nats above that of state {facts.calm},"
        f" where the run was last calm; the spike is {nats(facts.height or 0.0)} nats high. {look}"
    )


def _earlier(facts: Facts, trial: Trial) -> str:
    stays = "it spikes all the same" if trial.spikes else "it does not spike"
    return f"With {trial.what} {stays}: {nats(trial.left)} nats remain."


def _policy(facts: Facts) -> str:
    """List each setting that changed in the window, and what remains with it as before."""
    trials = facts.trials
    if not trials.policy:
        return "No setting of the policy changed in the window."
    listed = [
        f"With the {change.trial.what}"
        f" {'the spike stays' if change.trial.spikes else 'the spike does not happen'}:"
        f" {nats(change.trial.left)} nats remain."
        for change in trials.policy
    ]
    together = trials.policy_as_before
    if together is not None and len(trials.policy) > 1:
        stays = "the spike stays" if together.spikes else "the spike does not happen"
        names = ", ".join(NAMES[change.field] for change in trials.policy)
        listed.append(f"With all of them ({names}) as before {stays}: {nats(together.left)} nats.")
    return " ".join(listed)


def rules_lines(rules: Sequence[Rule]) -> list[str]:
    """List the numbers by which a result was judged, a line each, with their units."""
    width = max((len(rule.name) for rule in rules), default=0)
    return [f"  {rule.name:<{width}} {rule.value:>6g} {rule.unit}" for rule in rules]


_SENTENCES: dict[Verdict, Callable[[Judgement, Facts], str]] = {
    "data": _data,
    "data and state": _data,
    "data and policy": _data,
    "data or policy": _not_data,
    "policy": _not_data,
    "state or policy": _not_data,
    "before the window": _before,
    "numerics": _numerics,
    "cannot tell": _cannot_tell,
}


def _removal(facts: Facts) -> str:
    """Say what goes with the set, and with as many random sequences."""
    proof, total = _proof_of(facts), facts.excess.total
    elsewhere = {slot.step for slot in proof.removal} != {facts.blamed.step}
    loss = f"the loss of step {facts.blamed.step}" if elsewhere else "the loss"
    lowers = (
        f"lowers {loss} by {nats(proof.excess_removed)} nats, {_share(proof, total)}"
        if math.isfinite(proof.excess_removed)
        else f"makes {loss} finite again"
    )
    if proof.kind in ("document", "documents"):
        lowers = f"from {_places(proof)} {lowers}"
    return f"Removing {_set_words(proof)} {lowers}. {_random_removals(proof)}"


def _share(proof: Proof, total: float) -> str:
    if proof.share >= WHOLE:
        return f"the whole spike ({nats(total)})"
    return f"{proof.share:.0%} of the spike ({nats(total)})"


def _null(facts: Facts) -> str:
    """Say what the same search takes away in windows without a spike."""
    null = _proof_of(facts).null
    if null is None or null.largest is None or null.p is None:
        return "The run has no window without a spike to hold it against."
    N = len(null.windows)
    windows = f"{N} window{'s' * (N != 1)} without a spike"
    as_much = sum(not window.complete for window in null.windows)
    if as_much:
        return f"The same search takes away as much in {as_much} of {windows} ({_null_rule(null)})."
    return (
        f"The same search in {windows} takes away at most {nats(null.largest)} nats"
        f" ({_null_rule(null)})."
    )


def _null_rule(null: NullWindows) -> str:
    p = f"p = {null.p:.2g}"
    least = f"the least that N = {len(null.windows)} can show" if null.p == null.least_p else ""
    if null.rule == "factor":
        return f"{p}, {least}; the rule of {TIMES:g} times the largest is met"
    if null.rule == "none" and null.finding == "too few":
        return f"{p}: too few windows to tell"
    return ", ".join(words for words in (p, least) if words)


def _random_removals(proof: Proof) -> str:
    """Random removals move the loss by the opposite of what they take away."""
    if not proof.random:
        return "No random removal was held against it."
    sequences = "sequence" if proof.sequences == 1 else "sequences"
    trials = f"in {len(proof.random)} trial{'s' * (len(proof.random) != 1)}"
    if not all(math.isfinite(removed) for removed in proof.random):
        broken = sum(removed <= 0 for removed in proof.random)
        return (
            f"With {proof.sequences} random {sequences} removed instead it is not finite either, in"
            f" {broken} of {len(proof.random)} trials."
        )
    low, high = -max(proof.random), -min(proof.random)
    return (
        f"Removing {proof.sequences} random {sequences} instead changes it by"
        f" {nats(low, signed=True)} to {nats(high, signed=True)} ({trials})."
    )


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _set_words(proof: Proof) -> str:
    """Name the set that was removed."""
    plural = "" if proof.sequences == 1 else "s"
    if proof.kind == "source":
        places = _places(proof)
        come = "comes" if proof.sequences == 1 else "come"
        return f"the {places} that {come} from `{proof.name}`"
    if proof.kind == "attribute":
        hold = "holds" if proof.sequences == 1 else "hold"
        return f"the {_places(proof)} that {hold} documents with `{proof.name}`"
    if proof.kind == "document":
        return f"the document `{proof.name}` ({proof.source})"
    if proof.kind == "documents":
        return f"{proof.who}"
    if proof.kind == "bisection":
        return f"the {_places(proof)} that bisection found"
    return f"the {_places(proof, 'most influential sequence' + plural)}"


def _places(proof: Proof, noun: str | None = None) -> str:
    """`16 sequences of batch 400`, or `40 sequences of 5 batches (160 to 164)`."""
    steps = sorted({slot.step for slot in proof.removal})
    noun = noun or ("sequence" if proof.sequences == 1 else "sequences")
    batches = (
        f"batch {steps[0]}"
        if len(steps) == 1
        else f"{len(steps)} batches ({steps[0]} to {steps[-1]})"
    )
    return f"{proof.sequences} {noun} of {batches}"


def _proof_of(facts: Facts) -> Proof:
    assert facts.proof is not None, "this verdict rests on a proof"
    return facts.proof


def _other_data(facts: Facts) -> str:
    trials = facts.trials.other_data
    if not trials:
        return "Other batches in their place were not tried."
    return f"Other batches in their place spike in {_counted(trials)}."


def _documents(facts: Facts) -> str:
    """Name the documents of a set that is not itself named after one."""
    if not facts.documents or (facts.proof is not None and facts.proof.kind == "document"):
        return ""
    names = [f"{document.path} ({document.source})" for document in facts.documents[:NAMED]]
    remaining = len(facts.documents) - len(names)
    if remaining:
        names.append(f"{remaining} other document{'s' * (remaining != 1)}")
    listed = ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]
    return f"The removed sequences hold text of {listed}."


def _other_states(facts: Facts) -> str:
    trials = facts.trials.other_states
    if not trials:
        return ""
    states = " and ".join(str(trial.start) for trial in trials)
    plural = "s" if len(trials) > 1 else ""
    return (
        f"From an earlier state of the model the same batches spike in {_counted(trials)}"
        f" (state{plural} {states})."
    )


def _up_to_date(facts: Facts, trial: Trial) -> str:
    return (
        f"With second moments that are up to date ({trial.what}) {nats(trial.left)} of"
        f" {nats(facts.excess.total)} nats remain."
    )


def _staleness(stale: Sequence[StaleTensor]) -> str:
    worst = next((tensor for tensor in stale if tensor.times), None)
    if worst is None or worst.times is None:
        return "Staleness of the moments was not recorded."
    called = (
        "The second moment furthest out of date is that of"
        if worst.times >= STALE
        else "By its staleness no second moment is out of date; the nearest to it is that of"
    )
    rms = f", rms_t {worst.rms_t:.2f}" if worst.rms_t is not None else ""
    return (
        f"{called} {worst.tensor}: staleness {worst.staleness:.2f} at step {worst.step}"
        f" ({worst.usual:.2f} before{rms})."
    )


def _counted(trials: Sequence[Trial]) -> str:
    plural = "s" if len(trials) > 1 else ""
    return f"{sum(trial.spikes for trial in trials)} of {len(trials)} trial{plural}"
