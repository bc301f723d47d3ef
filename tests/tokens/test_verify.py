"""Verification against models whose truth is known: one that copies, with tokens it cannot say, and
ones that cannot.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from forensics.data.tokenize import train_tokenizer
from forensics.model.forward import Recomputed, of_decoder, of_folder
from forensics.model.vocabulary_matrices import Weights
from forensics.tokens.categories import Categories, categorise
from forensics.tokens.findings_document import rule_against
from forensics.tokens.target import Target
from forensics.tokens.under_trained import CANNOT_COPY, _verify
from forensics.tokens.verification import Verification
from forensics.tokens.verify import VERIFIED, Verifier, can_copy, choose_controls

TEXT = (
    "import these words another string However function public during machine orange planet bicycle"
    " Monday"
)


@pytest.fixture(scope="module")
def categories() -> Categories:
    return categorise(tokenizer())


def tokenizer():
    return train_tokenizer([TEXT] * 5 + [TEXT.replace(" ", "\n")] * 5, 400)


class Copier:
    """Says what followed the last token where that stood before; a token of `mute` it never
    says.
    """

    def __init__(self, vocabulary: int, mute: list[int], sure: float = 0.9) -> None:
        self.vocabulary, self.mute, self.sure = (
            vocabulary,
            torch.tensor(mute, dtype=torch.int64),
            sure,
        )
        self.asked: list[tuple[int, int]] = []  # rows, positions

    def __call__(self, tokens_BT: Tensor) -> Tensor:
        self.asked.append(tuple(tokens_BT.shape))
        p = torch.full((len(tokens_BT), self.vocabulary), 0.1 / self.vocabulary)
        for row, tokens in zip(p, tokens_BT):
            before = (tokens[:-1] == tokens[-1]).nonzero()
            if len(before):
                row[tokens[before[-1] + 1]] += self.sure
        p[:, self.mute] = 1e-5
        return p.log()


def verifier_of(
    categories: Categories, copier: Copier, trained: np.ndarray | None = None, context: int = 4096
) -> Verifier:
    trained = np.ones(len(categories.ids)) if trained is None else trained
    return Verifier(tokenizer(), Recomputed(copier, context), categories, trained)


def test_exactly_the_tokens_that_the_model_cannot_say_are_verified(categories: Categories) -> None:
    mute = [300, 310, 320]
    verifier = verifier_of(categories, Copier(len(categories.ids), mute))
    ids = np.arange(290, 330)
    p, bound = verifier.max_prob(ids)
    assert ids[p < VERIFIED].tolist() == mute
    assert (bound == (p >= VERIFIED)).all()


def test_the_placeholder_is_none_that_the_model_cannot_say(categories: Categories) -> None:
    """However well trained it looks."""
    size = len(categories.ids)
    first = verifier_of(categories, Copier(size, [])).placeholder
    assert (
        first is not None
        and categories.text[first].isalpha()
        and len(set(categories.text[first])) >= 5
    )
    other = verifier_of(categories, Copier(size, [first])).placeholder
    assert other is not None and other != first
    trained = np.ones(size)
    trained[first] = 0.1
    assert verifier_of(categories, Copier(size, []), trained).placeholder not in (None, first)


def test_a_token_that_a_prompt_rejects_is_not_asked_again(categories: Categories) -> None:
    mute = list(range(300, 304))
    copier = Copier(len(categories.ids), mute)
    verifier = verifier_of(categories, copier)
    cost = [len(p.ids) - p.first for p in verifier.prompts]
    assert cost == sorted(cost), "the cheapest goes first"
    copier.asked.clear()
    verifier.max_prob(np.arange(296, 312))
    lengths = {len(p.ids): 0 for p in verifier.prompts}
    for rows, positions in copier.asked:
        if positions in lengths:
            lengths[positions] += rows
    first, *others = lengths.values()
    assert first == 16 and all(4 <= rows < 16 for rows in others)


def test_controls_are_well_trained_and_near_in_count(categories: Categories) -> None:
    size = len(categories.ids)
    trained = np.linspace(0, 1, size)[np.random.default_rng(0).permutation(size)]
    candidates = np.array([290, 330])
    count = np.arange(size)
    ids = choose_controls(categories, trained, count, candidates)
    assert len(ids) == 2 and (trained[ids] >= 0.5).all() and not set(ids) & set(candidates)
    for id, candidate in zip(ids, candidates):
        nearer = [
            i
            for i in range(size)
            if abs(i - candidate) < abs(id - candidate) and trained[i] >= 0.5 and i not in ids
        ]
        assert all(
            categories.category[i] != "OK" or categories.byte[i] or not categories.text[i].strip()
            for i in nearer
            if i not in candidates
        )


def verification(
    categories: Categories, copier: Copier, census: bool = False, context: int = 4096
) -> Verification:
    size = len(categories.ids)
    U = torch.ones(size, 2)
    target = Target(
        "copier",
        "gguf",
        tokenizer(),
        weights=Weights(U, U, None, True),
        forward=lambda: Recomputed(copier, context),
    )
    own = np.linspace(1, 2, size)
    own[[300, 301]] = 0
    return _verify(target, categories, own, None, np.array([300, 301]), census, lambda *_: None)


@pytest.mark.parametrize("sure", [0.0, 0.02])
def test_a_model_that_cannot_copy_is_told_so_and_verifies_nothing(
    sure: float, categories: Categories
) -> None:
    told = verification(categories, Copier(len(categories.ids), [], sure))
    assert (
        not told.copies and told.verdict.startswith(CANNOT_COPY) and np.isnan(told.max_prob).all()
    )


def test_a_model_that_repeats_the_placeholder_and_few_else_is_refused_by_its_controls(
    categories: Categories,
) -> None:
    placeholder = verifier_of(categories, Copier(len(categories.ids), [])).placeholder
    told = verification(
        categories,
        Copier(
            len(categories.ids), [i for i in range(257, len(categories.ids)) if i != placeholder]
        ),
    )
    assert told.placeholder is None or not told.copies
    assert told.verdict.startswith(CANNOT_COPY)


def test_a_model_whose_words_are_frequent_everywhere_has_not_repeated_them(
    categories: Categories,
) -> None:
    """A control's P must stand out from what the same prompt gives it when it is about another
    token.
    """

    def babble(tokens_BT: Tensor) -> Tensor:
        p = torch.full((len(tokens_BT), len(categories.ids)), 0.1 / len(categories.ids))
        p[:, 280:] += 0.9 / (len(categories.ids) - 280)
        return p.log()

    verifier = Verifier(
        tokenizer(), Recomputed(babble, 4096), categories, np.ones(len(categories.ids))
    )
    assert verifier.placeholder is None
    verifier.prompts, verifier.base = [], torch.full((len(categories.ids),), 0.04)
    assert not can_copy(verifier.controls(np.array([290, 291])))


def test_too_few_positions_are_the_reason_where_no_prompt_fits(categories: Categories) -> None:
    told = verification(categories, Copier(len(categories.ids), []), context=12)
    assert not told.copies and "12 positions" in told.verdict


def test_fewer_shots_are_taken_where_all_do_not_fit(categories: Categories) -> None:
    copier = Copier(len(categories.ids), [300])
    whole = verifier_of(categories, copier)
    longest = max(len(p.ids) for p in whole.prompts)
    short = verifier_of(categories, copier, context=longest - 20)
    assert short.placeholder is not None and max(len(p.ids) for p in short.prompts) < longest - 20
    p, _ = short.max_prob(np.array([299, 300, 301]))
    assert (p < VERIFIED).tolist() == [False, True, False]


def test_a_census_asks_all_and_holds_the_rule_against_itself(categories: Categories) -> None:
    told = verification(categories, Copier(len(categories.ids), [300, 320, 330]), census=True)
    verified = told.max_prob < VERIFIED
    assert (
        told.copies
        and np.isfinite(told.max_prob).all()
        and np.flatnonzero(verified).tolist() == [300, 320, 330]
    )
    chosen = np.zeros(len(verified), bool)
    chosen[[300, 301]] = True
    rule = rule_against(verified, chosen, categories.reachable)
    assert (rule["hits"], rule["verified"], rule["candidates"]) == (1, 3, 2)
    assert rule["recall"] == pytest.approx(1 / 3) and rule["precision"] == 0.5


def test_what_is_kept_of_the_prefix_changes_no_probability(
    make_shape, random_params, tmp_path: Path
) -> None:
    """Our decoder, which reads everything again, and transformers' cache, spread over a batch and
    thinned out.
    """
    from forensics.step.state import TrainState
    from forensics.train import checkpoint

    for family in ("llama", "gpt2"):
        shape = make_shape(family, length=64)
        params = random_params(shape)
        path, _, _ = checkpoint.save(tmp_path / family, TrainState.start(params), shape, None, 0)
        cached, plain = of_folder(path), of_decoder(params, shape, 64, "cpu")
        generator = torch.Generator().manual_seed(0)
        prefix, rest = (
            torch.randint(0, 61, size, generator=generator) for size in ((1, 9), (5, 7))
        )
        told = []
        for forward in (cached, plain):
            _, past = forward.read(prefix, None)
            for _ in range(2):  # the prefix's past is used twice, and is the same
                logits, more = forward.read(rest, forward.spread(past, 5))
                rows = torch.tensor([0, 3])
                after, _ = forward.read(torch.tensor([[4], [5]]), forward.take(more, rows))
            told.append((logits, after))
        for a, b in zip(*told):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
