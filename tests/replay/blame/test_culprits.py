"""Influence by document and source, and text that is shown safely."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from benchmarks.blame_study import AT
from replay.blame import candidates, influence_text
from replay.blame.bisect import document_spans
from replay.blame.candidates import Influences


@pytest.fixture(scope="module")
def influences(hurt) -> Influences:
    first, S = AT - 1, hurt.control.last
    B, T = hurt.control.batch.weight.shape
    by_token = np.random.default_rng(0).normal(size=(S + 1 - first, B, T))
    known = np.ones((S + 1 - first, B), bool)
    known[0] = False
    return Influences(first, by_token, known)


def test_documents_and_sources_share_out_the_influence_of_their_sequences_without_rest(
    hurt, influences
):
    rows = hurt.rows(range(AT, hurt.control.last + 1))
    documents = candidates.by_document(hurt, influences, rows)
    whole = influences.by_token[1:].sum()
    assert sum(d["influence"] for d in documents) == pytest.approx(whole)
    assert sum(s["influence"] for s in candidates.by_source(documents)) == pytest.approx(whole)
    assert [d["influence"] for d in documents] == sorted(
        (d["influence"] for d in documents), reverse=True
    )
    assert sum(d["targets"] for d in documents) == len(rows) * hurt.control.batch.weight.shape[1]


def test_the_spans_of_a_row_cover_its_targets_once_in_order(hurt):
    for row in hurt.rows([AT, AT + 1]):
        spans = [span for _, span in document_spans(hurt, row)]
        assert spans[0].first == 0 and spans[-1].last == row.last
        assert all(a.last == b.first for a, b in itertools.pairwise(spans))


def test_what_no_method_looked_at_has_no_influence(hurt, influences):
    assert influences.of(hurt.row(AT - 1, 0)) is None
    ranked = influences.ranked(hurt)
    assert all(r.step >= AT for r in ranked)
    values = [influences.of(r) for r in ranked]
    assert values == sorted(values, reverse=True) and min(values) > 0


def test_the_pieces_of_a_sequence_are_its_text_and_its_influence(hurt, influences):
    row = hurt.row(AT, 0)
    parts = influence_text.pieces(hurt, influences, row)
    ids = hurt.run.stream(AT).tokens[0].tolist()
    assert "".join(text for text, _ in parts) == candidates.visible(hurt.run.corpus.decode(ids))
    assert sum(v for _, v in parts) == pytest.approx(influences.of(row))


def test_text_of_the_corpus_is_neither_markup_nor_html(hurt):
    parts = [("[bold red]<script>alert(1)</script>&", 1.0), ("ok", -1.0)]
    assert influence_text.coloured(parts, 1.0).plain == "[bold red]<script>alert(1)</script>&ok"
    candidate = {
        "step": 1,
        "slot": 2,
        "sequence": 3,
        "source": "<b>",
        "path": "\x1b[2J",
        "influence": 0.5,
    }
    document = {
        "run": "<run>",
        "spike": {"step": 1},
        "verdict": "data",
        "sentence": "<i>",
        "deletion_curve": [],
    }
    page = influence_text.page(document, [(candidate, parts)])
    assert "<script" not in page and "<b>" not in page and "<i>" not in page and "\x1b" not in page
    assert "&lt;script&gt;" in page and "[bold red]" in page


def test_strong_text_is_red_where_it_raises_and_blue_where_it_lowers():
    text = influence_text.coloured([("up", 1.0), ("down", -1.0), ("none", 0.0)], 1.0)
    styles = [str(span.style) for span in text.spans]
    assert len(styles) == 2 and "rgb(220,30,30)" in styles[0] and "rgb(30,40,220)" in styles[1]
