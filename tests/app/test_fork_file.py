"""Building a fork: the form, the file that it makes, and its plan."""

from __future__ import annotations

import json
import tomllib

import pytest

from app import data
from app.views.forks import build, forms, plan
from app.views.forks.state import file_of, state_of
from forensics.errors import ForensicsError
from replay.forks import toml_text
from replay.forks.result import ForkPlan
from tests.app.forks_by_hand import HOSTILE, text_of


def test_the_form_makes_a_fork_file_that_says_the_same() -> None:
    text = toml_text.written(
        {"parent": "demo", "from": 4, "to": 9, "name": None},
        [
            forms.intervention("lr-scale", {"window": "5:6", "factor": "0.5"}),
            forms.intervention("remove-sequences", {"at": "5/1, 5/3", "how": "mask"}, 32),
            forms.intervention("insert", {"at": "5", "text": HOSTILE + '"\\\n\x7f😀'}),
            forms.intervention(
                "reset-moments", {"tensors": "layers.0.*, embed.weight", "counter": False}
            ),
        ],
    )
    raw = tomllib.loads(text)
    assert raw["parent"] == "demo" and "name" not in raw
    lr, remove, insert, reset = raw["intervention"]
    assert lr == {"kind": "lr-scale", "window": "5:6", "factor": 0.5}
    assert remove["at"] == [[5, 1, 0, 32], [5, 3, 0, 32]] and remove["how"] == "mask"
    assert insert["text"] == HOSTILE + '"\\\n\x7f😀' and insert["at"] == 5
    assert reset == {"kind": "reset-moments", "tensors": ["layers.0.*", "embed.weight"]}


@pytest.mark.parametrize(
    "kind, answers",
    [
        ("lr-scale", {"factor": "half"}),
        ("remove-documents", {"documents": "1, two"}),
        ("remove-sequences", {"at": "5"}),
        ("swap", {"a": "x"}),
    ],
)
def test_an_answer_that_cannot_be_read_is_refused_by_its_name(
    kind: str, answers: dict[str, str]
) -> None:
    with pytest.raises(ForensicsError) as e:
        forms.intervention(kind, answers, 32)
    assert "wanted" in e.value.message and e.value.kind == "usage"


def test_every_form_is_a_kind_that_replay_knows_with_keys_that_it_has() -> None:
    import dataclasses

    from replay.interventions.registry import KINDS

    for kind in forms.titles():
        if kind != "file":
            keys = {f.name for f in dataclasses.fields(KINDS[kind])} | {"window"}
            assert {f.name for f in forms.fields(kind)} <= keys, kind


def test_a_fork_begins_at_the_checkpoint_before_the_spike_unless_that_is_far() -> None:
    assert build.default_window(400, 398, 460, [0, 350, 390, 450]) == (390, 440)
    assert build.default_window(400, None, 460, [0, 100]) == (384, 440)
    assert build.default_window(None, None, 460, [0, 400, 450]) == (400, 432)


def test_the_plan_says_what_is_touched_and_how_long_it_takes() -> None:
    made = ForkPlan(
        fork="f",
        parent="demo",
        first=4,
        last=24,
        does="skips steps 4:6",
        sequences=16,
        sequences_by_step={4: 8, 5: 8},
        tokens=512,
        arms=5,
        steps_to_compute=100,
        probe_readings=20,
        hours=0.01,
        memory_bytes=30 << 20,
    )
    assert text_of(plan.sentence_of(made)) == (
        "skips steps 4:6. It changes 16 sequences of 2 steps, 4 to 5: 512 predicted tokens. It"
        " trains 5 copies of the model (control, fork and null forks), 100 steps in all, and"
        " reads the probes 20 times: about 36 s, and 30 MiB of memory."
    )


def test_the_file_of_a_fork_makes_the_same_fork(forked) -> None:
    from replay.forks.spec import build as made
    from replay.lineage import open_trajectory

    state = state_of("skipped", "demo")
    assert state.status == "done" and state.window == (88, 96)
    spec = made(forked, open_trajectory(forked, "demo"), tomllib.loads(file_of(state, placebos=19)))
    kept = json.loads((forked / "skipped" / "fork.json").read_text())
    assert (spec.fork, spec.first, spec.last, spec.placebos, spec.chaos) == (
        "skipped",
        88,
        96,
        19,
        1,
    )
    assert [json.loads(json.dumps(i)) for i in kept["interventions"]] == data.header("skipped")[
        "interventions"
    ]


def test_the_url_fills_the_form(forked, app_page) -> None:
    page = app_page("forks", run="demo", part="build", step=90, slot=3, first=88, last=99)
    shown = "\n".join(c.value for c in page.code)
    assert (
        'kind = "remove-sequences"' in shown
        and "at = [[90, 3, 0, 32]]" in shown
        and "from = 88" in shown
        and "to = 99" in shown
    )
    page = app_page("forks", run="demo", part="build", document=2)
    assert "documents = [2]" in "\n".join(c.value for c in page.code)


def test_an_answer_that_cannot_be_read_is_a_sentence_beside_the_form(
    forked, app_page, said
) -> None:
    page = app_page("forks", run="demo", part="build", kind="lr-scale")
    next(t for t in page.text_input if t.label == "Factor").set_value("half").run()
    assert not page.exception and "wanted a number, found" in said(page)


def test_any_kind_can_be_written_as_a_file(forked, app_page) -> None:
    page = app_page("forks", run="demo", part="build", kind="file")
    assert tomllib.loads(page.text_area[0].value)["intervention"][0]["kind"] == "remove-documents"


def test_a_fork_of_a_fork_is_offered_where_its_parent_has_a_state(forked, app_page, said) -> None:
    from replay.forks.lockstep import require_steps
    from replay.forks.spec import build as made
    from replay.lineage import open_trajectory

    parent = open_trajectory(forked, "skipped")
    for selection in ({}, {"spike": 60}, {"first": 3}, {"first": 2**53 - 1}):
        page = app_page("forks", run="skipped", part="build", kind="skip", **selection)
        raw = tomllib.loads(next(c.value for c in page.code if c.value.startswith("parent =")))
        made(forked, parent, raw).check(parent)
    page = app_page("forks", run="skipped", part="sweep")
    states = next(t for t in page.text_input if t.label == "At states").value
    file = tomllib.loads(page.text_area[0].value)
    require_steps(parent, [int(s) for s in states.split(",")], "--at", file["to"] - file["from"])
    assert "replay fork skipped --from 88 --to 96 --skip 88:89" in said(
        app_page("forks", run="skipped", part="fork")
    )
    assert "replay fork skipped --from 88 --to 96" in said(
        app_page("forks", run="skipped", fork="gone")
    )
