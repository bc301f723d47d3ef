"""What a fork is said to be: its title, its sentence, and what limits them."""

from __future__ import annotations

from app import data
from app.views.forks import panels, summary
from app.views.forks.state import State
from replay.forks import sentences
from tests.app.forks_by_hand import result, text_of


def spike(step, happens):
    fork_loss = {True: 4.9, False: 3.1, None: None}[happens]
    return {
        "step": step,
        "baseline": 3.0,
        "loss": 5.0,
        "fork_loss": fork_loss,
        "sigma": 9.0,
        "happens": happens,
    }


def test_the_sentence_has_effect_p_n_reconvergence_gaps_and_the_control() -> None:
    said = text_of(summary.sentence_of(result()))
    assert (
        "At state 416 the fork is 11× as far from the control as the median placebo (KL divergence"
        " on the probe set), p = 0.05 with 19 placebos: an effect beyond the placebos." in said
    )
    assert "It does not come back among the placebos within the 16 steps of the fork." in said
    assert (
        "Probe loss at the end: 3.140 in the control, 3.086 in the fork, a difference of"
        " −0.054 ± 0.007 nats/token over 64 held-out sequences; −0.060 ± 0.008 over 32 sequences"
        " that neither has trained on." in said
    )
    assert said.endswith("The unaltered control equals the parent bit for bit ✓.")
    assert "It is back among the placebos after 7 steps." in text_of(
        summary.sentence_of(result({"time_to_reconverge": 7}))
    )


def test_without_a_placebo_no_effect_is_claimed() -> None:
    alone = result(placebos=0, effect=None, p=None, finding="none run", causal=False)
    said = text_of(summary.sentence_of(alone))
    assert "no placebo was run, so no effect is claimed" in said
    assert "as far from the control" not in said and "back among" not in said
    assert text_of(summary.title_of(alone)).endswith("so no effect is claimed")


def test_a_distance_that_no_placebo_has_is_no_number_of_times(monkeypatch) -> None:
    for effect in ("Infinity", "NaN", None):
        said = text_of(summary.sentence_of(result(effect=effect)))
        assert "At state 416 the placebos end where the control does" in said
        assert "inf" not in said and "nan" not in said


def test_the_title_tells_of_the_parents_spike_else_of_the_placebos() -> None:
    def title(*spikes):
        return text_of(summary.title_of(result({"spikes": list(spikes)})))

    assert title(spike(400, False)).endswith("in 400:416: the spike at step 400 does not happen")
    assert title(spike(400, True)).endswith("the spike at step 400 still happens")
    assert title(spike(400, False), spike(410, True)).endswith("1 of 2 spikes does not happen")
    assert title().endswith(": an effect beyond the placebos")


def test_nothing_is_said_of_a_spike_that_neither_the_control_nor_the_fork_can_show() -> None:
    control = {"control": {"level": "absent", "bitwise": False, "sentence": "tolerance only"}}
    title = text_of(summary.title_of(result({**control, "spikes": [spike(400, False)]})))
    assert title.endswith(": no verdict, because the control does not show the parent's spike")
    said = text_of(summary.sentence_of(result(control)))
    assert "with 19 placebos: no verdict." in said and "beyond the placebos" not in said
    unknown = result({"spikes": [spike(400, None)]})
    assert text_of(summary.title_of(unknown)).endswith(": an effect beyond the placebos")
    assert "computes no loss there, so whether it happens is not known" in text_of(
        summary.sentence_of(unknown)
    )
    both = result({"spikes": [spike(400, None), spike(410, True)]})
    assert text_of(summary.title_of(both)).endswith("the spike at step 410 still happens")


def test_the_placebos_loss_and_what_they_can_show_at_best_are_said() -> None:
    change = {"change": -0.09, "placebos": [0.04, 0.05], "lower": 0, "higher": 2, "p": 1 / 3}
    told = text_of(summary.sentence_of(result(loss_change=change)))
    assert "The 2 placebos end at +0.0400 to +0.0500. The fork is lower than all of them" in told
    few = result(placebos=3, least_p=0.25)
    assert list(sentences.limits(few)) == [
        "3 placebos can show p = 0.25 at best; --placebos 19 can show 0.05."
    ]


def test_the_parents_loss_spikes_of_the_window_are_marked(monkeypatch) -> None:
    spike = {"step": 400, "kind": "spike", "baseline": 3.0, "value": 5.0}
    rows = [spike, spike | {"step": 500}, spike | {"kind": "nonfinite"}]
    monkeypatch.setattr(data, "rows", lambda query, **asked: rows)
    state = State(
        "f", "done", {"parent": "demo", "parent_step": 390, "steps": 420}, None, None, None
    )
    assert panels.spikes_of(state) == [spike]


def test_a_sentence_of_a_run_without_a_probe_set_and_without_unseen_sequences_is_made_too() -> None:
    said = text_of(summary.sentence_of(result(unseen={"sequences": 0})))
    assert "over 64 held-out sequences. The unaltered control" in said
    bare = text_of(
        summary.sentence_of(result(loss_fork=None, loss_control=None, logit_kl=None, measure="l2"))
    )
    assert "median placebo (L2 distance of the parameters)" in bare and "Probe loss" not in bare
