"""Blame: the texts that were asked about."""

from __future__ import annotations

import json

from app.views.blame import query
from tests.app.forks_by_hand import HOSTILE


def answer_of(file=None):
    return {
        "version": 1,
        "run": "demo",
        "query": {"text": HOSTILE, "file": file, "texts": 1, "windows": 1, "tokens": 9},
        "at": 96,
        "window": [80, 96],
        "loss": 2.5,
        "control": {"level": "exact", "bitwise": True, "sentence": "bit for bit"},
        "sentence": f"Without 8 sequences it changes by +0.069. {HOSTILE}",
        "removals": [],
        "candidates": [
            {
                "step": 90,
                "slot": 1,
                "influence": -0.25,
                "source": HOSTILE,
                "path": HOSTILE,
                "text": HOSTILE,
            }
        ],
        "documents": [
            {"document": 3, "source": HOSTILE, "path": HOSTILE, "influence": -0.25, "sequences": 1}
        ],
        "validation": {"sentence": "ranks with the measured one at 0.98"},
        "notes": [HOSTILE],
    }


def test_a_text_that_was_asked_about_is_shown_with_its_quality(forked, app_page, said) -> None:
    (forked / "demo" / "influence-0123456789abcdef.json").write_text(json.dumps(answer_of()))
    page = app_page("blame", run="demo", spike=90)
    assert not page.exception
    assert "it changes by +0.069" in said(page) and "measured one at 0.98" in said(page)


def test_a_run_that_was_not_asked_says_how(forked, app_page, said) -> None:
    for path in (forked / "demo").glob("influence-*.json"):
        path.unlink()
    page = app_page("blame", run="demo", spike=90)
    assert "replay blame demo --query 'TEXT' --validate" in said(page)


def test_a_question_is_named_by_its_file_or_text_and_its_state() -> None:
    assert query.label_of(answer_of("eval.txt")) == "eval.txt · state 96"
    assert query.label_of(answer_of() | {"query": {"text": "a" * 99, "file": None}}).startswith(
        "a" * 60 + "… · "
    )
