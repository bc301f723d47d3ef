"""Values of TOML and JSON as annotated types."""

from __future__ import annotations

import math
from typing import Any

import pytest

from forensics.coercion import coerce
from forensics.errors import ForensicsError


@pytest.mark.parametrize(
    ("hint", "value", "read"),
    [
        (int, 3, 3),
        (float, 3, 3.0),
        (float, 0.5, 0.5),
        (bool, True, True),
        (str, "x", "x"),
        (int | None, None, None),
        (int | None, 4, 4),
        (tuple[int, ...], [1, 2], (1, 2)),
        (tuple[int, ...], (), ()),
        (tuple[float, float], [1, 0.5], (1.0, 0.5)),
        (tuple[tuple[int, int], ...], [[1, 2], (3, 4)], ((1, 2), (3, 4))),
        (dict[str, float], {"a": 1}, {"a": 1.0}),
    ],
)
def test_a_value_is_read_as_its_type(hint: Any, value: Any, read: Any) -> None:
    result = coerce(hint, value, "key", "try it")
    assert result == read and type(result) is type(read)


@pytest.mark.parametrize(
    ("hint", "value", "words"),
    [
        (int, True, "key: wanted a whole number, found True"),
        (int, 1.0, "key: wanted a whole number, found 1.0"),
        (float, True, "key: wanted a number, found True"),
        (float, math.nan, "key: wanted a finite number, found nan"),
        (float, math.inf, "key: wanted a finite number, found inf"),
        (bool, 1, "key: wanted true or false, found 1"),
        (str, 1, "key: wanted a string, found 1"),
        (str, None, "key: wanted a string, found None"),
        (tuple[int, ...], "12", "key: wanted a list, found '12'"),
        (tuple[float, float], [0.9], "key: wanted a list of 2, found [0.9]"),
        (tuple[tuple[int, int], ...], [[1, 2], [3]], "key[1]: wanted a list of 2, found [3]"),
        (dict[str, float], {"a": "x"}, "key.a: wanted a number, found 'x'"),
        (dict[str, float], [1], "key: wanted a table, found [1]"),
    ],
)
def test_what_cannot_be_read_is_refused_by_the_name_of_its_key(
    hint: Any, value: Any, words: str
) -> None:
    with pytest.raises(ForensicsError) as e:
        coerce(hint, value, "key", "try it")
    assert (e.value.kind, e.value.message, e.value.hint) == ("config", words, "try it")


def test_a_table_is_read_by_who_knows_it() -> None:
    class Mix:
        pass

    def table(kind: type, value: Any, where: str) -> tuple[str, Any, str]:
        return kind.__name__, value, where

    read = coerce(tuple[Mix, ...], [{"a": 1}], "data.phases", "try it", table)
    assert read == (("Mix", {"a": 1}, "data.phases[0]"),)
