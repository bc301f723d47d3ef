"""Why did it spike? The verdict, from the facts that replays established.

docs/blame.md has the table of verdicts; the sentences are made in replay/blame/sentences.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from replay.blame.counterfactuals import OTHERS
from replay.blame.deletion import HALF, beyond_random
from replay.blame.result import (
    BlamedStep,
    DocumentInfluence,
    Excess,
    Proof,
    Reason,
    StaleTensor,
    Trials,
    Verdict,
)
from replay.verify import Report

SIGMAS = 6.0  # of the robust detector: what counts as a spike


@dataclass
class Facts:
    """All that a verdict rests on; what was not tried is None or empty."""

    blamed: BlamedStep
    report: Report  # of the control
    absent: bool  # whether the control does not show the spike
    control_loss: float  # nats/token
    excess: Excess
    proof: Proof | None = None
    largest: float = 0.0  # nats that the strongest removal took away
    tried: int = 0  # how many removals were tried
    trials: Trials = field(default_factory=Trials)
    stale: tuple[StaleTensor, ...] = ()
    documents: list[DocumentInfluence] = field(default_factory=list)  # of the proved set
    interrupted: bool = False


class Judgement(NamedTuple):
    """A verdict, and which rule gave it."""

    verdict: Verdict
    reason: Reason


def rises(blamed: BlamedStep, excess: Excess) -> bool:
    """Whether there is a spike to explain: an excess beyond what the detector calls one."""
    if not math.isfinite(excess.total):
        return True
    return excess.total > 0 and (blamed.is_spike or excess.total > SIGMAS * excess.scale)


def judge(facts: Facts) -> Judgement:
    """Judge the facts; a set of sequences is blamed by the rule for causal words only."""
    proof, half = facts.proof, HALF * facts.excess.total
    if facts.absent:
        return Judgement("numerics", "control does not spike")
    if not rises(facts.blamed, facts.excess):
        return Judgement("cannot tell", "no spike")
    if facts.interrupted and (proof is None or not proof.random):
        return Judgement("cannot tell", "interrupted")
    spikes_of_others = [trial.spikes for trial in facts.trials.other_data]
    if len(spikes_of_others) >= OTHERS and all(spikes_of_others):
        return Judgement("state or schedule", "other data spike too")
    if proof is None or proof.excess_removed < half:
        return Judgement("cannot tell", "no removal takes it away")
    if not proof.causal:
        return Judgement("cannot tell", "not beyond random removals")
    if beyond_random(proof) < half:
        return Judgement("cannot tell", "random removals take it away too")
    if spikes_of_others and sum(spikes_of_others) * 2 >= len(spikes_of_others):
        return Judgement("cannot tell", "other data spike too")
    if facts.trials.up_to_date is not None and not facts.trials.up_to_date.spikes:
        return Judgement("data and state", "removal and fresh moments take it away")
    elsewhere = [trial.spikes for trial in facts.trials.other_states]
    if elsewhere and not any(elsewhere):
        return Judgement("data and state", "no other state spikes")
    return Judgement("data", "removal takes it away")
