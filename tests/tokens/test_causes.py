"""Each cause is found where it was planted, with numbers that can be checked by hand."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from tokenizers import Tokenizer

from forensics.data.planted import PLANTED
from forensics.data.tokenize import bytes_tokenizer, train_tokenizer
from forensics.tokens.categories import categorise
from forensics.tokens.causes import (
    NAMES,
    causes,
    corpus_counts,
    inside_longer,
    of_tokenizer,
    strongest,
)
from forensics.tokens.exposure import Exposure, ledger
from forensics.train.run import Run


@pytest.fixture(scope="module")
def found(planted_run: Run):
    return causes(planted_run, ledger(planted_run, planted_run.last_step()))


def id_of(run: Run, text: str) -> int:
    (id,) = run.corpus.tokenizer.encode(text).ids
    return id


def test_words_of_the_tokenizers_data_that_the_model_never_met_say_so_with_counts(
    planted_run: Run, found
) -> None:
    for word, times in PLANTED.items():
        names = {cause.name: cause for cause in found.get(id_of(planted_run, f" {word}"), [])}
        if times != 10:  # between the two, what was to be expected decides
            assert ("tokenizer-only" in names) == (times < 10), word
        if times == 0:
            assert names["tokenizer-only"].evidence["by_source"] == {"only-tokenizer": 24 * 12}
            assert names["tokenizer-only"].evidence["exposure_in"] == 0
            assert strongest(found)[id_of(planted_run, f" {word}")] == "tokenizer-only"


def test_pieces_of_invented_words_are_scaffolds_of_the_whole_word(planted_run: Run, found) -> None:
    scaffolds = {
        cause.evidence["longer_text"]: cause
        for reasons in found.values()
        for cause in reasons
        if cause.name == "merge-scaffold"
    }
    cause = next(scaffolds[f" {word}"] for word in PLANTED if f" {word}" in scaffolds)
    assert cause.evidence["alone"] <= 0.1 * (cause.evidence["alone"] + cause.evidence["inside"])
    assert cause.evidence["intersection_over_self"] >= 0.9 and "stand alone" in cause.sentence


def test_a_token_of_one_document_names_the_document_that_holds_it(planted_run: Run, found) -> None:
    exposure = ledger(planted_run, planted_run.last_step())
    named = {
        id: cause
        for id, reasons in found.items()
        for cause in reasons
        if cause.name == "single-document"
    }
    assert named
    paths = planted_run.corpus.documents["path"].to_pylist()
    for id, cause in named.items():
        row = planted_run.corpus.documents.slice(cause.evidence["document"], 1).to_pylist()[0]
        source = [s.name for s in planted_run.corpus.sources].index(row["source"])
        own = planted_run.corpus.tokens(
            source, row["first_token"], row["first_token"] + row["tokens"]
        )
        assert (own == id).any() and cause.evidence["path"] == paths[cause.evidence["document"]]
        assert (
            exposure.documents[id] == 1
            and cause.evidence["exposure_in"] == exposure.exposure_in[id] > 1
        )


def test_a_token_seen_early_and_never_since_is_forgotten(planted_run: Run) -> None:
    V = planted_run.shape.vocabulary
    many, token = np.full(V, 1000), 400
    last, documents = np.full(V, 999), np.full(V, 500)
    last[token], documents[token] = (
        99,
        4,
    )  # a tenth of the run, four times in four documents: 1 in 10,000
    last[token + 1], documents[token + 1] = 99, 2  # two documents may come early by chance
    seen = Exposure(1000, many, many, many, documents, np.zeros(V, np.int64), last)
    told = causes(planted_run, seen, [token, token + 1])
    (cause,) = [c for c in told[token] if c.name == "forgotten"]
    assert cause.evidence["steps_since"] == 900 and cause.evidence["chance"] == pytest.approx(1e-4)
    assert "forgotten" not in [c.name for c in told.get(token + 1, [])]


def test_a_tokenizer_alone_tells_the_unreachable_and_the_partial() -> None:
    model = json.loads(bytes_tokenizer().to_str())
    model["model"]["vocab"]["ab"] = 300  # no merge makes it
    tokenizer = Tokenizer.from_str(json.dumps(model))
    told = of_tokenizer(categorise(tokenizer), [300, 0xC3, ord("a")])
    assert told[300].name == "unreachable" and told[300].evidence == {
        "text": "ab",
        "encoded_as": [97, 98],
    }
    assert told[0xC3].name == "partial-utf8" and "part of a character" in told[0xC3].sentence
    assert ord("a") not in told


def test_occurrences_inside_longer_tokens_are_those_of_taking_every_token_apart() -> None:
    draw = random.Random(0)
    texts = [
        " ".join(draw.choice(["banana", "bandana", "cabana", "ban", "an"]) for _ in range(40))
        for _ in range(20)
    ]
    tokenizer = train_tokenizer(texts, 275)
    counts = np.random.default_rng(0).integers(0, 50, tokenizer.get_vocab_size())
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary, made = model["vocab"], {}
    for left, right in model["merges"]:
        made.setdefault(left + right, (left, right))
    spelled = {id: token for token, id in vocabulary.items()}

    def pieces(token: str) -> list[str]:
        return [p for part in made[token] for p in (part, *pieces(part))] if token in made else []

    inside = np.zeros_like(counts)
    best: dict[int, int] = {}
    for id, token in spelled.items():
        for piece in pieces(token):
            inside[vocabulary[piece]] += counts[id]
            best[vocabulary[piece]] = max(best.get(vocabulary[piece], 0), int(counts[id]))
    found, longest = inside_longer(tokenizer, counts)
    assert np.array_equal(found, inside) and inside.any()
    assert {id: int(counts[longest[id]]) for id in np.flatnonzero(longest >= 0)} == {
        k: v for k, v in best.items() if v
    }


def test_the_corpus_is_counted_source_by_source(planted_run: Run) -> None:
    counts = corpus_counts(planted_run)
    assert counts.sum(1).tolist() == [source.tokens for source in planted_run.corpus.sources]


def test_every_cause_has_a_name_of_the_list_and_the_strongest_comes_first(found) -> None:
    for reasons in found.values():
        places = [NAMES.index(cause.name) for cause in reasons]
        assert places == sorted(places) and len(set(places)) == len(places)
