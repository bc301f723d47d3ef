"""Influence by document and source, and text that is shown safely."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from benchmarks.blame_study import AT
from forensics.errors import ForensicsError
from replay.blame import candidates
from replay.blame.candidates import Influences
from replay.blame.influence_text import CandidateText, Piece, html_page, text_pieces
from replay.blame.result import BlameResult, Candidate
from replay.cli.blame import coloured


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
    assert sum(d.influence for d in documents) == pytest.approx(whole)
    assert sum(s.influence for s in candidates.by_source(documents)) == pytest.approx(whole)
    assert [d.influence for d in documents] == sorted(
        (d.influence for d in documents), reverse=True
    )
    assert sum(d.targets for d in documents) == len(rows) * hurt.control.batch.weight.shape[1]


def test_the_spans_of_a_row_cover_its_targets_once_in_order(hurt):
    for row in hurt.rows([AT, AT + 1]):
        spans = [stretch.slot for stretch in hurt.document_stretches(row)]
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
    pieces = text_pieces(hurt, influences, row)
    ids = hurt.run.stream(AT).tokens[0].tolist()
    assert "".join(piece.text for piece in pieces) == candidates.visible(
        hurt.run.corpus.decode(ids)
    )
    assert sum(piece.influence for piece in pieces) == pytest.approx(influences.of(row))


def suspect(*pieces: tuple[str, float]) -> CandidateText:
    candidate = Candidate(
        step=1,
        slot=2,
        sequence=3,
        document=4,
        source="<b>",
        path="\x1b[2J",
        documents=(),
        part="data",
        influence=0.5,
        replayed_effect=None,
        text="",
    )
    return CandidateText(candidate, tuple(Piece(*piece) for piece in pieces))


def test_text_of_the_corpus_is_neither_markup_nor_html(blame_document):
    text = suspect(("[bold red]<script>alert(1)</script>&", 1.0), ("ok", -1.0))
    assert coloured(text, 1.0).plain == "[bold red]<script>alert(1)</script>&ok"
    document = blame_document | {"run": "<run>", "sentence": "<i>"}
    result = BlameResult.from_document(document, "blame-1.json")
    page = html_page(result, [text])
    assert "<script" not in page and "<b>" not in page and "<i>" not in page and "\x1b" not in page
    assert "&lt;script&gt;" in page and "[bold red]" in page


def test_strong_text_is_red_where_it_raises_and_blue_where_it_lowers():
    text = coloured(suspect(("up", 1.0), ("down", -1.0), ("none", 0.0)), 1.0)
    styles = [str(span.style) for span in text.spans]
    assert len(styles) == 2 and "rgb(220,30,30)" in styles[0] and "rgb(30,40,220)" in styles[1]


def test_a_result_of_another_version_is_one_clear_error_and_its_own_comes_back(blame_document):
    result = BlameResult.from_document(blame_document, "blame-1.json")
    assert result.to_document() == blame_document
    assert result.excess.total == math.inf and result.spike.sigma == 10.0
    for changed in ({"version": 1}, {"version": None}):
        with pytest.raises(
            ForensicsError, match=r"blame-1\.json: wanted a blame result of version 2"
        ):
            BlameResult.from_document(blame_document | changed, "blame-1.json")
    with pytest.raises(ForensicsError, match="damaged"):
        BlameResult.from_document(blame_document | {"verdict": "guilty"}, "blame-1.json")
