"""Blame: what it costs, which suspects it has, and forks without them."""

from __future__ import annotations

import pytest

from app.selection import Selection
from app.views.blame import page as blame
from app.views.blame import removal, summary, suspects
from tests.app.forks_by_hand import blame_of, url_of


def test_the_deletion_curve_keeps_what_was_measured() -> None:
    found = removal.curve_of(blame_of())
    assert [(r["removed"], r["order"]) for r in found] == [
        (1, "by influence"),
        (1, "random"),
        (4, "by influence"),
    ]
    assert (
        summary.title_of(blame_of())
        == "Step 90: the cause is the data. Its loss was 1.500 nats/token above its past (31σ)"
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
    assert "up to 82 kB on disk, and no further training" in blame.cost_of(
        128
    ) and "84 MB" in blame.cost_of(1 << 17)


@pytest.mark.parametrize(
    "tokens, influence, missing", [(None, 0.3, True), ([1, 2], 0.3, False), (None, None, False)]
)
def test_a_document_without_the_influence_of_tokens_is_told_from_one_that_has_none(
    tokens, influence, missing
) -> None:
    found = blame_of()
    found["candidates"][0] |= {"influence": influence} | ({"tokens": tokens} if tokens else {})
    assert summary.lacks_tokens(found) is missing


def test_blame_without_tokens_can_be_started_again_with_them(
    forked, app_page, said, monkeypatch
) -> None:
    from app import jobs

    started = []
    monkeypatch.setattr(jobs, "start", lambda *about: started.append(about))
    page = app_page("blame", run="demo", spike=90)
    assert "The influence of each token was not saved" in said(page)
    next(b for b in page.button if b.label == "Find the influence of each token").click().run()
    page = app_page("blame", run="demo", spike=91)
    assert "no further training" in said(page) and "replay blame demo --spike 91 --tokens" in said(
        page
    )
    next(b for b in page.button if b.label == "Find the cause").click().run()
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
