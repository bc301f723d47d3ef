"""Blame by an attribute of documents: their values are groups, as sources are."""

from types import SimpleNamespace

import pyarrow as pa
import pytest

from forensics.errors import ForensicsError
from replay.blame.candidates import by_attribute
from replay.blame.result import DocumentInfluence, GroupInfluence

ROWS = [{"tags": ["a", "b"], "lang": "en"}, {"tags": ["b"], "lang": None}, None]
RUN = SimpleNamespace(name="r", corpus=SimpleNamespace(attributes=pa.array(ROWS)))
DOCUMENTS = [
    DocumentInfluence(document, "main", str(document), influence, 1, 10)
    for document, influence in ((0, 0.5), (1, 0.25), (2, 9.0), (None, 1.0))
]


def test_a_document_belongs_to_each_of_its_tags_and_one_without_any_to_none():
    assert by_attribute(RUN, DOCUMENTS, "tags") == [
        GroupInfluence("tags", "b", 0.75, 2, 20, (0, 1)),
        GroupInfluence("tags", "a", 0.5, 1, 10, (0,)),
    ]
    assert by_attribute(RUN, DOCUMENTS, "lang") == [GroupInfluence("lang", "en", 0.5, 1, 10, (0,))]


def test_an_attribute_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(ForensicsError, match="found no 'tag'") as e:
        by_attribute(RUN, DOCUMENTS, "tag")
    assert "tags" in e.value.hint
    bare = SimpleNamespace(name="r", corpus=SimpleNamespace(attributes=None))
    with pytest.raises(ForensicsError, match="found no 'tags'"):
        by_attribute(bare, DOCUMENTS, "tags")
