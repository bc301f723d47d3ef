"""Which counterfactuals are tried, in which order: data and policy both, before any verdict."""

from __future__ import annotations

import dataclasses
from typing import Any

from replay.blame import counterfactuals
from replay.blame.case import Case
from replay.blame.policy_changes import ChangedField
from replay.blame.result import Trials
from replay.blame.stand_ins import NOTHING


def try_otherwise(case: Case) -> None:
    """Tell data, state and policy apart; what is known is in the facts at once.

    Data are replaced from the first touched step on where a set takes the spike away, else over the
    window; every setting of the policy that changed in the window is put back.
    """
    facts, replays = case.facts, case.replays
    facts.trials = Trials()
    proof, S = facts.proof, case.S
    proved = proof is not None and proof.away
    first = replays.first_step(proof.removal) if proof and proved else case.first
    avoided = replays.avoided(proof.removal) if proof and proved else NOTHING
    _add(case, other_data=counterfactuals.other_data(replays, first, avoided))
    facts.stale = counterfactuals.stale_tensors(case.run, min(first, S - 1), S)
    changes = counterfactuals.changes_inside(replays)
    for change in counterfactuals.policy_changes(replays, changes):
        _add(case, policy=(*facts.trials.policy, change))
    if changes:
        _add(
            case,
            policy_as_before=facts.trials.policy[0].trial
            if len(changes) == 1
            else counterfactuals.policy_as_before(replays, changes),
        )
    spikes_of_others = [trial.spikes for trial in facts.trials.other_data]
    if all(spikes_of_others):
        if not facts.policy_takes_it_away:
            _try_both_and_earlier(case, changes, first)
        first = case.first
    elif proof is not None and proof.beyond_random:
        _add(case, other_states=counterfactuals.other_states(replays, first))
    else:
        return
    _add(case, up_to_date=counterfactuals.up_to_date(replays, first))


def _try_both_and_earlier(case: Case, changes: list[ChangedField], first: int) -> None:
    """Where neither data nor policy alone take it away: both, and then earlier starts."""
    if changes:
        neither = counterfactuals.neither(case.replays, changes, first, NOTHING)
        _add(case, neither=neither)
        if neither is not None and not neither.spikes:
            return
    for trial in counterfactuals.earlier_starts(case.replays, changes, NOTHING):
        _add(case, earlier=(*case.facts.trials.earlier, trial))


def _add(case: Case, **trials: Any) -> None:
    facts = case.facts
    facts.trials = dataclasses.replace(facts.trials, **trials)
