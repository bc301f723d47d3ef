"""Each verdict, from the facts that make it, and the words that go with it."""

from __future__ import annotations

import pytest

from replay.blame.blamed_step import Asked
from replay.blame.counterfactuals import Trial
from replay.blame.deletion import Proof
from replay.blame.excess import Excess
from replay.blame.verdict import Facts, judge
from replay.interventions.rows import Slot
from replay.verify import Report

ROW = Slot(400, 3, 0, 64)
ASKED = Asked(402, True, 4.0, 3.0, 0.1, "fast", 400, 410, "")
REPORT = Report(True, "exact", 10, 10, None, 0.0, True, [])


def excess(state: float = 0.9, data: float = 0.1) -> Excess:
    return Excess(data, state, 4.0, 0.0, 3.0, 3.0 + state, 0.05)


def proved(
    taken: float = 0.95, random: tuple[float, ...] = (0.0, 0.01, -0.01), causal: bool = True
) -> Proof:
    return Proof(
        (ROW,),
        taken,
        taken,
        0.0,
        1 - taken,
        random,
        9.0,
        0.25,
        causal,
        f"beyond the random removals (N = {len(random)})",
    )


def trials(*left: float) -> list[Trial]:
    return [Trial(f"from state {i}", x, x >= 0.5) for i, x in enumerate(left)]


def facts(**given) -> Facts:
    usual = {
        "proof": proved(),
        "largest": 0.95,
        "tried": 5,
        "who": "the 1 strongest sequences",
        "other_data": trials(0.0, 0.1, 0.0),
        "other_states": trials(0.9, 0.8),
    }
    return Facts(ASKED, REPORT, False, 4.0, excess(), **(usual | given))


def test_data_when_its_removal_takes_the_spike_away_and_other_states_spike_with_it_too():
    word, sentence = judge(facts())
    assert word == "data"
    assert (
        "95% of the excess of 1.000 nats" in sentence
        and "N = 3" in sentence
        and "spike 2 of 2 times" in sentence
    )


def test_data_and_state_when_up_to_date_moments_take_it_away_and_the_tensor_is_named():
    stale = [
        {
            "tensor": "embed.weight",
            "step": 401,
            "staleness": 9.0,
            "rms_t": 4.0,
            "usual": 1.0,
            "times": 9.0,
        }
    ]
    word, sentence = judge(
        facts(up_to_date=Trial("β₂ 0.999 → 0.9 from state 400", 0.1, False), stale=stale)
    )
    assert word == "data and state"
    assert (
        "embed.weight, staleness 9.00 at step 401 (1.00 before" in sentence
        and "0.100 of 1.000 nats are left" in sentence
    )


def test_data_and_state_when_the_same_batches_spike_from_no_other_state():
    assert judge(facts(other_states=trials(0.1, 0.0)))[0] == "data and state"


def test_state_or_schedule_when_any_other_data_spike_too_and_the_rate_is_told():
    rate = Trial("learning rate held at 0.01 (it reached 0.3)", 0.02, False)
    word, sentence = judge(facts(other_data=trials(0.9, 1.0, 0.8), steady_rate=rate))
    assert (
        word == "state or schedule" and "3 of 3 times" in sentence and "takes it away" in sentence
    )
    word, sentence = judge(facts(other_data=trials(0.9, 1.0, 0.8), proof=None, tried=0))
    assert word == "state or schedule" and "learning rate is steady" in sentence


def test_numerics_when_the_control_does_not_spike_whatever_else_was_found():
    report = Report(
        False,
        "absent",
        10,
        10,
        {"step": 399, "what": "state_digest", "tensor": None, "layer": None},
        1.0,
        True,
        [],
    )
    given = facts()
    given.absent, given.report = True, report
    word, sentence = judge(given)
    assert (
        word == "numerics"
        and "differs from step 399" in sentence
        and "Nothing is said about data" in sentence
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"proof": proved(causal=False)}, "no proof"),
        ({"proof": proved(taken=0.3), "largest": 0.3}, "no set of sequences is blamed"),
        ({"proof": proved(taken=0.9, random=(0.6, 0.5, 0.55))}, "random ones take 0.550 nats too"),
        ({"other_data": trials(0.9, 0.9, 0.0)}, "neither data nor state alone"),
        ({"proof": None, "tried": 0}, "No removal helps"),
        ({"proof": None, "interrupted": True}, "Interrupted"),
    ],
)
def test_cannot_tell_when_the_rule_for_causal_words_is_not_met(given, words):
    word, sentence = judge(facts(**given))
    assert word == "cannot tell" and words in sentence


def test_cannot_tell_where_no_spike_is_to_be_explained():
    given = facts()
    given.asked = Asked(402, False, 3.1, 3.0, 0.1, None, None, None, "")
    given.excess = excess(state=0.05, data=0.1)
    word, sentence = judge(given)
    assert word == "cannot tell" and "no spike to explain" in sentence and "3.0σ" in sentence
