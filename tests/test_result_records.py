"""Versioned records and JSON: NaN, infinity and missing stay apart, versions are told, not met."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forensics.errors import ForensicsError
from forensics.json_documents import dumps, number, plain
from forensics.result_records import ResultRecord, json_key


@dataclass(frozen=True)
class Point:
    step: int
    loss: float | None
    word: str = "NaN"


@dataclass(frozen=True)
class Curve(ResultRecord):
    VERSION = 3
    KIND = "curve"
    AGAIN = "draw it again"
    name: str
    points: tuple[Point, ...]
    first: int = json_key("from")
    verdict: Literal["up", "down"] = "up"
    by_layer: dict[int, float] | None = None
    pair: tuple[int, float] = (1, 2.0)


numbers = st.floats(allow_nan=True, allow_infinity=True)


def same(a: float | None, b: float | None) -> bool:
    return a == b or (a is not None and b is not None and math.isnan(a) and math.isnan(b))


@given(st.lists(st.tuples(st.integers(), st.none() | numbers, st.text())), numbers)
def test_a_record_comes_back_as_it_was_whatever_its_numbers(rows, layer):
    curve = Curve("a", tuple(Point(*row) for row in rows), 4, "down", {0: layer}, pair=(7, layer))
    back = Curve.from_document(json.loads(curve.to_json()), "curve.json")
    assert (back.name, back.first, back.verdict, back.pair[0]) == ("a", 4, "down", 7)
    assert back.by_layer is not None and same(back.by_layer[0], layer) and same(back.pair[1], layer)
    for ours, theirs in zip(back.points, curve.points, strict=True):
        assert (ours.step, ours.word) == (theirs.step, theirs.word)
        assert same(ours.loss, theirs.loss), "NaN, infinity and missing are three things"


def test_nan_infinity_and_missing_are_spelled_apart():
    text = dumps({"a": math.nan, "b": [math.inf, -math.inf], "c": None, "d": np.float32("nan")})
    assert json.loads(text) == {
        "a": "NaN",
        "b": ["Infinity", "-Infinity"],
        "c": None,
        "d": "NaN",
    }
    assert number(None) is None and math.isnan(number("NaN")) and number("-Infinity") == -math.inf
    with pytest.raises(ValueError, match="wanted a number"):
        number("nan")


def test_what_is_not_json_becomes_it():
    document = plain({"p": Path("a/b"), 3: np.arange(2), "point": Point(1, None), "set": {2, 1}})
    assert document == {
        "p": "a/b",
        "3": [0, 1],
        "point": {"step": 1, "loss": None, "word": "NaN"},
        "set": [1, 2],
    }


def test_the_documents_key_may_be_a_word_that_python_reserves():
    document = Curve("a", (), 4).to_document()
    assert document["from"] == 4 and "first" not in document and next(iter(document)) == "version"


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"version": 2, "name": "a"}, "wanted a curve of version 3, found version 2"),
        ({"name": "a"}, "found one without a version"),
        ([1], "found one without a version"),
        ({"version": 3, "name": "a"}, "damaged: KeyError"),
        ({"version": 3, "name": "a", "points": 5, "from": 1}, "damaged: TypeError"),
        (
            {"version": 3, "name": "a", "points": [], "from": 1, "verdict": "left"},
            "damaged: ValueError",
        ),
    ],
)
def test_a_document_of_another_version_or_a_damaged_one_is_one_line(document, words):
    with pytest.raises(ForensicsError, match=words) as e:
        Curve.from_document(document, "curve.json")
    assert e.value.kind == "integrity" and "draw it again" in str(e.value)


def test_a_file_that_is_not_there_or_is_no_json_is_one_line(tmp_path):
    with pytest.raises(ForensicsError, match="found none"):
        Curve.read(tmp_path / "curve.json")
    (tmp_path / "curve.json").write_text('{"version": 3')
    with pytest.raises(ForensicsError, match="is damaged"):
        Curve.read(tmp_path / "curve.json")
