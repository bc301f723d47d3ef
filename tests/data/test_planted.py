"""Invented words stand exactly as often as PLANTED says, each behind a space, and the same on every
reading.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from forensics.data.corpus import Documents
from forensics.data.planted import DOCUMENTS, PLANTED, SENTENCES


def read(spec: str) -> list[tuple[str, str]]:
    return [(document.path, document.text) for document in Documents(spec)]


def words(documents: list[tuple[str, str]]) -> Counter[str]:
    return Counter(
        word
        for _, text in documents
        for word in re.findall(r"(?<= )[a-z]+(?![a-z])", text)
        if word in PLANTED
    )


def test_every_word_is_planted_as_often_as_it_says_and_nothing_else_changes() -> None:
    plain, planted = read("stdlib/json"), read("planted:stdlib/json")
    assert words(planted) == Counter({word: n for word, n in PLANTED.items() if n}) and not words(
        plain
    )
    for (path, text), (same, more) in zip(plain, planted, strict=True):
        assert path == same
        for word in PLANTED:
            more = more.replace(f" {word}", "")
        assert more == text


def test_a_reading_is_the_same_as_the_one_before() -> None:
    assert read("planted:stdlib/json") == read("planted:stdlib/json")
    assert read("invented") == read("invented")


def test_texts_without_a_space_are_planted_at_their_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    source = Documents(f"planted:{tmp_path}")
    found = [(document.path, document.text) for document in source]
    assert words(found) == Counter({word: n for word, n in PLANTED.items() if n})
    assert [text.startswith("x ") for _, text in found] == [True] and source.left_out == [
        "b.txt: not UTF-8"
    ]


def test_the_invented_source_is_about_one_word_a_document() -> None:
    documents = read("invented")
    assert words(documents) == Counter(dict.fromkeys(PLANTED, DOCUMENTS * SENTENCES))
    assert all(len(words([document])) == 1 for document in documents) and len(
        documents
    ) == DOCUMENTS * len(PLANTED)
