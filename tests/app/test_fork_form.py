"""The form of a fork: what it begins with, in the bounds of its run, and its edits in the URL."""

from __future__ import annotations

import json
import tomllib

import pytest

from app import data
from app.selection import LONGEST, Selection
from app.views.forks import build, edits, sweep
from tests.app.conftest import SPIKE

FARTHEST = 2**53 - 1  # the largest number of a URL


def file_on(page):
    """The fork file that stands beside the form."""
    return tomllib.loads(next(c.value for c in page.code if c.value.startswith("parent =")))


def field(page, label):
    """The widget with this label."""
    every = [*page.text_input, *page.text_area, *page.number_input, *page.selectbox, *page.checkbox]
    return next(w for w in every if w.label == label)


def url_of(page):
    """What a reload of the page would ask for."""
    return {
        name: value[-1] if isinstance(value, list) else value
        for name, value in page.query_params.items()
    }


# ---- answers as a text


def test_answers_come_back_only_into_the_form_that_they_were_given_to() -> None:
    text = edits.encode("demo-clip", {"value": "0.5", "renormalise": True, "placebos": 19})
    assert edits.decode(text, "demo-clip") == {"value": "0.5", "renormalise": True, "placebos": 19}
    assert edits.decode(text, "demo-betas") == {}


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "[]",
        "3",
        '{"value": "1"}',
        "[" * 5000,
        "every=50;top=8",
        '{"of": "f", "at": [1]}',
        '{"of": "f", "at": {"x": 1}}',
        '{"of": "f", "at": null}',
    ],
)
def test_a_damaged_text_is_no_answer(text: str | None) -> None:
    assert edits.decode(text, "f") == {}


def test_half_a_character_of_a_url_cannot_reach_the_page() -> None:
    assert edits.decode('{"of": "f", "at": "\\ud800x"}', "f")["at"].encode() == b"?x"


@pytest.mark.parametrize(
    "answer, number", [(7, 7), (-1, 3), (1000, 3), ("7", 3), (True, 3), (None, 3)]
)
def test_a_number_of_the_url_is_taken_only_within_its_bounds(answer, number: int) -> None:
    assert edits.number_within(answer, 3, 0, 999) == number


# ---- the window


def test_a_fork_of_a_fork_begins_at_a_state_that_it_has() -> None:
    assert build.default_window(None, None, 416, [400, 416], 400) == (400, 416)
    assert build.default_window(None, None, 416, [], 400) == (400, 416)
    assert build.default_window(405, 402, 416, [0, 350], 400) == (400, 445)
    assert build.default_window(390, 380, 416, [], 400) == (400, 440), (
        "a spike of the ancestor lies before it"
    )
    assert build.default_window(FARTHEST, None, 416, [400], 400) == (400, 456)
    assert build.default_window(FARTHEST, None, 416, [], 0) == (400, 456)


def test_the_states_of_a_sweep_lie_in_the_run_with_the_window_after_them() -> None:
    assert sweep.places_of(0, 460, 24) == "44,131,218,349"
    assert sweep.places_of(400, 416, 16) == "400"
    assert sweep.places_of(400, 410, 24) == "400"
    assert [int(s) for s in sweep.places_of(400, 450, 24).split(",")] == [403, 408, 413, 421]


@pytest.mark.parametrize(
    "selection",
    [
        {"spike": FARTHEST},
        {"first": FARTHEST},
        {"last": FARTHEST},
        {"step": FARTHEST},
        {"first": FARTHEST, "last": 0},
        {"spike": FARTHEST, "step": 0, "slot": FARTHEST},
    ],
)
@pytest.mark.parametrize("part", ["build", "sweep", "matrix", "blame"])
def test_any_number_of_the_url_gives_a_form(
    runs, app_page, said, part: str, selection: dict[str, int]
) -> None:
    page = app_page("forks", run="demo", part=part, **selection)
    assert not page.exception and "This cannot be shown" not in said(page)
    first, last = build.window_of("demo", Selection(run="demo", **selection))
    assert 0 <= first <= 136 and first < last <= FARTHEST


# ---- what it begins with


def test_without_its_worst_sequences_is_without_those_that_stand_apart(runs, app_page) -> None:
    rows = data.rows("excess_by_sequence", run="demo", step=SPIKE)
    apart = [row["slot"] for row in rows if row["apart"]]
    made = file_on(app_page("forks", run="demo", part="build", spike=SPIKE, step=SPIKE))[
        "intervention"
    ][0]
    assert apart and made["kind"] == "remove-sequences"
    assert made["at"] == [[SPIKE, slot, 0, 32] for slot in apart]


def test_where_none_stands_apart_the_worst_eighth_is_named_and_without_a_past_a_query(
    runs, monkeypatch
) -> None:
    rows = [{"slot": 40 - i, "excess": 3.0 - i, "apart": False} for i in range(32)]
    monkeypatch.setattr(
        data, "rows", lambda query, **_: rows if query == "excess_by_sequence" else []
    )
    head = {"from": 90, "to": 99}
    begin = build._answers("demo", "remove-sequences", Selection(run="demo", step=95), head)
    assert begin == {"at": "95/40, 95/39, 95/38, 95/37"}
    rows[7]["apart"] = rows[20]["apart"] = True
    begin = build._answers("demo", "remove-sequences", Selection(run="demo", step=95), head)
    assert begin == {"at": "95/33, 95/20"}
    rows[:] = [{"slot": i, "excess": None, "apart": False} for i in range(32)]
    begin = build._answers("demo", "remove-sequences", Selection(run="demo", step=95), head)
    assert "where step = 95 order by loss desc" in begin["sql"]


# ---- edits


def test_what_was_edited_is_in_the_url_and_a_reload_shows_it(runs, app_page) -> None:
    page = app_page("forks", run="demo", part="build", kind="lr-scale", first=80, last=99)
    field(page, "Factor").set_value("0.25").run()
    field(page, "Placebos").set_value(19).run()
    field(page, "From state").set_value(88).run()
    made = file_on(page)
    assert (made["from"], made["to"], made["placebos"], made["chaos"]) == (88, 99, 19, 1)
    assert made["intervention"][0] == {"kind": "lr-scale", "window": "88:89", "factor": 0.25}
    again = app_page("forks", **url_of(page))
    assert (
        file_on(again) == made
        and field(again, "Factor").value == "0.25"
        and field(again, "From state").value == 88
    )


def test_back_undoes_an_edit(runs, app_page) -> None:
    page = app_page("forks", run="demo", part="build", kind="mask-tokens", token=7)
    before = url_of(page)
    field(page, "Tokens, by id").set_value("8, 9").run()
    field(page, "Scale the loss by what weight is left").check().run()
    assert (
        file_on(page)["intervention"][0]["tokens"] == [8, 9]
        and file_on(page)["intervention"][0]["renormalise"]
    )
    page.query_params.clear()
    for name, value in before.items():
        page.query_params[name] = value
    page.run()  # as Back does: the URL alone has changed
    assert (
        file_on(page)["intervention"][0]["tokens"] == [7]
        and "renormalise" not in file_on(page)["intervention"][0]
    )
    assert field(page, "Tokens, by id").value == "7"


def test_another_kind_keeps_the_window_and_the_null_forks_and_no_answer(runs, app_page) -> None:
    page = app_page("forks", run="demo", part="build", kind="clip", first=80, last=99)
    field(page, "Chaos forks").set_value(5).run()
    field(page, "Largest norm").set_value("0.5").run()
    field(page, "What is altered").set_value("weight-decay").run()
    made = file_on(page)
    assert (made["from"], made["to"], made["chaos"]) == (80, 99, 5)
    assert made["intervention"][0] == {"kind": "weight-decay", "window": "80:81", "value": 0.0}


def test_another_document_is_another_form(runs, app_page) -> None:
    page = app_page("forks", run="demo", part="build", document=2)
    field(page, "Documents, by id").set_value("3, 4").run()
    url = url_of(page) | {"document": "5"}
    assert file_on(app_page("forks", **url))["intervention"][0]["documents"] == [5]


def test_a_fork_file_too_long_for_a_url_stays_on_the_page_and_that_is_said(
    runs, app_page, said
) -> None:
    page = app_page("forks", run="demo", part="build", kind="file")
    text = "# why\n" * LONGEST + field(page, "Fork file").value
    field(page, "Fork file").set_value(text).run()
    assert "This is longer than a URL can hold" in said(page) and "values" not in url_of(page)
    assert field(page, "Fork file").value == text
    page.run()
    assert field(page, "Fork file").value == text
    field(page, "Fork file").set_value("parent = 'demo'").run()
    assert (
        "longer than a URL" not in said(page)
        and json.loads(url_of(page)["values"])["text"] == "parent = 'demo'"
    )


def test_hostile_answers_of_a_url_stay_text_and_out_of_bounds_ones_are_left_out(
    runs, app_page
) -> None:
    context = build._context("demo", "remove-documents", Selection(run="demo"))
    values = edits.encode(
        context, {"how": "<script>", "documents": True, "placebos": 10**9, "sql": 5}
    )
    page = app_page("forks", run="demo", part="build", kind="remove-documents", values=values)
    assert not page.exception
    assert field(page, "How").value == "replace" and field(page, "Placebos").value == 3
    assert field(page, "SQL that returns document").value == "5"
