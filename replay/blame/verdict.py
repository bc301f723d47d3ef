"""Why did it spike? The verdict, from the facts that replays established.

docs/blame.md has the table of verdicts; the sentences are made in replay/blame/sentences.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

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
from replay.blame.rules import HALF, HEIGHT_FACTOR, OTHERS, SIGMAS
from replay.verify import Report

# doubts under which the height of a spike is a matter of chance
HEIGHT_OF_CHANCE: tuple[Reason, ...] = (
    "random removals take it away too",
    "random removals differ by more",
)


@dataclass
class Facts:
    """All that a verdict rests on; what was not tried is None or empty."""

    blamed: BlamedStep
    report: Report  # of the control
    absent: bool  # whether the control does not show the spike
    control_loss: float  # nats/token
    excess: Excess
    height: float | None = None  # of the recorded spike, nats; None: too little was recorded
    worse_before: float | None = None  # nats by which P's loss stood above its calm level at A
    calm: int = 0  # the last state at which the recorded loss was calm
    proof: Proof | None = None
    largest: float = 0.0  # nats that the strongest removal took away
    tried: int = 0  # how many removals were tried
    trials: Trials = field(default_factory=Trials)
    stale: tuple[StaleTensor, ...] = ()
    documents: list[DocumentInfluence] = field(default_factory=list)  # of the proved set
    interrupted: bool = False

    @property
    def other_data_spike(self) -> bool:
        """Whether it spikes every time with other data, of as many draws as are wanted."""
        spikes = [trial.spikes for trial in self.trials.other_data]
        return len(spikes) >= OTHERS and all(spikes)

    @property
    def half_of_others_spike(self) -> bool:
        """Whether it spikes at least every second time with other data."""
        spikes = [trial.spikes for trial in self.trials.other_data]
        return bool(spikes) and sum(spikes) * 2 >= len(spikes)

    @property
    def others_spike_lower(self) -> bool:
        """Whether it spikes every time with other data by the detector's measure, at any height."""
        left = [trial.left for trial in self.trials.other_data]
        return len(left) >= OTHERS and not any(x <= SIGMAS * self.excess.scale for x in left)

    @property
    def policy_takes_it_away(self) -> bool:
        """Whether it does not spike with the policy as before the window."""
        trial = self.trials.policy_as_before
        return trial is not None and not trial.spikes

    @property
    def look_from(self) -> int | None:
        """Return the step from which a cause before the window is to be looked for, if any."""
        if began_before(self):
            return self.calm
        return next((trial.start for trial in self.trials.earlier if not trial.spikes), None)


class Judgement(NamedTuple):
    """A verdict, and which rule gave it."""

    verdict: Verdict
    reason: Reason


def began_before(facts: Facts) -> bool:
    """Whether the model was worse at the window's start already, by half of the spike's height."""
    worse, height = facts.worse_before, facts.height
    return worse is not None and height is not None and height > 0 and worse >= HALF * height


def rises(facts: Facts) -> bool:
    """Whether there is a spike to explain.

    Its excess and its recorded loss are beyond what the detector calls one, and agree.
    """
    excess, blamed = facts.excess, facts.blamed
    if not math.isfinite(excess.total):
        return True
    recorded = math.inf if blamed.sigma is None else blamed.sigma
    far = excess.total > SIGMAS * excess.scale and recorded > SIGMAS
    if not (excess.total > 0 and (blamed.is_spike or far)):
        return False
    height = facts.height
    if height is None:
        return True
    return height <= HEIGHT_FACTOR * excess.total and excess.total <= HEIGHT_FACTOR * height


def explains(facts: Facts) -> bool:
    """Whether a spike is to be explained within the window."""
    return not facts.absent and not began_before(facts) and rises(facts)


def judge(facts: Facts) -> Judgement:
    """Judge the facts; a set of sequences is blamed by the rule for causal words only."""
    if facts.absent:
        return Judgement("numerics", "control does not spike")
    if began_before(facts):
        return Judgement("before the window", "worse before the window")
    if not rises(facts):
        return Judgement("cannot tell", "no spike")
    if facts.interrupted and (facts.proof is None or facts.proof.null is None):
        return Judgement("cannot tell", "interrupted")
    if facts.other_data_spike or (facts.policy_takes_it_away and facts.half_of_others_spike):
        return _not_the_data(facts)
    doubt = _doubt(facts)
    if doubt in HEIGHT_OF_CHANCE and facts.policy_takes_it_away and facts.others_spike_lower:
        return Judgement("policy", "any data spike, at a height of chance")
    if doubt is not None:
        return Judgement("cannot tell", doubt)
    if facts.policy_takes_it_away:
        return Judgement("data and policy", "both are needed")
    if facts.trials.up_to_date is not None and not facts.trials.up_to_date.spikes:
        return Judgement("data and state", "removal and fresh moments take it away")
    elsewhere = [trial.spikes for trial in facts.trials.other_states]
    if not elsewhere:
        return Judgement("data", "removal takes it away, no other state could be tried")
    if not any(elsewhere):
        return Judgement("data and state", "no other state spikes")
    return Judgement("data", "removal takes it away")


def _not_the_data(facts: Facts) -> Judgement:
    """Judge where it spikes whatever the data: the policy, both, what came before, or the state."""
    if facts.policy_takes_it_away:
        return Judgement("policy", "the policy as before takes it away")
    neither = facts.trials.neither
    if neither is not None and not neither.spikes:
        return Judgement("data or policy", "either is enough")
    if facts.look_from is not None:
        return Judgement("before the window", "an earlier start takes it away")
    return Judgement("state or policy", "other data spike too")


def _doubt(facts: Facts) -> Reason | None:
    """Return why a removal proves nothing; None where it does."""
    proof, enough = facts.proof, HALF * facts.excess.total
    if proof is None or proof.excess_removed < enough:
        return "no removal takes it away"
    if not proof.beyond_random:
        more = proof.excess_removed - np.median(proof.random) if proof.random else 0.0
        if proof.random and proof.excess_removed > max(proof.random) and more >= enough:
            return "random removals differ by more"
        return "random removals take it away too"
    if facts.half_of_others_spike:
        return "other data spike too"
    if proof.null is None or proof.null.finding in ("too few", "none exist", "none run"):
        return "too few windows without a spike"
    if proof.null.finding != "beyond":
        return "not beyond windows without a spike"
    return None
