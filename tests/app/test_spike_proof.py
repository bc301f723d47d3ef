"""What takes the hedge away from a spike's sentence: a proof by replay, and nothing less."""

import json
import math

import pytest

from app.views.spikes import proof
from forensics.store.writer import Writer, replace_table
from forensics.train.header import INHERITED
from tests.app import forks_by_hand

HEDGE = "is not thereby the cause"


def said_of(parts):
    return "".join(p if isinstance(p, str) else p.text for p in parts)


def blame(**changes):
    """A blame that proves, but for `changes`."""
    null = {"windows": [{"step": i, "taken": 0.01} for i in range(19)]}
    held = {"causal": True, "p": 0.05, "null": null} | changes.pop("proof", {})
    return {
        "version": 2,
        "spike": {"step": 121},
        "verdict": "data",
        "sentence": "Without document 3 95% of the excess goes.",
        "control": {"bitwise": True},
        "proof": held,
        "candidates": [],
    } | changes


@pytest.mark.parametrize(
    ("document", "proves"),
    [
        (blame(), True),
        (blame(verdict="data and state"), True),
        (blame(proof={"causal": False, "p": 0.5}), False),
        (blame(control={"bitwise": False}), False),
        (
            blame(verdict="cannot tell"),
            False,
        ),  # beyond windows without a spike, but other data spike too
        (blame(verdict="state or policy") | {"proof": None}, False),
        ({"spike": {"step": 121}, "verdict": "data"}, False),
    ],
)
def test_blame_proves_where_its_own_rule_holds_and_it_blames_data(document, proves):
    assert proof.of_blame(document).proves is proves


def test_blame_says_its_verdict_p_and_n():
    assert said_of(proof.of_blame(blame()).sentence) == (
        "Trained again: the cause is the data. Without document 3 95% of the excess goes. Held"
        " against the same search in 19 windows without a spike: p = 0.05."
    )
    own = blame(sentence="Without it 95% goes.", control={"bitwise": False}, proof={"p": None})
    assert said_of(proof.of_blame(own).sentence) == (
        "Trained again (tolerance only): the cause is the data. Without it 95% goes."
    )


FORK = {
    "fork": "without",
    "sentence": "removes 2 sequences",
    "control_bitwise": True,
    "control_level": "exact",
    "placebos": 19,
    "p": 0.05,
    "effect": 30.0,
}


def result(finding, **final):
    """A fork's result with this finding."""
    return forks_by_hand.result(
        {"fork": "without"}, finding=finding, causal=finding == "beyond", **final
    )


RESULT = result("beyond")


@pytest.mark.parametrize(
    ("fork", "document", "gone", "proves"),
    [
        ({}, RESULT, True, True),
        (
            {"placebos": 3, "p": 0.25},
            RESULT,
            True,
            True,
        ),  # by the factor of 5: its document says so
        ({}, RESULT, False, False),  # it does something, but the spike is there all the same
        ({}, RESULT, None, False),
        (
            {},
            result("not distinguishable"),
            True,
            False,
        ),
        ({}, None, True, False),
        ({"control_bitwise": False, "control_level": "reproduces"}, RESULT, True, False),
        ({"control_bitwise": False, "control_level": "absent"}, RESULT, True, False),
        (
            {"placebos": 0, "p": None},
            result("none run", placebos=0),
            True,
            False,
        ),
    ],
)
def test_a_fork_proves_where_its_control_is_the_run_the_rule_holds_and_the_spike_is_gone(
    fork, document, gone, proves
):
    assert proof.of_fork(FORK | fork, document, (7.9, 2.9), gone).proves is proves


def test_a_fork_says_its_losses_p_and_n_and_how_much_they_are_worth():
    assert said_of(proof.of_fork(FORK, RESULT, (7.927, 2.857), True).sentence) == (
        "Trained again: in fork without, which removes 2 sequences, the spike does not happen; the"
        " loss at this step is 2.857 instead of 7.927 nats/token. At its end: an effect beyond the"
        " placebos, p = 0.05 with 19 placebos."
    )
    loose = FORK | {"control_bitwise": False, "control_level": "absent"}
    assert said_of(proof.of_fork(loose, RESULT, (7.9, 2.9), True).sentence) == (
        "Trained again (tolerance only): in fork without, which removes 2 sequences, the loss at"
        " this step is 2.900 instead of 7.900 nats/token. Its control does not show the spike: no"
        " verdict."
    )
    alone = proof.of_fork(FORK | {"placebos": 0, "p": None}, None, (7.9, 2.9), True)
    assert said_of(alone.sentence).endswith("It has no placebo, so no effect is claimed.")


def test_a_spike_happens_at_half_its_excess_or_more():
    spike = {"baseline": 2.0, "value": 6.0}
    assert proof.happens(spike, [2.0, 4.0]) is True
    assert proof.happens(spike, [2.0, 3.9]) is False
    assert proof.happens(spike, [2.0, math.nan]) is True
    assert proof.happens(spike, []) is None  # nothing was computed near it
    broken = {"baseline": None, "value": math.nan}
    assert proof.happens(broken, [5.0]) is False and proof.happens(broken, [math.inf]) is True


# ---- the page


@pytest.fixture
def spike(apart):
    from app import data

    return next(s for s in data.rows("spikes", run="demo") if s["metric"] == "loss")["step"]


def make_fork(runs, spike, *, loss=2.5, finished=True, document=RESULT, **row):
    """A fork of `demo` over the spike, of a loss of its own."""
    folder = runs / "without"
    folder.mkdir()
    parent = json.loads((runs / "demo" / "run.json").read_text())
    header = {key: parent[key] for key in INHERITED} | {
        "name": "without",
        "status": "finished",
        "first_step": spike - 5,
        "steps": spike + 5,
        "parent": "demo",
        "parent_step": spike - 5,
        "created": "2026-01-01T00:00:00Z",
        "corpus_sources": [],
    }
    (folder / "run.json").write_text(json.dumps(header))
    names = ("name", "status", "first_step", "steps", "parent", "parent_step", "created")
    replace_table(folder, "runs", {k: [header[k]] for k in names})
    with Writer(folder) as w:
        w.append("steps", step=list(range(spike - 5, spike + 5)), loss=loss, grad_norm=1.0)
    if finished:
        replace_table(
            folder,
            "forks",
            {
                k: [v]
                for k, v in (
                    FORK | {"parent": "demo", "first": spike - 5, "last": spike + 5} | row
                ).items()
            },
        )
        (folder / "fork.json").write_bytes(document.to_json())


def test_a_fork_that_is_a_proof_takes_the_hedge_away(apart, spike, app_page, said):
    make_fork(apart, spike)
    text = said(app_page("spikes", run="demo", spike=spike))
    assert "the spike does not happen" in text and "p = 0.05 with 19 placebos" in text
    assert HEDGE not in text


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"finished": False}, False),
        ({"placebos": 0, "p": None, "document": result("none run", placebos=0)}, True),
        ({"control_bitwise": False, "control_level": "absent"}, True),
        ({"loss": 7.9}, True),
    ],
    ids=["unfinished", "no placebo", "no control", "it spikes all the same"],
)
def test_a_fork_that_is_no_proof_leaves_the_hedge(apart, spike, app_page, said, how, told):
    make_fork(apart, spike, **how)
    text = said(app_page("spikes", run="demo", spike=spike))
    assert HEDGE in text and ("Trained again" in text) is told
    if how.get("loss"):
        assert "does not happen" not in text


def test_blame_that_proves_takes_the_hedge_away_and_of_another_spike_does_not(
    apart, spike, app_page, said
):
    (apart / "demo" / "blame-7.json").write_text(json.dumps(blame(spike={"step": 7})))
    assert HEDGE in said(app_page("spikes", run="demo", spike=spike))
    (apart / "demo" / f"blame-{spike}.json").write_text(
        json.dumps(blame(spike={"step": spike}, verdict="cannot tell"))
    )
    text = said(app_page("spikes", run="demo", spike=spike))
    assert HEDGE in text and "Trained again" in text
    (apart / "demo" / f"blame-{spike}.json").write_text(json.dumps(blame(spike={"step": spike})))
    text = said(app_page("spikes", run="demo", spike=spike))
    assert HEDGE not in text and "Without document 3 95% of the excess goes." in text
