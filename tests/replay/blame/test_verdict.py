"""Each verdict, from the facts that make it, and the words that go with it."""

from __future__ import annotations

import dataclasses
import math
from typing import get_args

import pytest

from replay.blame.null_windows import judged
from replay.blame.result import (
    BlamedStep,
    DocumentInfluence,
    Excess,
    NullWindow,
    NullWindows,
    PolicyChange,
    Proof,
    StaleTensor,
    SuspectKind,
    Trial,
    Trials,
    Verdict,
)
from replay.blame.sentences import CAUSES, sentence
from replay.blame.verdict import Facts, judge
from replay.interventions.rows import Slot
from replay.verify import Difference, Report

ROW = Slot(400, 3, 0, 64)
BLAMED = BlamedStep(402, 4.0, 3.0, 0.1, "fast", 400, 410, is_spike=True, remark="")
REPORT = Report(True, "exact", 10, 10, None, 0.0, True, ())


def excess(state: float = 0.9, data: float = 0.1) -> Excess:
    return Excess(data, state, 4.0, 0.0, 3.0, 3.0 + state, 0.05)


def null(removed: float = 0.95, *largest: float) -> NullWindows:
    """Judge a removal against windows without a spike; 19 quiet ones where none are given."""
    values = largest or (0.01,) * 19
    return judged(removed, [NullWindow(300 + i, x, x < removed) for i, x in enumerate(values)], 4)


def proved(
    removed: float = 0.95,
    random: tuple[float, ...] = (0.0, 0.01, -0.01),
    beyond_random: bool = True,
    kind: SuspectKind = "strongest",
    against: NullWindows | None = None,
) -> Proof:
    return Proof(
        who="the 1 strongest sequences",
        kind=kind,
        name="planted" if kind == "source" else "a.txt",
        source="clean",
        removal=(ROW,),
        excess_removed=removed,
        share=removed,
        data=0.0,
        state=1 - removed,
        random=random,
        beyond_random=beyond_random,
        null=against or null(removed),
    )


def trials(*left: float) -> tuple[Trial, ...]:
    return tuple(Trial(f"from state {i}", x, x >= 0.5, i) for i, x in enumerate(left))


def facts(other_data=(0.0, 0.1, 0.0), other_states=(0.9, 0.8), **changes) -> Facts:
    usual = {"proof": proved(), "largest": 0.95, "tried": 5, "height": 1.0, "calm": 399}
    of_trials = ("up_to_date", "policy", "policy_as_before", "neither", "earlier")
    told = {name: changes.pop(name) for name in of_trials if name in changes}
    tried = Trials(trials(*other_data), trials(*other_states), **told)
    return Facts(BLAMED, REPORT, False, 4.0, excess(), trials=tried, **(usual | changes))


def said(of: Facts) -> tuple[str, str, str]:
    judgement = judge(of)
    return judgement.verdict, judgement.reason, sentence(judgement, of)


def test_data_when_its_removal_takes_the_spike_away_and_other_states_spike_with_it_too():
    verdict, reason, words = said(facts())
    assert (verdict, reason) == ("data", "removal takes it away")
    assert (
        "lowers the loss of step 402 by 0.95 nats, the whole spike (1.00)" in words
        and "in 3 trials" in words
        and "N = 19" in words
        and "spike in 2 of 2 trials" in words
    )


def test_data_and_state_when_up_to_date_moments_take_it_away_and_the_tensor_is_named():
    stale = (StaleTensor("embed.weight", 401, 9.0, 4.0, 1.0, 9.0),)
    fresh = Trial("β₂ 0.999 → 0.9 from state 400", 0.1, False, 400)
    verdict, reason, words = said(facts(up_to_date=fresh, stale=stale))
    assert (verdict, reason) == ("data and state", "removal and fresh moments take it away")
    assert (
        "furthest out of date is that of embed.weight: staleness 9.00 at step 401 (1.00 before"
        in words
        and "0.10 of 1.00 nats remain" in words
    )


def test_data_and_state_when_the_same_batches_spike_from_no_other_state():
    verdict, reason, _ = said(facts(other_states=(0.1, 0.0)))
    assert (verdict, reason) == ("data and state", "no other state spikes")


def changed(left: float) -> dict[str, object]:
    """A learning rate that changed in the window, and what is left with it as before."""
    held = Trial("learning rate held at 0.01 (it became 0.3)", left, left >= 0.5, 390)
    change = PolicyChange("learning_rate", 390, "0.01", "0.3", held)
    return {"policy": (change,), "policy_as_before": held}


def test_policy_when_other_data_spike_too_and_the_policy_as_before_takes_it_away():
    verdict, reason, words = said(facts(other_data=(0.9, 1.0, 0.8), **changed(0.02)))
    assert (verdict, reason) == ("policy", "the policy as before takes it away")
    assert "in 3 of 3 trials" in words and "the spike does not happen" in words
    assert "With the learning rate held at 0.01 (it became 0.3)" in words
    assert said(facts(other_data=(0.9, 0.1, 0.8), **changed(0.02)))[0] == "policy"
    assert said(facts(other_data=(0.9, 0.1, 0.8), **changed(0.7)))[0] == "cannot tell"


def test_policy_when_any_data_spike_and_how_high_is_a_matter_of_chance():
    chance = proved(0.9, (-3.0, 0.2, 0.1), beyond_random=False)
    lower = {"other_data": (0.4, 0.9, 0.45), "proof": chance}  # 6σ of ordinary batches are 0.3
    verdict, reason, words = said(facts(**lower, **changed(0.02)))
    assert (verdict, reason) == ("policy", "any data spike, at a height of chance")
    assert "more than 6σ in each of 3 trials: of the spike's 1.00 nats, 0.40 to 0.90" in words
    assert "a matter of chance: removing 1 random sequence instead changes it by −0.20" in words
    assert said(facts(**lower, **changed(0.7)))[0] == "cannot tell"  # the policy does not do it
    assert said(facts(**lower))[0] == "cannot tell"  # no setting changed
    once = facts(other_data=(0.4, 0.9, 0.2), proof=chance, **changed(0.02))
    assert said(once)[0] == "cannot tell"  # with other data it need not spike


def test_state_or_policy_when_other_data_spike_too_and_no_setting_changed():
    verdict, reason, words = said(facts(other_data=(0.9, 1.0, 0.8), proof=None, tried=0))
    assert verdict == "state or policy" and "No setting of the policy changed" in words
    assert reason == "other data spike too"


def test_both_are_needed_when_it_goes_without_the_data_and_with_the_policy_as_before():
    verdict, reason, words = said(facts(**changed(0.1)))
    assert (verdict, reason) == ("data and policy", "both are needed")
    assert "lowers the loss" in words and "the spike does not happen" in words
    assert said(facts(**changed(0.9)))[0] == "data"  # the setting changes nothing of it


def test_either_is_enough_when_it_goes_only_without_both():
    neither = Trial("other batches and the policy as before from state 390", 0.1, False, 390)
    one, reason, words = said(facts((0.9, 1.0, 0.8), neither=neither, **changed(0.7)))
    assert (one, reason) == ("data or policy", "either is enough")
    assert "With the learning rate" in words and "the spike stays" in words
    assert "With other batches and the policy as before from state 390 it does not spike" in words
    stays = dataclasses.replace(neither, left=0.9, spikes=True)
    assert said(facts((0.9, 1.0, 0.8), neither=stays, **changed(0.7)))[0] == "state or policy"


def test_before_the_window_when_an_earlier_start_with_other_data_takes_it_away():
    earlier = trials(0.9, 0.1)
    earlier = tuple(dataclasses.replace(t, start=s) for t, s in zip(earlier, (384, 352)))
    of = facts((0.9, 1.0, 0.8), earlier=earlier)
    verdict, reason, words = said(of)
    assert (verdict, reason) == ("before the window", "an earlier start takes it away")
    assert of.look_from == 352 and words.endswith("Look from step 352.")


def test_before_the_window_when_the_model_was_worse_at_its_first_state():
    of = facts(height=1.0, worse_before=0.6, calm=370)
    verdict, reason, words = said(of)
    assert (verdict, reason) == ("before the window", "worse before the window")
    assert of.look_from == 370 and "+0.60 nats above that of state 370" in words
    assert said(facts(height=1.0, worse_before=0.4))[0] == "data"


def test_data_says_where_no_other_state_could_be_tried():
    verdict, reason, words = said(facts(other_states=()))
    assert verdict == "data" and reason == "removal takes it away, no other state could be tried"
    assert "No other state could be tried" in words


def test_a_removal_is_held_against_the_most_that_goes_without_a_spike():
    rank = null(0.5, *[0.1] * 19)
    assert (rank.p, rank.rule, rank.finding) == (0.05, "rank", "beyond")
    beaten = null(0.5, *[0.2] * 18, 0.6)
    assert beaten.p == 0.1 and beaten.finding == "not distinguishable"
    near = null(0.5, *[0.3] * 19)  # the first of 20, and not 3 times the largest
    assert (near.p, near.rule, near.finding) == (0.05, "none", "unusual")
    factor = null(0.5, 0.1, 0.05, 0.0)
    assert (factor.p, factor.least_p, factor.rule) == (0.25, 0.25, "factor")
    assert null(0.49, 0.1, 0.05, 0.0).rule == "none"  # less than 5 times the largest
    assert null(0.5, 0.01, 0.0).finding == "too few"
    words = said(facts(proof=proved(against=null(0.95, 0.1, 0.05, 0.0))))[2]
    assert "in 3 windows without a spike takes away at most 0.10 nats (p = 0.25, the least" in words
    assert "the rule of 5 times the largest is met" in words


def test_nothing_is_explained_where_the_excess_and_the_recorded_height_disagree():
    for height in (0.4, 2.1):  # of an excess of 1.0
        verdict, reason, words = said(facts(height=height))
        assert (verdict, reason) == ("cannot tell", "no spike")
        assert f"+{height:.2f} nats above the calm losses" in words and "factor of 2" in words
    assert said(facts(height=0.6))[0] == said(facts(height=1.9))[0] == "data"


def test_numerics_when_the_control_does_not_spike_whatever_else_was_found():
    difference = Difference(399, "state_digest")
    report = Report(False, "absent", 10, 10, difference, 1.0, True, ())
    absent = facts()
    absent.absent, absent.report = True, report
    verdict, reason, words = said(absent)
    assert (
        (verdict, reason) == ("numerics", "control does not spike")
        and "differs from step 399" in words
        and "Nothing is said about the data" in words
    )


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        (
            {"proof": proved(against=null(0.95, 0.2, 0.1, 0.3))},
            "not beyond windows without a spike",
            "no proof",
        ),
        (
            {"proof": proved(against=null(0.95, 0.01))},
            "too few windows without a spike",
            "too few windows to tell",
        ),
        (
            {"proof": dataclasses.replace(proved(), null=None)},
            "too few windows without a spike",
            "no window without a spike",
        ),
        (
            {"proof": proved(removed=0.3), "largest": 0.3},
            "no removal takes it away",
            "no set of sequences is blamed",
        ),
        (
            {"proof": proved(0.9, (0.6, 0.5, 0.55), beyond_random=False)},
            "random removals take it away too",
            "random removals take 0.55 nats away too",
        ),
        (
            {"proof": proved(0.9, (-3.0, 0.2, 0.1), beyond_random=False)},
            "random removals differ by more",
            "changes it by −0.20 to +3.00",
        ),
        (
            {"other_data": (0.9, 0.9, 0.0)},
            "other data spike too",
            "neither data nor state alone",
        ),
        ({"proof": None, "tried": 0}, "no removal takes it away", "No removal helps"),
        ({"proof": None, "interrupted": True}, "interrupted", "interrupted"),
    ],
)
def test_cannot_tell_when_the_rule_for_causal_words_is_not_met(changes, reason, words):
    verdict, why, told = said(facts(**changes))
    assert (verdict, why) == ("cannot tell", reason) and words in told


def test_cannot_tell_where_no_spike_is_to_be_explained():
    calm = facts()
    calm.blamed = BlamedStep(402, 3.1, 3.0, 0.1, None, None, None, is_spike=False, remark="")
    calm.excess = excess(state=0.05, data=0.1)
    verdict, reason, words = said(calm)
    assert (verdict, reason) == ("cannot tell", "no spike")
    assert "no spike to explain" in words and "3.0σ" in words


@pytest.mark.parametrize("kind", get_args(SuspectKind))
def test_a_removal_is_told_with_what_was_removed_how_many_and_from_where(kind):
    document = DocumentInfluence(7, "clean", "b.txt", 0.5, 1, 64)
    _, _, words = said(facts(proof=proved(kind=kind), documents=[document]))
    assert (words.startswith("Removing ") and "1 sequence of batch 400" in words) or (
        "1 most influential sequence of batch 400" in words
    )
    assert (
        "Removing 1 random sequence instead changes it by −0.010 to +0.010 (in 3 trials)." in words
        and "takes away at most 0.010 nats (p = 0.05, the least that N = 19 can show)." in words
    )
    assert ("hold text of b.txt (clean)" in words) is (kind != "document")


def test_in_the_spikes_own_batch_the_loss_needs_no_step():
    alone = facts(proof=proved(kind="source"))
    alone.blamed = dataclasses.replace(BLAMED, step=400)
    assert "that comes from `planted` lowers the loss by 0.95 nats" in said(alone)[2]


def test_a_loss_that_is_not_finite_is_made_finite_by_the_removal_and_not_by_random_ones():
    broken = facts(
        proof=dataclasses.replace(
            proved(), excess_removed=math.inf, share=1.0, random=(-math.inf,) * 3
        )
    )
    broken.excess = dataclasses.replace(excess(), state=math.inf)
    words = said(broken)[2]
    assert "makes the loss of step 402 finite again" in words
    assert "1 random sequence removed instead it is not finite either, in 3 of 3 trials" in words


def test_every_verdict_has_its_words():
    assert set(CAUSES) == set(get_args(Verdict))
