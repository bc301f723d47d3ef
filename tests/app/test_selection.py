"""The URL as the one truth, and clicks as functions of the event."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.selection import NAMES, NUMBERS, Selection, brushed, picked


def test_a_url_and_its_selection_are_the_same_thing():
    url = {"run": "demo", "spike": "400", "layer": "2", "head": "0", "tensor": "layers.0.attn.q_proj.weight"}
    selection = Selection.parse(url)
    assert (selection.run, selection.spike, selection.head) == ("demo", 400, 0)
    assert selection.params() == url


@pytest.mark.parametrize("run", ["..", "../etc", "/etc/passwd", "a/b", "a\\b", "", ".hidden", "a\x00b", "demo\n", "é"])
def test_no_name_leaves_the_folder_of_runs(run):
    assert Selection.parse({"run": run, "fork": run}).run is None
    assert Selection.parse({"run": run, "fork": run}).fork is None


@pytest.mark.parametrize("step", ["-1", "1.5", "1e3", "٣", "9" * 20, "0x10", " 1", "<script>", "NaN"])
def test_a_number_is_whole_and_in_range_or_is_left_out_and_told(step):
    selection = Selection.parse({"step": step})
    assert selection.step is None
    assert selection.problems and selection.problems[0].startswith("step: wanted a whole number")


@given(st.dictionaries(st.sampled_from(NAMES), st.text(max_size=40) | st.lists(st.text(max_size=9), max_size=3)))
def test_any_url_parses_and_what_is_kept_survives_the_round_trip(url):
    selection = Selection.parse(url)
    assert Selection.parse(selection.params()) == selection
    assert not Selection.parse(selection.params()).problems


def test_another_run_forgets_what_was_chosen_inside_the_first():
    selection = Selection(run="a", spike=4, step=5, layer=1, head=2, slot=3, metric="rms_t")
    assert selection.but(run="b") == Selection(run="b", metric="rms_t")
    assert selection.but(run="a") == selection
    assert selection.but(layer=2).head is None
    assert selection.but(spike=7, layer=0) == Selection(run="a", spike=7, layer=0, metric="rms_t")


def test_numbers_are_the_fields_that_say_so():
    assert {"step", "spike", "layer", "document"} <= NUMBERS
    assert "run" not in NUMBERS


@pytest.mark.parametrize(
    ("event", "found"),
    [
        ({"selection": {"cell": [{"step": 90, "row": 38}]}}, {"step": 90, "row": 38}),
        ({"selection": {"cell": []}}, None),  # a double click
        ({"selection": {}}, None),  # a parameter that nobody touched
        ({}, None),
        (None, None),
        ({"selection": {"cell": [{"row": 38}]}}, None),
        ({"selection": {"cell": [{"step": None}]}}, None),
    ],
)
def test_a_click_is_read_from_the_event_alone(event, found):
    assert picked(event, "cell", "step") == found


def test_a_brush_gives_the_whole_steps_under_it():
    assert brushed({"selection": {"brush": {"step": [40.4, 71.4]}}}, "brush", "step") == (40, 72)
    assert brushed({"selection": {"brush": {"step": [71.6, 40.6]}}}, "brush", "step") == (41, 73)
    assert brushed({"selection": {"brush": {}}}, "brush", "step") is None
    assert brushed({}, "brush", "step") is None
