"""The Attention page: which head it opens on, what it says of it, patterns and lens that were kept,
and its clicks.
"""

import json
import math
import shutil

import numpy as np
import pytest

from app.reading import Reading
from app.selection import Selection
from app.views.attention import heads, lens, patterns, states
from app.views.attention.charts import WEIGHTS

DAMAGED = 121


def head(layer, number, z=0.0, value=10.0, **more):
    return {
        "layer": layer,
        "head": number,
        "z": z,
        "attn_logit_max": value,
        "baseline": 8.0,
        "attn_entropy_norm": 0.2,
        "baseline_entropy": 0.4,
    } | more


HEADS = [
    head(0, 0),
    head(0, 1, z=7.0),
    head(1, 0, z=-9.0, value=1.0),
    head(1, 1, z=None, value=50.0),
]
ALARM = {"kind": "head", "layer": 1, "head": 1, "drifting": False, "lead": 4}


def said_of(parts):
    return "".join(p if isinstance(p, str) else p.text for p in parts)


def test_the_head_is_the_urls_else_the_first_to_move_else_the_farthest_from_its_past():
    assert heads.name_of(heads.chosen_head(HEADS, [ALARM], Selection(layer=0, head=0))) == "L0.H0"
    assert heads.name_of(heads.chosen_head(HEADS, [ALARM], Selection())) == "L1.H1"
    assert (
        heads.name_of(heads.chosen_head(HEADS, [ALARM | {"drifting": True}], Selection()))
        == "L1.H0"
    )
    assert heads.name_of(heads.chosen_head(HEADS, [ALARM], Selection(layer=0))) == "L0.H1"
    assert heads.name_of(heads.chosen_head(HEADS, [], Selection(layer=7, head=7))) == "L1.H0"
    young = [
        head(0, 0, z=None, value=1.0),
        head(0, 1, z=None, value=None),
        head(0, 2, z=None, value=3.0),
    ]
    assert heads.name_of(heads.chosen_head(young, [], Selection())) == "L0.H2"


def test_the_title_has_the_gap_and_sigma_and_none_where_there_is_no_past():
    assert heads.title_of(1342, head(5, 3, z=31.0, value=88.1)) == (
        "Step 1,342: L5.H3's largest attention logit 8 → 88.1 (31σ above its past)"
    )
    assert "(9σ below its past)" in heads.title_of(1, HEADS[2])
    assert heads.title_of(1, HEADS[3]) == "Step 1: L1.H1's largest attention logit 50"
    assert "∞σ" in heads.title_of(1, head(0, 0, z=math.inf))


def test_the_sentence_counts_the_heads_beyond_six_sigma_and_names_the_first_to_move():
    said = said_of(heads.sentence_of(HEADS, HEADS[1], [ALARM]))
    assert "2 of 4 heads are outside their normal range (6σ)" in said and "L1.H0, L0.H1" in said
    assert "First head to leave its normal range: L1.H1, 4 steps before." in said
    assert (
        "The entropy of L0.H1 is 20% of that of uniform attention; it was 40% before" in said
        and "caused" not in said
    )
    assert "fewer than 16 steps were recorded" in said_of(
        heads.sentence_of([HEADS[3]], HEADS[3], [])
    )


def test_cells_are_the_pairs_above_the_first_threshold_with_their_sign():
    weight = np.array([[1.0, 0.0], [0.02, -0.3]])
    cells = patterns.cells_of(
        weight, np.array([[5.0, -np.inf], [1.0, 2.0]]), 1, ["a", "b", "c"]
    ).to_pylist()
    assert [(c["query"], c["key"], c["level"], c["reads"], c["looks"]) for c in cells] == [
        (0, 0, 5, "a", "a"),
        (1, 0, 1, "b", "a"),
        (1, 1, -4, "b", "b"),
    ]
    pooled = patterns.cells_of(weight, weight, 4, list("abcdefgh")).to_pylist()
    assert [(c["query"], c["query2"], c["looks"]) for c in pooled] == [
        (0, 4, "a"),
        (4, 8, "a"),
        (4, 8, "e"),
    ]
    each = patterns.cells_of(np.array([list(WEIGHTS)]), np.zeros((1, 5)), 1, list("abcde"))
    assert each["level"].to_pylist() == [1, 2, 3, 4, 5]


def test_weights_that_are_not_finite_are_blank_and_their_states_are_told():
    weight = np.array([[np.nan, 0.6], [np.inf, -np.inf]])
    cells = patterns.cells_of(weight, np.zeros((2, 2)), 1, ["a", "b", "c"]).to_pylist()
    assert [(c["query"], c["key"], c["level"]) for c in cells] == [(0, 1, 5)]
    kept = ({}, lambda name, state, layer, number: [np.ones((2, 2)), weight][state])
    assert states.broken_states({"states": [10, 20]}, kept, HEADS[0]) == [20]


def test_masked_pairs_are_no_difference_and_strengths_go_by_the_square_root():
    inf = np.inf
    assert patterns._difference(np.array([1.0, -inf]), np.array([3.0, -inf])).tolist() == [
        -2.0,
        0.0,
    ]
    assert patterns.attention_levels([1.0, 0.25, 0.0, math.nan]) == [6, 3, 0, 0]
    assert patterns.attention_levels([0.0]) == [0]
    assert states.whens([384, 400, 416], 400) == ["before", "at", "after"]


def test_lens_cells_of_a_long_sequence_stay_below_20_000_and_keep_the_worst():
    T, L = 3000, 25
    loss = np.random.default_rng(0).random((L, T)).astype(np.float32)
    loss[7, 1234] = 99.0
    read = Reading(tuple(range(T + 1)), tuple("x" for _ in range(T + 1)), (), 512)
    cells = lens.lens_cells(
        loss, np.zeros((L, T), np.int32), np.ones((L, T), np.float32), read, lambda i: "\u202e"
    )
    assert cells.num_rows <= 20_000
    worst = max(cells.to_pylist(), key=lambda c: c["loss"])
    assert (
        worst["loss"] == 99.0
        and worst["position"] <= 1234 < worst["position2"]
        and worst["level"] == 7
    )
    assert cells["predicts"][0].as_py() == "⟨U+202E⟩"


@pytest.mark.parametrize(
    ("read", "event", "change"),
    [
        (
            heads.head_of,
            {"selection": {"cell": [{"layer": 2, "head": 1}]}},
            {"layer": 2, "head": 1},
        ),
        (heads.head_of, {"selection": {"cell": []}}, None),
        (patterns.query_of, {"selection": {"pair": [{"query": 17}]}}, {"position": 17}),
        (lens.column_of, {"selection": {"read": [{"position": 4}]}}, {"position": 4}),
        (lens.column_of, {}, None),
    ],
)
def test_a_click_is_a_function_of_the_event(read, event, change):
    assert read(event) == change


@pytest.fixture(scope="module")
def looked(app_runs, tmp_path_factory):
    """A copy of the runs in which a sequence of the damaged batch was looked at."""
    from forensics import identity
    from replay.step.attention import attention

    copy = tmp_path_factory.mktemp("looked") / "runs"
    shutil.copytree(app_runs, copy)
    identity.enable_determinism(1)
    return copy, attention(copy, "demo", DAMAGED).to_document()


def test_without_kept_weights_it_names_the_command_for_this_sequence(runs, app_page, said):
    test = app_page("attention", run="demo", step=DAMAGED, slot=3)
    assert not test.exception and not test.markdown
    assert f"replay attention demo {DAMAGED} --slot 3" in [c.value for c in test.code]
    text = said(test)
    assert (
        "largest attention logit" in text
        and "its past" in text
        and "is not thereby the cause" in text
    )
    assert len(test.get("vega_lite_chart")) == 3


def test_kept_weights_are_drawn_at_three_states_on_one_scale(looked, app_page, said, monkeypatch):
    folder, document = looked
    monkeypatch.setenv("FORENSICS_RUNS", str(folder))
    test = app_page(
        "attention", run="demo", step=DAMAGED, position=6
    )  # no slot: the one that is kept
    assert not test.exception
    text = said(test)
    assert f"in slot {document['slot']} of batch {DAMAGED}" in text
    assert (
        f"Before: state {DAMAGED - 16}" in text
        and f"At: state {DAMAGED}" in text
        and "After: state 136" in text
    )
    assert "of its attention is on other tokens" in text and "Tolerance only" not in text
    assert "Logit lens" in text and "What position 6" in text
    assert len(test.get("vega_lite_chart")) == 3 + 4 + 2
    table = test.dataframe[0].value
    assert list(table["after"]) == ["embedding", "layer 0", "layer 1"]


def test_a_state_that_is_not_the_recorded_one_gets_the_banner(
    looked, app_page, said, monkeypatch, tmp_path
):
    from replay.step import artifacts as kept

    copy = tmp_path / "runs"
    shutil.copytree(looked[0], copy)
    path = kept.attention_of(copy / "demo", DAMAGED, looked[1]["slot"])
    about, array = kept.read(path)
    arrays = {name: array(name) for name in ("scores", "weights")}
    kept.write(
        path,
        arrays,
        about | {"exact": [True, False, True], "lens": False, "why": "<script>alert(1)</script>"},
    )
    monkeypatch.setenv("FORENSICS_RUNS", str(copy))
    text = said(app_page("attention", run="demo", step=DAMAGED))
    assert (
        "Tolerance only" in text and "No logit lens was computed" in text and "<script>" not in text
    )


@pytest.fixture
def copied(looked, monkeypatch, tmp_path):
    """A copy of the runs, and a function that keeps other arrays and facts in the place of the
    look's own.
    """
    from replay.step import artifacts as kept

    copy = tmp_path / "runs"
    shutil.copytree(looked[0], copy)
    monkeypatch.setenv("FORENSICS_RUNS", str(copy))
    path = kept.attention_of(copy / "demo", DAMAGED, looked[1]["slot"])
    about, array = kept.read(path)
    names = ("scores", "weights", "lens_loss", "lens_top", "lens_top_p")

    def keep(change, **facts):
        kept.write(path, {name: change(array(name)) for name in names}, about | facts)

    return keep


def test_several_states_before_the_step_are_each_drawn_and_are_lines_of_their_own(
    copied, app_page, said
):
    states = [DAMAGED - 30, DAMAGED - 20, DAMAGED, DAMAGED + 5, DAMAGED + 9]
    copied(lambda a: np.concatenate([a[:1], a, a[-1:]]), states=states, exact=[True] * 5)
    test = app_page("attention", run="demo", step=DAMAGED, position=6)
    assert not test.exception
    text = said(test)
    assert all(f": state {s} ·" in text for s in states)
    drawn = test.get("vega_lite_chart")
    assert len(drawn) == 3 + 6 + 2
    line = json.loads(drawn[-2].proto.spec)["layer"][0]["encoding"]
    assert line["detail"]["field"] == "state", (
        "two states before the step would be one line that goes to and fro"
    )


def test_weights_of_a_state_that_are_nan_are_said_in_the_page(copied, app_page, said):
    def broken(array):
        array = array.copy()
        if array.dtype.kind == "f":
            array[1] = np.nan
        return array

    copied(broken)
    test = app_page("attention", run="demo", step=DAMAGED, position=6)
    assert not test.exception
    text = said(test)
    assert (
        f"Some attention weights of state {DAMAGED} are not finite" in text and "nan%" not in text
    )
    assert f"Some attention weights of state {DAMAGED - 16} are not finite" not in text


def test_the_text_is_read_from_what_was_kept_even_where_an_intervention_made_it(
    copied, app_page, said, monkeypatch
):
    from app import reading

    def never(*_):
        raise AssertionError("the batch is not made again by the page's script")

    monkeypatch.setattr(reading, "sequence", never)
    copied(lambda a: a, sequence=-1)
    test = app_page("attention", run="demo", step=DAMAGED, position=6)
    assert not test.exception and "What position 6" in said(test)


def test_a_young_run_has_heads_without_a_past_and_one_without_heads_says_so(
    empty_runs, app_page, said
):
    from forensics.store.writer import Writer, replace_table

    for name in ("young", "bare"):
        (empty_runs / name).mkdir()
        (empty_runs / name / "run.json").write_text(
            json.dumps(
                {
                    "name": name,
                    "first_step": 0,
                    "steps": 9,
                    "created": "2026",
                    "config": {},
                    "corpus": "none",
                }
            )
        )
        replace_table(empty_runs / name, "runs", {"name": [name], "first_step": [0], "steps": [9]})
        with Writer(empty_runs / name) as w:
            w.append("steps", step=list(range(30)), loss=2.0, grad_norm=1.0)
            if name == "young":
                w.append("heads", step=list(range(30)), layer=0, head=0, attn_logit_max=1.0)
    test = app_page("attention", run="young", step=20)
    assert not test.exception and "fewer than 16 steps were recorded" in said(test)
    test = app_page("attention", run="bare", step=20)
    assert not test.exception and "The attention heads were not recorded at this step" in said(test)
    assert [c.value for c in test.code] == [
        "replay fork bare --from 0 --to 21 --lr-scale 1@0:21 --record light"
    ]


def test_a_click_on_a_head_reaches_the_url_in_the_browser(open_page):
    tab = open_page("attention", run="demo", step=DAMAGED)
    tab.click_mark(0, 0.9, 0.85)  # the last head of the last layer
    assert (tab.parameters()["layer"], tab.parameters()["head"]) == ("1", "1")
    assert "L1.H1's largest attention logit" in tab.page.locator(".fw h1").inner_text()
    tab.page.go_back()
    tab.settle()
    assert "head" not in tab.parameters()
