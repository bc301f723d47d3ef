"""Forks: what a fork is said to be, how it is drawn beside its null forks, building and launching
one.
"""

from __future__ import annotations

import json
import shutil
import tomllib

import pyarrow as pa
import pytest

from app import browser as driver
from app import data, theme
from app import documents as kept
from app.selection import Selection, picked_row
from app.views.blame import page as blame
from app.views.blame import removal, summary, suspects
from app.views.forks import build, forms, matrix, matrix_charts, panels, plan, sweep
from app.views.forks import fork as one
from app.views.forks import page as forks_page
from app.views.forks.state import State, file_of, launch, state_of
from forensics.errors import ForensicsError
from replay.forks import toml_text

HOSTILE = "<script>alert(1)</script> ![](http://evil.example/a.png) \u202eevil\x07"


def result(**final):
    """A fork.json of the newest schema; `final` alters its end."""
    end = {
        "loss_control": 3.14,
        "loss_fork": 3.086,
        "loss_error": 0.007,
        "probe_sequences": 64,
        "logit_kl": 0.06,
        "l2": 1.45,
        "unseen": {"loss_control": 3.3, "loss_fork": 3.24, "loss_error": 0.008, "sequences": 32},
        "measure": "logit_kl",
        "effect": 10.8,
        "p": 0.05,
        "placebos": 19,
        "verdict": "beyond the placebos (N = 19)",
    }
    return {
        "fork": "f",
        "parent": "demo",
        "from": 400,
        "to": 416,
        "does": "removes 2 documents (replace) in 400:416",
        "chaos": 1,
        "placebos": 19,
        "control": {"level": "exact", "bitwise": True, "sentence": "bit for bit"},
        "time_to_reconverge": None,
        "first_difference": None,
        "interventions": [],
        "barriers": [],
        "final": end | final,
    }


def text_of(parts):
    return "".join(p if isinstance(p, str) else p.text for p in parts)


# ---- sentences


def test_the_sentence_has_effect_p_n_reconvergence_gaps_and_the_control() -> None:
    said = text_of(one.sentence_of(result()))
    assert (
        "Effect 11× the placebos' median KL at state 416, p = 0.05, N = 19: beyond the placebos."
        in said
    )
    assert "Not back among the placebos within the 16 steps of the window." in said
    assert (
        "Probe loss 3.140 → 3.086, −0.054 ± 0.007 (64 sequences); −0.060 ± 0.008 on 32 that no arm"
        " has consumed." in said
    )
    assert said.endswith("Control: bit for bit ✓.")
    assert "Back among the placebos after 7 steps." in text_of(
        one.sentence_of(result() | {"time_to_reconverge": 7})
    )


def test_without_a_placebo_no_effect_is_claimed() -> None:
    alone = result(
        placebos=0, effect=None, p=None, verdict="no placebo was run: no effect is claimed"
    )
    assert "no placebo was run: no effect is claimed" in text_of(one.sentence_of(alone))
    assert "Effect" not in text_of(one.sentence_of(alone)) and "Back among" not in text_of(
        one.sentence_of(alone)
    )
    assert text_of(one.title_of(alone)).endswith(": no effect is claimed")


def test_the_title_tells_of_the_parents_spike_else_of_the_placebos() -> None:
    assert text_of(one.title_of(result(), [(400, False)])).endswith(
        "in 400:416: the spike at 400 does not happen"
    )
    assert text_of(one.title_of(result(), [(400, True)])).endswith("the spike at 400 still happens")
    assert text_of(one.title_of(result(), [(400, False), (410, True)])).endswith(
        "1 of 2 spikes do not happen"
    )
    assert text_of(one.title_of(result())).endswith(": beyond the placebos")


def test_nothing_is_said_of_a_spike_that_neither_the_control_nor_the_fork_can_show() -> None:
    control = {"control": {"level": "absent", "bitwise": False, "sentence": "tolerance only"}}
    title = text_of(one.title_of(result() | control, [(400, False)]))
    assert title.endswith(": no verdict, the control does not show the parent's spike")
    said = text_of(one.sentence_of(result() | control))
    assert "N = 19: no verdict." in said and "beyond the placebos" not in said
    assert text_of(one.title_of(result(), [(400, None)])).endswith(": beyond the placebos")
    assert text_of(one.title_of(result(), [(400, None), (410, True)])).endswith(
        "the spike at 410 still happens"
    )


@pytest.mark.parametrize(
    "own, happens",
    [
        ({}, None),
        ({401: 3.0}, False),
        ({402: 4.2}, True),
        ({399: float("inf")}, True),
        ({403: 9.0}, False),
    ],
)
def test_a_spike_happens_where_half_its_excess_is_seen_within_two_steps(
    monkeypatch, own, happens
) -> None:
    """{} : its batches were left out; 403 lies too far, so what is near is 400."""
    own = own | ({400: 3.0} if 403 in own else {})
    spike = {"step": 400, "kind": "spike", "baseline": 3.0, "value": 5.0}

    def rows(query, **asked):
        if query == "spikes":
            return [spike, spike | {"step": 500}, spike | {"kind": "nonfinite"}]
        parent = [{"arm": "parent", "step": s, "loss": 5.0} for s in range(398, 403)]
        return [
            *parent,
            *(
                {"arm": "fork", "step": s, "loss": x}
                for s, x in own.items()
                if asked["first"] <= s < asked["last"]
            ),
        ]

    monkeypatch.setattr(data, "rows", rows)
    state = State(
        "f", "done", {"parent": "demo", "parent_step": 390, "steps": 420}, None, None, None
    )
    assert panels.spikes_of(state) == [(400, 5.0, happens)]


def test_a_sentence_of_an_earlier_version_and_of_a_run_without_a_probe_set_is_made_too() -> None:
    old = result()
    del old["final"]["unseen"], old["final"]["measure"]
    assert "(64 sequences). Control" in text_of(one.sentence_of(old))
    bare = result(loss_fork=None, loss_control=None, logit_kl=None, measure="l2")
    assert "median L2" in text_of(one.sentence_of(bare)) and "Probe loss" not in text_of(
        one.sentence_of(bare)
    )


# ---- what is drawn


def arms(**each):
    """Rows of `fork_arms`: arm → values of KL by step from 1."""
    rows = [
        {
            "step": i + 1,
            "arm": arm.replace("_", "-"),
            "kind": arm.split("_")[0],
            "l2": x,
            "logit_kl": x,
            "loss_gap": x,
            "unseen_gap": x,
        }
        for arm, values in each.items()
        for i, x in enumerate(values)
    ]
    schema = pa.schema(
        [
            ("step", pa.int64()),
            ("arm", pa.string()),
            ("kind", pa.string()),
            *((n, pa.float64()) for n in ("l2", "logit_kl", "loss_gap", "unseen_gap")),
        ]
    )
    return pa.Table.from_pylist(rows, schema)


def bands(kind, values):
    return pa.table(
        {
            "step": [1],
            "kind": [kind],
            "measure": ["logit_kl"],
            "low": [min(values)],
            "middle": [sum(values) / len(values)],
            "high": [max(values)],
            "forks": [len(values)],
        }
    )


@pytest.mark.parametrize("n, banded", [(4, False), (5, True)])
def test_fewer_than_five_null_forks_are_each_drawn_and_from_five_on_their_band(
    n: int, banded: bool
) -> None:
    values = [0.1 * (i + 1) for i in range(n)]
    found = panels.positive(
        arms(fork=[1.0], **{f"placebo_{i}": [x] for i, x in enumerate(values)}), "logit_kl"
    )
    drawn, band, ends, said = panels.parts_of(found, bands("placebo", values), "logit_kl")
    assert set(drawn["kind"].to_pylist()) == ({"fork"} if banded else {"fork", "placebo"})
    assert (
        band.num_rows == banded
        and ("10–90 %" in said) == banded
        and (", each" in said) == (not banded)
    )
    assert {e["word"] for e in ends.to_pylist()} == {"fork", f"{n} placebos"}


def test_a_distance_of_zero_cannot_stand_on_a_log_axis_and_is_left_out() -> None:
    found = panels.positive(arms(fork=[0.5, 0.0, None]), "logit_kl")
    assert found["value"].to_pylist() == [0.5]


def test_placebos_that_ended_alike_are_counted_once() -> None:
    table = arms(fork=[1.0, 2.0], placebo_0=[0.1, 0.3], placebo_1=[0.2, 0.3], placebo_2=[0.2, 0.4])
    assert one.distinct_placebos(table) == (3, 2)
    assert one.distinct_placebos(arms(fork=[1.0])) == (0, 0)


def test_the_lower_of_two_words_goes_under_its_line() -> None:
    assert [e["below"] for e in theme.below([{"value": 2.0}, {"value": 1.0}])] == [False, True]
    assert [e["below"] for e in theme.below([{"value": 2.0}])] == [False]


def test_rows_stand_in_the_order_of_the_forward() -> None:
    names = [
        ("norm.weight", None),
        ("L1", 1),
        ("unembed.weight", None),
        ("L0", 0),
        ("embed.weight", None),
    ]
    order = panels.order_of_rows([{"row": r, "layer": layer} for r, layer in names])
    assert order == ["embed.weight", "L0", "L1", "norm.weight", "unembed.weight"]


@pytest.mark.parametrize(
    "event, row",
    [
        ({"selection": {"rows": [2]}}, 2),
        ({"selection": {"rows": []}}, None),
        (None, None),
        ({}, None),
    ],
)
def test_the_row_of_a_table_is_read_from_its_event(event, row) -> None:
    assert picked_row(event, range(3)) == row


# ---- sweep, matrix, blame


def sweep_of(verdict="beyond the placebos (N = 3)", over=(40.0, 3.0)):
    rows = [
        {
            "step": s,
            "arm": arm,
            "seeds": 1,
            "learning_rate": 1e-3,
            "l2": 1.0,
            "l2_range": [0.5, 2.0],
            "l2_over_moved": 0.2,
            "placebo_range": [0.1, 0.2],
            "over_placebos": o,
            "p": 0.25,
            "placebos": 3,
            "verdict": verdict,
            "time_to_reconverge": None if s == 60 else 4,
            "censored": 0,
            "bitwise": True,
        }
        for s, o in zip((60, 300), over)
        for arm in ("own", "equal")
    ]
    return {
        "run": "demo",
        "does": f"skips steps {HOSTILE}",
        "from": 60,
        "steps": [60, 300],
        "horizon": 16,
        "seeds": 1,
        "equal_learning_rate": 2e-3,
        "placebos": 3,
        "points": [],
        "summary": rows,
    }


def test_a_sweep_says_early_or_late_only_where_the_placebos_allow_it() -> None:
    assert text_of(sweep.sweep_title(sweep_of())).endswith(
        "largest early, at 60 (40× the placebos)"
    )
    none = sweep_of("not distinguishable from the placebos (N = 3)")
    assert text_of(sweep.sweep_title(none)).endswith(
        "not distinguishable from the placebos at any of them"
    )
    said = text_of(sweep.sweep_sentence(sweep_of()))
    assert (
        "40× at 60 and 3× at 300 (p = 0.25 and 0.25, N = 3)" in said
        and "2 of 4 come back among the placebos within 16 steps" in said
    )


def matrix_of(data=0.5, state=0.01, scale=0.01):
    cells = [
        {
            "state": s,
            "step": b,
            "jump": data * (b == 11) + state * (s == 10),
            "loss": 3.0,
            "grad_norm": 1.0,
            "consumed": b < s,
            "loss_placebo": 3.0,
            "grad_norm_placebo": 1.0,
        }
        for s in (5, 10, 12)
        for b in (10, 11)
    ]
    effects = {
        "mean": 0.0,
        "data": [{"step": 10, "effect": -data / 2}, {"step": 11, "effect": data / 2}],
        "state": [{"state": s, "effect": state * (s == 10)} for s in (5, 10, 12)],
        "interaction": [{"state": c["state"], "step": c["step"], "effect": 0.0} for c in cells],
        "size": {"data": data, "state": state, "interaction": 0.0},
        "placebo_scale": scale,
        "over_placebo": {
            k: v / scale for k, v in (("data", data), ("state", state), ("interaction", 0.0))
        },
    }
    return {
        "run": "demo",
        "batches": [10, 12],
        "states": [5, 10, 12],
        "placebos": 8,
        "probe_sequences": 4,
        "consumed": 3,
        "cells": cells,
        "effects": {"jump": effects, "loss": None, "grad_norm": None},
    }


def test_a_matrix_names_what_stands_out_and_nothing_where_nothing_does() -> None:
    assert text_of(matrix.matrix_title(matrix_of(), "jump")).endswith(
        "the data above all (50× the placebo batches' scale)"
    )
    assert text_of(matrix.matrix_title(matrix_of(0.5, 0.45), "jump")).endswith(
        "the data as much as the state (50× the placebo batches' scale)"
    )
    assert text_of(matrix.matrix_title(matrix_of(0.01, 0.0), "jump")).endswith(
        "nothing stands out from the placebo batches"
    )
    assert text_of(matrix.matrix_title(matrix_of(), "loss")).endswith("so nothing is split")


def test_the_cells_of_a_matrix_are_over_the_placebo_scale_and_mark_what_happened() -> None:
    cells = {(c["state"], c["step"]): c for c in matrix.cells_of(matrix_of(), "jump", "all")}
    assert cells["5", 11]["over"] == pytest.approx(50) and cells["5", 11]["level"] == 5
    assert (
        cells["10", 10]["own"]
        and cells["12", 10]["consumed"]
        and not cells["5", 10]["own"]
        and cells["5", 10]["level"] == 0
    )
    assert [c["step"] for c in matrix.cells_of(matrix_of(), "jump", "data")] == [10, 11]
    assert [matrix.level_of(x) for x in (None, 2.9, 3, -6, 10, 20, -41)] == [0, 0, 1, -2, 3, 4, -5]


def test_a_matrix_is_drawn_on_canvas() -> None:
    assert (
        matrix_charts.matrix(False, 40, "jump")["usermeta"]["embedOptions"]["renderer"] == "canvas"
    )


def test_a_matrix_without_a_scale_colours_nothing() -> None:
    found = matrix_of()
    found["effects"]["jump"]["placebo_scale"] = None
    assert {c["level"] for c in matrix.cells_of(found, "jump", "all")} == {0}


def blame_of():
    candidate = {
        "step": 90,
        "slot": 1,
        "sequence": 7,
        "document": 3,
        "source": HOSTILE,
        "path": HOSTILE,
        "part": "data",
        "influence": 0.3,
        "replayed_effect": 0.2,
        "text": HOSTILE,
        "documents": [],
    }
    return {
        "run": "demo",
        "spike": {"step": 90, "value": 5.0, "sigma": 31.0},
        "window": [80, 90],
        "method": "metagradient",
        "control": {
            "level": "exact",
            "bitwise": False,
            "sentence": "tolerance only: step 81 differs first",
        },
        "probes": "4 held-out sequences",
        "excess": {"data": 1.0, "state": 0.5, "total": 1.5},
        "verdict": "data",
        "sentence": f"Without 2 sequences it goes. {HOSTILE}",
        "p": 0.05,
        "proof": {"sequences": 2, "taken": 1.2, "random": [0.1, 0.2], "p": 0.05},
        "candidates": [candidate],
        "documents": [
            {"document": 3, "source": HOSTILE, "path": HOSTILE, "influence": 0.3, "sequences": 1}
        ],
        "deletion_curve": [
            {"removed": 1, "taken": 0.5, "random": 0.1},
            {"removed": 4, "taken": 1.4, "random": None},
        ],
        "trials": {
            "other_data": [{"what": HOSTILE, "left": 0.1, "spikes": False}],
            "other_states": [],
            "up_to_date": None,
            "steady_rate": None,
        },
        "tensors": None,
        "notes": [HOSTILE],
        "replays": 3,
        "steps_replayed": 30,
        "seconds": 1.0,
    }


def test_the_deletion_curve_keeps_what_was_measured() -> None:
    found = removal.curve_of(blame_of())
    assert [(r["removed"], r["order"]) for r in found] == [
        (1, "by influence"),
        (1, "random"),
        (4, "by influence"),
    ]
    assert (
        summary.title_of(blame_of())
        == "Step 90: data · excess 1.500 nats/token, 31σ above its past"
    )


SUSPECTS = [{"step": 90, "slot": 1}, {"step": 90, "slot": 4}, {"step": 88, "slot": 1}]


@pytest.mark.parametrize("rows, place", [([1], {"step": 90, "slot": 4}), ([], None), ([3], None)])
def test_a_click_into_the_candidates_is_a_place_in_the_url(rows, place) -> None:
    assert suspects.place_of({"selection": {"rows": rows}}, SUSPECTS) == place


def test_the_candidate_of_the_url_is_looked_at_else_the_strongest() -> None:
    assert suspects.chosen_of(SUSPECTS, Selection(step=88, slot=1)) is SUSPECTS[2]
    assert suspects.chosen_of(SUSPECTS, Selection(step=88, slot=9)) is SUSPECTS[0]


def test_blame_keeps_the_influence_of_tokens_where_that_is_small_and_says_what_it_costs() -> None:
    from replay.blame.investigate import SHOWN

    assert blame.KEPT == SHOWN
    assert blame.arguments_of("demo", 90, 128) == ["blame", "demo", "--spike", "90", "--tokens"]
    assert blame.arguments_of("demo", 90, 1 << 17) == ["blame", "demo", "--spike", "90"]
    assert "no further replay, only up to 82 kB" in blame.cost_of(128) and "84 MB" in blame.cost_of(
        1 << 17
    )


@pytest.mark.parametrize(
    "tokens, influence, missing", [(None, 0.3, True), ([1, 2], 0.3, False), (None, None, False)]
)
def test_a_document_without_the_influence_of_tokens_is_told_from_one_that_has_none(
    tokens, influence, missing
) -> None:
    found = blame_of()
    found["candidates"][0] |= {"influence": influence} | ({"tokens": tokens} if tokens else {})
    assert summary.without_tokens(found) is missing


# ---- the form


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
    document = {
        "does": "skips steps 4:6",
        "sequences": 16,
        "sequences_by_step": {"4": 8, "5": 8},
        "tokens": 512,
        "documents": [],
        "arms": 5,
        "steps_to_compute": 100,
        "hours": 0.01,
        "memory_bytes": 30 << 20,
    }
    assert (
        text_of(plan.sentence_of(document))
        == "skips steps 4:6. 16 sequences of 2 steps (4 to 5) are touched, 512 targets. 5 arms, 100"
        " steps: about 36 s, 30 MiB of states."
    )


# ---- the page


@pytest.fixture(scope="module")
def forked_runs(app_runs, tmp_path_factory):
    """A copy of the runs with a fork of demo, its placebos, and the documents of a sweep, a matrix
    and blame.
    """
    from replay.forks.run import fork
    from replay.forks.spec import build as made
    from replay.lineage import open_trajectory

    runs = tmp_path_factory.mktemp("forks") / "runs"
    shutil.copytree(app_runs, runs)
    raw = {
        "parent": "demo",
        "from": 88,
        "to": 96,
        "placebos": 2,
        "chaos": 1,
        "probe_every": 1,
        "intervention": [{"kind": "skip", "window": "90:92"}],
    }
    fork(made(runs, open_trajectory(runs, "demo"), raw | {"name": "skipped"}), runs)
    for name, document in (
        ("sweep-0123456789abcdef", sweep_of()),
        ("matrix-0123456789abcdef", matrix_of()),
        ("blame-90", blame_of()),
    ):
        (runs / "demo" / f"{name}.json").write_text(json.dumps(document))
    return runs


@pytest.fixture
def forked(forked_runs, monkeypatch):
    monkeypatch.setenv("FORENSICS_RUNS", str(forked_runs))
    return forked_runs


@pytest.fixture
def rewritten(forked):
    """`rewritten(change)`: the fork's document altered for one test."""
    path = forked / "skipped" / "fork.json"
    kept = path.read_bytes()

    def write(change):
        document = json.loads(kept)
        change(document)
        path.write_text(json.dumps(document))

    yield write
    path.write_bytes(kept)


def test_a_run_without_forks_opens_on_building_one_and_its_list_says_how(
    runs, app_page, said
) -> None:
    page = app_page("forks", run="demo")
    assert not page.exception and "A fork of <code>demo</code> from state" in said(page)
    page = app_page("forks", run="demo", part="fork")
    assert "No fork has left this run yet" in said(page) and "replay fork demo --from" in said(page)


def test_a_fork_opens_on_its_verdict(forked, app_page, said) -> None:
    page = app_page("forks", run="demo", fork="skipped")
    text = said(page)
    assert not page.exception
    assert (
        "demo@88 skips steps 90:92" in text
        and "Control: <b>bit for bit ✓</b>" in text
        and "N = 2" in text
    )
    assert len(page.get("vega_lite_chart") or page.get("arrow_vega_lite_chart")) >= 3


def test_a_fork_in_place_of_the_run_is_looked_at_itself(forked, app_page, said) -> None:
    assert "demo@88 skips steps 90:92" in said(app_page("forks", run="skipped"))


def url_of(page):
    return {
        name: value[-1] if isinstance(value, list) else value
        for name, value in page.query_params.items()
    }


def test_what_is_chosen_on_the_page_of_a_fork_is_chosen_in_its_parent(
    forked, app_page, said
) -> None:
    page = app_page("forks", run="skipped")
    page.get("button_group")[0].set_value("blame").run()
    assert url_of(page) == {
        "run": "demo",
        "fork": "skipped",
        "part": "blame",
    } and "Step 90: data" in said(page)
    page = app_page("forks", run="skipped")
    next(b for b in page.button if b.label == "Build another fork").click().run()
    assert url_of(page) == {"run": "demo", "part": "build", "first": "88", "last": "96"}
    assert "A fork of <code>demo</code>" in said(page)


def test_another_row_of_the_list_is_another_fork_of_the_same_run(forked, monkeypatch) -> None:
    gone = []
    monkeypatch.setattr(forks_page, "goto", lambda **changes: gone.append(changes))
    monkeypatch.setattr(
        forks_page.st,
        "session_state",
        {"list": {"selection": {"rows": [1]}}, "none": {"selection": {"rows": []}}},
    )
    for key in ("list", "none"):
        forks_page._picked("demo", ["a", "b"], key)
    assert gone == [{"run": "demo", "fork": "b", "part": "fork"}]


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


def test_a_fork_that_runs_draws_what_it_has_written_so_far(forked, app_page, said) -> None:
    folder = forked / "skipped"
    (folder / "fork.json").rename(folder / "fork.kept")
    manifest = folder / "tables" / "divergence" / "manifest.json"
    whole = manifest.read_bytes()
    try:
        manifest.touch()
        (folder / "run.json").touch()
        page = app_page("forks", run="demo", fork="skipped")
        assert "What is drawn below is what it has written so far" in said(page)
        assert len(page.get("vega_lite_chart") or page.get("arrow_vega_lite_chart")) == 1
    finally:
        manifest.write_bytes(whole)
        (folder / "fork.kept").rename(folder / "fork.json")


def test_the_chosen_rows_are_marked_and_have_a_table_of_their_own(forked, app_page) -> None:
    marks, ids = [], set()
    for fork in ("skipped", "nothing"):
        table = app_page("forks", run="demo", fork=fork, part="fork").dataframe[-1]
        marks.append(list(table.value[""]))
        ids.add(table.proto.id)
    assert marks == [["●"], [""]] and len(ids) == 2
    table = next(
        t for t in app_page("forks", run="demo", part="blame").dataframe if "goes alone" in t.value
    )
    assert list(table.value[""]) == ["●"]


def test_blame_without_tokens_can_be_started_again_with_them(
    forked, app_page, said, monkeypatch
) -> None:
    from app import jobs

    started = []
    monkeypatch.setattr(jobs, "start", lambda *about: started.append(about))
    page = app_page("forks", run="demo", part="blame", spike=90)
    assert "The influence of each token was not kept" in said(page)
    next(b for b in page.button if b.label == "Blame again, with each token").click().run()
    page = app_page("forks", run="demo", part="blame", spike=91)
    assert "no further replay" in said(page) and "replay blame demo --spike 91 --tokens" in said(
        page
    )
    next(b for b in page.button if b.label == "Blame it").click().run()
    assert started == [
        ("demo", "replay", ["blame", "demo", "--spike", str(s), "--tokens"]) for s in (90, 91)
    ]


def test_a_suspect_of_blame_fills_a_new_form(forked, app_page) -> None:
    page = app_page("forks", run="demo", part="blame", spike=90, values="{}", document=2)
    next(b for b in page.button if b.label == "Fork without batch 90, slot 1").click().run()
    assert url_of(page) == {
        "run": "demo",
        "part": "build",
        "spike": "90",
        "first": "80",
        "last": "114",
        "kind": "remove-sequences",
        "step": "90",
        "slot": "1",
    }
    assert "at = [[90, 1, 0, 32]]" in "\n".join(c.value for c in page.code)


def test_tolerance_only_is_a_banner_with_the_gap(rewritten, app_page, said) -> None:
    rewritten(
        lambda d: d["control"].update(
            bitwise=False,
            level="reproduces",
            sentence="tolerance only: losses by at most 0.01 nats",
        )
    )
    text = said(app_page("forks", run="demo", fork="skipped"))
    assert (
        'class="amber"><b>Tolerance only. </b>' in text
        and "losses by at most 0.01 nats" in text
        and "bit for bit ✓" not in text
    )


def test_placebos_that_are_one_fork_are_told_apart_from_as_many(
    forked, app_page, said, monkeypatch
) -> None:
    monkeypatch.setattr(one, "distinct_placebos", lambda arms: (3, 1))
    assert "The 3 placebos are one and the same fork." in said(
        app_page("forks", run="demo", fork="skipped")
    )


def test_what_a_fork_does_is_text_whatever_it_says(rewritten, app_page, said) -> None:
    rewritten(lambda d: d.update(does=HOSTILE))
    text = said(app_page("forks", run="demo", fork="skipped"))
    assert (
        "&lt;script&gt;alert(1)&lt;/script&gt;" in text
        and "<script>" not in text
        and "⟨U+202E⟩evil⟨U+0007⟩" in text
    )


def test_a_fork_that_is_not_there_and_a_damaged_document_are_sentences(
    forked, rewritten, app_page, said
) -> None:
    assert "No fork here is called <code>nothing</code>" in said(
        app_page("forks", run="demo", fork="nothing")
    )
    (forked / "skipped" / "fork.json").write_text("{")
    page = app_page("forks", run="demo", fork="skipped")
    assert not page.exception
    assert "../../etc" not in said(app_page("forks", run="demo", fork="../../etc/passwd")).replace(
        "&#x27;../../etc/passwd&#x27;", ""
    )


def test_a_stopped_fork_offers_to_go_on_from_where_it_was(forked, app_page, said) -> None:
    import os
    import time

    folder = forked / "skipped"
    (folder / "fork.json").rename(folder / "fork.kept")
    (folder / "halfway").mkdir()
    (folder / "halfway" / "notes.json").write_text(
        json.dumps({"identity": {"placebos": 2, "chaos": 1, "seed": 7}, "step": 92, "notes": {}})
    )
    try:
        for path in (folder / "run.json", folder / "tables" / "divergence" / "manifest.json"):
            os.utime(path, (time.time() - 900, time.time() - 900))
        page = app_page("forks", run="demo", fork="skipped")
        assert "was stopped before its end at 96" in said(page) and "it goes on from there" in said(
            page
        )
        assert "Go on" in [b.label for b in page.button]
        raw = tomllib.loads(file_of(state_of("skipped", "demo")))
        assert (raw["placebos"], raw["chaos"], raw["seed"], raw["name"]) == (2, 1, 7, "skipped")
    finally:
        shutil.rmtree(folder / "halfway")
        (folder / "fork.kept").rename(folder / "fork.json")


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


@pytest.mark.parametrize(
    "part, wanted",
    [
        ("sweep", "largest early, at 60"),
        ("matrix", "the data above all"),
        ("blame", "Step 90: data"),
    ],
)
def test_what_commands_kept_is_shown_and_its_text_stays_text(
    forked, app_page, said, part: str, wanted: str
) -> None:
    page = app_page("forks", run="demo", part=part)
    assert not page.exception and wanted in said(page)
    html = "\n".join(h.proto.body for h in page.get("html"))
    assert (
        "<script>" not in html
        and ("&lt;script&gt;" in html or part == "matrix")
        and "\u202e" not in said(page)
    )
    assert not page.markdown and not page.caption


@pytest.mark.parametrize(
    "part, command",
    [
        ("sweep", "replay sweep fork.toml --at"),
        ("matrix", "replay matrix demo --batches"),
        ("blame", "replay blame demo --spike"),
    ],
)
def test_what_was_not_measured_names_the_command_for_this_run(
    runs, app_page, said, part: str, command: str
) -> None:
    page = app_page("forks", run="demo", part=part)
    assert not page.exception and command in said(page)


def test_documents_that_are_damaged_are_left_out(forked) -> None:
    path = forked / "demo" / "sweep-ffffffffffffffff.json"
    path.write_text("[")
    try:
        assert [name for name, _ in kept.documents("demo", "sweep")] == ["sweep-0123456789abcdef"]
    finally:
        path.unlink()


# ---- the queries


def test_layers_are_over_the_placebos_median(forked) -> None:
    rows = data.rows("fork_layers", run="skipped")
    assert (
        {r["row"] for r in rows} >= {"embed.weight", "L0", "L1"}
        and min(r["begin"] for r in rows) >= 88
        and max(r["step"] for r in rows) == 96
    )
    one_cell = next(r for r in rows if r["row"] == "L1" and r["step"] == 96)
    from statistics import median

    found = [
        d
        for d in data.recorded("divergence", "skipped")
        if d["step"] == 96 and d["tensor"] == "layers.1.*"
    ]
    nulls = median(d["l2"] for d in found if d["arm"].startswith("placebo"))
    own = next(d["l2"] for d in found if d["arm"] == "fork")
    assert one_cell["ratio"] == pytest.approx(own / nulls)
    few = data.rows("fork_layers", run="skipped", most=len({r["row"] for r in rows}) * 2)
    ratios = [[r["ratio"] for r in each if r["ratio"] is not None] for each in (few, rows)]
    assert len(few) < len(rows) and max(ratios[0]) == max(ratios[1])


def test_bands_are_percentiles_over_the_arms_of_a_kind(forked) -> None:
    found = [
        b
        for b in data.rows("fork_bands", run="skipped")
        if b["measure"] == "l2" and b["kind"] == "placebo" and b["step"] == 96
    ]
    own = sorted(
        r["l2"]
        for r in data.rows("fork_arms", run="skipped")
        if r["kind"] == "placebo" and r["step"] == 96
    )
    assert found[0]["middle"] == pytest.approx(sum(own) / 2) and found[0]["forks"] == 2


# ---- in a browser


@pytest.fixture(scope="module")
def forked_url(forked_runs):
    with driver.serving(forked_runs) as url:
        yield url


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(
    "part, charts", [("fork", 4), ("build", 0), ("sweep", 3), ("matrix", 4), ("blame", 1)]
)
def test_every_part_is_drawn_in_a_browser(
    chromium, forked_url, part: str, charts: int, dark: bool
) -> None:
    tab = driver.Watched(chromium, forked_url, dark=dark)
    try:
        tab.open("forks", run="demo", part=part)
        tab.check()
        assert len(tab.charts()) >= charts
    finally:
        tab.close()


def test_a_fork_is_built_launched_and_seen_to_finish(chromium, forked_url, forked_runs) -> None:
    tab = driver.Watched(chromium, forked_url)
    try:
        tab.open("forks", run="demo", part="build", kind="skip", first=100, last=104)
        tab.page.get_by_role("button", name="Dry run").click()
        tab.page.get_by_role("button", name="Launch").wait_for(timeout=60_000)
        tab.page.get_by_role("button", name="Launch").click()
        tab.page.get_by_text("Control:").first.wait_for(timeout=120_000)
        tab.settle()
        fork = tab.parameters()["fork"]
        assert (
            forked_runs / fork / "fork.json"
        ).is_file() and "demo@100 skips steps 100:101" in tab.page.inner_text("body")
        tab.page.go_back()
        tab.settle()
        assert tab.parameters().get("part") == "build"
        tab.page.go_forward()
        tab.settle()
        assert tab.parameters()["fork"] == fork
        tab.check()
    finally:
        tab.close()


def test_a_row_can_be_chosen_again_after_back(chromium, forked_url, forked_runs) -> None:
    first = blame_of()["candidates"][0]
    document = blame_of() | {"candidates": [first, first | {"slot": 4}, first | {"slot": 6}]}
    path = forked_runs / "demo" / "blame-95.json"
    path.write_text(json.dumps(document | {"spike": document["spike"] | {"step": 95}}))
    tab = driver.Watched(chromium, forked_url)

    def choose(row: int) -> None:
        table = tab.page.locator(
            '[data-testid="stDataFrame"]'
        ).first  # the tick stands left of the row
        table.scroll_into_view_if_needed()
        box = table.bounding_box()
        tab.page.mouse.click(box["x"] + 20, box["y"] + 35 * (row + 1.5))
        tab.page.wait_for_timeout(300)
        tab.settle()

    try:
        tab.open("forks", run="demo", part="blame", spike=95)
        for row, slot in ((1, "4"), (2, "6")):
            choose(row)
            assert tab.parameters().get("slot") == slot
        tab.page.go_back()
        tab.settle()
        assert tab.parameters().get("slot") == "4"
        assert tab.page.get_by_role("button", name="Fork without batch 90, slot 4").is_visible()
        choose(2)
        assert tab.parameters().get("slot") == "6", "one click is enough"
        tab.check()
    finally:
        tab.close()
        path.unlink()


# ---- stopped, and taken up again


def waited(wanted, seconds=120.0):
    """The fork's state as soon as `wanted` holds of it."""
    import time

    end = time.monotonic() + seconds
    while not wanted(state := state_of("long", "demo")):
        assert time.monotonic() < end, (state.status, state.work and state.work.log())
        time.sleep(0.03)
    return state


def test_a_fork_that_is_stopped_goes_on_from_where_it_was(forked) -> None:
    from app import jobs

    text = toml_text.written(
        {"parent": "demo", "from": 0, "to": 130, "placebos": 6, "name": "long"},
        [{"kind": "skip", "window": "30:31"}],
    )
    launch("demo", "long", text)
    running = waited(lambda s: s.work.progress.get("done", 0) >= 3)
    assert running.status == "running"
    jobs.stop(running.work)
    stopped = waited(lambda s: s.status not in ("running", "starting"))
    assert stopped.status == "stopped" and 0 < stopped.halfway["step"] < 130
    launch("demo", "long", file_of(stopped))
    done = waited(lambda s: s.status == "done")
    assert done.result["placebos"] == 6 and not (forked / "long" / "halfway").exists()
    rows = [r["step"] for r in data.rows("fork_arms", run="long") if r["arm"] == "fork"]
    assert rows == list(range(1, 131)), "each state once"
    shutil.rmtree(forked / "long")
