"""The URL as the one truth, and clicks as functions of the event."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.selection import NAMES, NUMBERS, Selection, brushed, filled, picked, picked_row


def test_a_url_and_its_selection_are_the_same_thing():
    url = {
        "run": "demo",
        "spike": "400",
        "layer": "2",
        "head": "0",
        "tensor": "layers.0.attn.q_proj.weight",
    }
    selection = Selection.parse(url)
    assert (selection.run, selection.spike, selection.head) == ("demo", 400, 0)
    assert selection.params() == url


@pytest.mark.parametrize(
    "run", ["..", "../etc", "/etc/passwd", "a/b", "a\\b", "", ".hidden", "a\x00b", "demo\n", "é"]
)
def test_no_name_leaves_the_folder_of_runs(run):
    assert Selection.parse({"run": run, "fork": run}).run is None
    assert Selection.parse({"run": run, "fork": run}).fork is None


@pytest.mark.parametrize(
    "step", ["-1", "1.5", "1e3", "٣", "9" * 20, "0x10", " 1", "<script>", "NaN"]
)
def test_a_number_is_whole_and_in_range_or_is_left_out_and_told(step):
    selection = Selection.parse({"step": step})
    assert selection.step is None
    assert selection.problems and selection.problems[0].startswith("step: wanted a whole number")


@given(
    st.dictionaries(
        st.sampled_from(NAMES), st.text(max_size=40) | st.lists(st.text(max_size=9), max_size=3)
    )
)
def test_any_url_parses_and_what_is_kept_survives_the_round_trip(url):
    selection = Selection.parse(url)
    assert Selection.parse(selection.params()) == selection
    assert not Selection.parse(selection.params()).problems


def test_another_run_forgets_what_was_chosen_inside_the_first():
    selection = Selection(run="a", spike=4, step=5, layer=1, head=2, slot=3, metric="rms_t")
    assert selection.replacing(run="b") == Selection(run="b", metric="rms_t")
    assert selection.replacing(run="a") == selection
    assert selection.replacing(layer=2).head is None
    assert selection.replacing(spike=7, layer=0) == Selection(
        run="a", spike=7, layer=0, metric="rms_t"
    )


def test_what_the_page_shows_is_filled_in_where_the_url_names_nothing_and_takes_nothing_away():
    url = Selection(spike=37, layer=2)
    assert filled(url, {"run": (None, "demo")}) == Selection(run="demo", spike=37, layer=2)
    assert filled(url, {"run": (None, "demo"), "step": (None, 37)}).step == 37
    assert filled(Selection(run="demo", spike=37), {"run": ("demo", "demo")}) == Selection(
        run="demo", spike=37
    )


def test_what_was_chosen_inside_a_run_that_is_not_there_is_not_carried_into_the_one_shown():
    wrong = Selection(run="nosuch", spike=37, step=99, metric="loss")
    assert filled(wrong, {"run": ("nosuch", "demo")}) == Selection(run="demo", metric="loss")
    assert filled(wrong, {"run": ("nosuch", "demo"), "step": (99, 40)}) == Selection(
        run="demo", step=40, metric="loss"
    )
    assert filled(Selection(step=99, slot=4, layer=1), {"step": (99, 40)}) == Selection(
        step=40, layer=1
    )


def test_what_a_page_showed_of_another_url_says_nothing_of_this_one():
    assert filled(
        Selection(run="other", spike=3), {"run": (None, "demo"), "spike": (400, 37)}
    ) == Selection(run="other", spike=3)


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


@pytest.mark.parametrize(
    ("event", "found"),
    [
        ({"selection": {"rows": [1]}}, 37),
        ({"selection": {"rows": [0], "columns": []}}, 4),
        ({"selection": {"rows": []}}, None),
        ({"selection": {"rows": [2]}}, None),  # of a longer table, before it was drawn again
        ({}, None),
        (None, None),
    ],
)
def test_the_row_of_a_table_that_was_clicked_stands_for_its_item(event, found):
    assert picked_row(event, [4, 37]) == found


def test_a_brush_gives_the_whole_steps_under_it():
    assert brushed({"selection": {"brush": {"step": [40.4, 71.4]}}}, "brush", "step") == (40, 72)
    assert brushed({"selection": {"brush": {"step": [71.6, 40.6]}}}, "brush", "step") == (41, 73)
    assert brushed({"selection": {"brush": {}}}, "brush", "step") is None
    assert brushed({}, "brush", "step") is None
