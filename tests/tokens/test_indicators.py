"""Indicators against their formulas in float64."""

from __future__ import annotations

import numpy as np
import torch

from forensics.model.vocabulary_matrices import Weights
from forensics.tokens.indicators import BLOCK, INDICATORS, first_component, measure

REFERENCE = np.array([3, 8, 21])


def weights(V: int = 90, D: int = 24, tied: bool = False, bias: bool = False) -> Weights:
    generator = torch.Generator().manual_seed(0)
    # a common direction and unequal lengths, so that no two variants agree
    E = torch.randn(V, D, generator=generator) * torch.linspace(0.3, 2, D) + 0.7
    U = E if tied else torch.randn(V, D, generator=generator) * torch.linspace(0.5, 3, D) - 0.4
    return Weights(E, U, torch.randn(V, generator=generator) if bias else None, tied)


def by_formula(w: Weights) -> dict[str, np.ndarray]:
    U, E = w.unembedding.double().numpy(), w.embedding.double().numpy()

    def distance(X: np.ndarray) -> np.ndarray:
        u = X[REFERENCE].mean(0)
        return 1 - X @ u / np.maximum(np.linalg.norm(X, axis=1) * np.linalg.norm(u), 1e-6)

    mean = U.mean(0)
    pc = np.linalg.svd(U - mean, full_matrices=False)[2][0]
    return {
        "cosine": distance(U),
        "cosine-centred": distance(U - mean),
        "cosine-without-pc": distance(U - np.outer(U @ pc, pc)),
        "euclidean": np.linalg.norm(U - U[REFERENCE].mean(0), axis=1),
        "input-norm": np.linalg.norm(E, axis=1),
    }


def test_each_indicator_is_its_formula_tied_and_untied() -> None:
    for tied in (False, True):
        w = weights(tied=tied)
        found = measure(w, REFERENCE)
        for name, values in by_formula(w).items():
            assert found[name].dtype == np.float32
            np.testing.assert_allclose(
                found[name], values, atol=2e-4, err_msg=f"{name}, tied {tied}"
            )


def test_rows_beyond_one_block_are_measured_too() -> None:
    w = weights(V=BLOCK + 7, D=4)
    found = measure(w, REFERENCE)
    for name, values in by_formula(w).items():
        np.testing.assert_allclose(found[name], values, atol=2e-4, err_msg=name)


def test_the_bias_of_the_head_is_an_indicator_where_there_is_one() -> None:
    w = weights(bias=True)
    assert w.bias is not None
    assert (measure(w, REFERENCE)["bias"] == w.bias.numpy()).all()
    assert set(measure(w, REFERENCE)) == set(INDICATORS) and "bias" not in measure(
        weights(), REFERENCE
    )


def test_without_a_reference_only_what_needs_none_is_measured() -> None:
    assert set(measure(weights(bias=True), None)) == {"input-norm", "bias"}


def test_the_default_follows_the_tying() -> None:
    assert weights(tied=True).default() == "cosine" and weights().default() == "input-norm"


def test_an_empty_row_counts_as_far_and_divides_by_no_zero() -> None:
    w = weights()
    w.unembedding[5] = 0
    assert measure(w, REFERENCE)["cosine"][5] == 1


def test_the_first_component_is_found_where_two_are_nearly_as_large() -> None:
    generator = torch.Generator().manual_seed(1)
    U = torch.randn(4000, 40, generator=generator) * torch.tensor([1.05, 1.0] + [0.9] * 38)
    mean = U.mean(0)
    exact = torch.linalg.svd((U - mean).double(), full_matrices=False).Vh[0]
    assert abs(float(first_component(U, mean).double() @ exact)) > 0.9999


def test_what_went_to_nan_is_told_as_nan_and_the_rest_is_measured() -> None:
    w = weights()
    w.unembedding[5] = torch.nan
    found = measure(w, REFERENCE)
    assert np.isfinite(found["input-norm"]).all() and np.isnan(found["cosine-without-pc"]).all()
    assert np.isnan(found["cosine"][5]) and np.isfinite(np.delete(found["cosine"], 5)).all()
