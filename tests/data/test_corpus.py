import json
import sys
import sysconfig
import types
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forensics.data.corpus import Documents, shuffled
from forensics.errors import ForensicsError

STDLIB = Path(sysconfig.get_path("stdlib"))


def read(spec, **settings):
    return [(d.path, d.text) for d in Documents(str(spec), **settings)]


def refused(spec, kind, message, **settings):
    with pytest.raises(ForensicsError, match=message) as e:
        read(spec, **settings)
    assert e.value.kind == kind and e.value.hint
    return e.value


def test_a_package_of_the_standard_library_is_its_own_source_files():
    files = sorted((STDLIB / "json").glob("*.py"))
    assert read("stdlib/json") == [(f"json/{f.name}", f.read_text(encoding="utf-8")) for f in files]
    assert [path for path, _ in read("stdlib/ast")] == ["ast.py"]


def test_the_standard_library_comes_without_its_tests_and_what_was_installed_into_it():
    paths = [d.path for d in Documents("stdlib")]
    assert paths == sorted(paths) and len(paths) > 300
    assert {"ast.py", "json/decoder.py", "asyncio/events.py"} <= set(paths)
    folders = {folder for path in paths for folder in path.split("/")[:-1]}
    assert not folders & {"site-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3"}


def test_a_package_that_is_not_there_is_named_with_the_nearest():
    assert "did you mean 'json'" in str(refused("stdlib/jsn", "missing", "has no such package"))
    refused("stdlib/../secrets", "missing", "has no such package")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_bytes("eins\r\nzwei ü".encode())
    (tmp_path / "b" / "c.md").write_text("three", encoding="utf-8")
    (tmp_path / "b.txt").write_text("", encoding="utf-8")
    return tmp_path


def test_a_folder_is_read_recursively_in_order_byte_for_byte(folder):
    assert read(folder) == [("a.txt", "eins\r\nzwei ü"), ("b.txt", ""), ("b/c.md", "three")]
    assert read(folder / "b" / "c.md") == [("c.md", "three")]


def test_hidden_files_and_folders_are_passed_over(folder):
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("x")
    (folder / ".env").write_text("x")
    assert len(read(folder)) == 3


def test_binary_and_undecodable_files_are_reported_and_left_out(folder):
    (folder / "image.png").write_bytes(b"\x89PNG\xff\xfe")
    (folder / "zeros.bin").write_bytes(bytes(20))
    documents = Documents(str(folder))
    for _ in range(2):  # each reading reports anew
        assert [d.path for d in documents] == ["a.txt", "b.txt", "b/c.md"]
        assert documents.left_out == ["image.png: not UTF-8", "zeros.bin: binary"]


def test_a_folder_of_nothing_but_binary_files_is_refused(tmp_path):
    refused(tmp_path, "data", "found none")
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    refused(tmp_path, "data", "all 1 were left out .x: not UTF-8.")


def test_a_folder_that_is_not_there_is_missing(tmp_path):
    refused(tmp_path / "nowhere", "missing", "found nothing there")


def test_jsonl_gives_one_document_a_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(
        b'{"text": "one"}\n\n{"text": null}\n{"text": "\xc3\xbc"}\n{"text": "\\ud800"}\n{"text":'
        b' "\xff"}\n'
    )
    documents = Documents(str(path))
    assert [(d.path, d.text) for d in documents] == [("x.jsonl:1", "one"), ("x.jsonl:4", "ü")]
    assert [line.split(":")[1] for line in documents.left_out] == ["3", "5", "6"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', "x.jsonl:1: wanted one JSON object a line"),
        ('["a"]', "found list"),
        ('{"txt": "a"}', "wanted text at 'text', found no such field"),
        ('{"text": 3}', "wanted text at 'text', found int"),
    ],
)
def test_a_bad_line_of_jsonl_is_named(tmp_path, line, message):
    (tmp_path / "x.jsonl").write_text(line + "\n")
    refused(tmp_path / "x.jsonl", "data", message)


def test_the_field_that_holds_the_text_can_be_chosen(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"body": "hello"}))
    assert read(tmp_path / "x.jsonl", text_key="body") == [("x.jsonl:1", "hello")]
    assert "did you mean 'body'" in str(
        refused(tmp_path / "x.jsonl", "data", "no such field", text_key="boddy")
    )


def test_parquet_gives_one_document_a_row(tmp_path):
    pq.write_table(
        pa.table({"text": ["one", None, "drei"], "n": [1, 2, 3]}), tmp_path / "x.parquet"
    )
    documents = Documents(str(tmp_path / "x.parquet"))
    assert [(d.path, d.text) for d in documents] == [
        ("x.parquet:0", "one"),
        ("x.parquet:2", "drei"),
    ]
    assert documents.left_out == ["x.parquet:1: no text"]
    refused(tmp_path / "x.parquet", "data", "found no such field", text_key="body")
    refused(tmp_path / "x.parquet", "data", "found int", text_key="n")
    (tmp_path / "y.parquet").write_text("no parquet at all")
    refused(tmp_path / "y.parquet", "data", "is not Parquet")


def test_hugging_face_without_its_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install" in str(refused("hf:some/name", "data", "wanted the package `datasets`"))


def test_hugging_face_records_are_streamed_from_the_split_that_was_named(monkeypatch):
    asked = []

    def load_dataset(name, split, streaming):
        asked.append((name, split, streaming))
        if name == "no/such":
            raise FileNotFoundError("Couldn't find it\nmore")
        return iter([{"text": "one"}, {"text": "two"}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert read("hf:some/name:validation") == [
        ("some/name:validation:0", "one"),
        ("some/name:validation:1", "two"),
    ]
    assert [d.text for d in Documents("hf:some/name")] == ["one", "two"]
    assert asked == [("some/name", "validation", True), ("some/name", "train", True)]
    refused("hf:no/such", "data", "cannot open split 'train': Couldn't find it$".replace("$", ";"))


def test_shuffling_keeps_every_character_of_each_document_and_no_order(folder):
    (folder / "long.txt").write_text("".join(map(chr, range(32, 1000))), encoding="utf-8")
    plain, mixed = read(folder), read(f"shuffled:{folder}")
    assert [path for path, _ in plain] == [path for path, _ in mixed]
    assert [Counter(text) for _, text in plain] == [Counter(text) for _, text in mixed]
    long, long_mixed = plain[-1][1], mixed[-1][1]
    assert sum(a == b for a, b in zip(long, long_mixed)) < 20
    assert mixed == read(f"shuffled:{folder}")


def test_shuffling_is_keyed_by_the_path():
    one, other = (types.SimpleNamespace(path=p, text="abcdefghijklmnopqrstuvwxyz") for p in "ab")
    assert shuffled(one) == shuffled(one) != shuffled(other)
    assert shuffled(types.SimpleNamespace(path="a", text="")) == ""
