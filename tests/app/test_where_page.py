"""Find text: what the page says of a text, hostile ones too, and what of the URL it takes."""

from __future__ import annotations

import shutil

import pytest

HOSTILE = "<img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def where_runs(app_runs, tmp_path_factory):
    runs = tmp_path_factory.mktemp("where") / "runs"
    shutil.copytree(app_runs, runs)
    return runs


@pytest.fixture
def searchable(where_runs, monkeypatch):
    monkeypatch.setenv("FORENSICS_RUNS", str(where_runs))
    return where_runs


def test_without_a_text_the_page_says_what_it_finds(searchable, app_page, said):
    test = app_page("where", run="demo")
    assert not test.exception and "forensics where demo" in said(test)


def test_a_text_of_the_corpus_has_documents_readings_and_a_fork(searchable, app_page, said):
    test = app_page("where", run="demo", text=HOSTILE)
    assert not test.exception
    html = "".join(element.proto.body for element in test.get("html"))
    assert "&lt;img src=x" in html and "<img" not in html
    assert "stands" in said(test)
    documents, readings = (frame.value for frame in test.dataframe[:2])
    assert documents["times"].sum() > 0 and {"step", "whole"} <= set(readings.columns)
    assert (readings["step"] >= 120).all()
    assert any("--remove-text" in code.value for code in test.get("code"))


def test_a_text_that_is_nowhere_is_an_answer(searchable, app_page, said):
    test = app_page("where", run="demo", text="nowhere at all!")
    assert not test.exception and "holds" in said(test) and not test.dataframe
    assert "No document of" in said(test)
