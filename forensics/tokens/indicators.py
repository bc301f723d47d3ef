"""How suspect each token's embedding looks (Land & Bartolo 2024): low is suspect, whichever
indicator.

measure(weights, reference_ids)["cosine"]      (V,) float32

An untied model is judged by ‖E_in[i]‖: its input rows shrink until they are used. A tied one by how
near U_i lies to the mean u of reference rows that are known to be unused, because its rows are
moved as outputs whether seen or not.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from forensics.model.vocabulary_matrices import Weights

INDICATORS = {
    "cosine": "1 − cos(U_i, u), u the mean of the reference rows of the unembedding U",
    "cosine-centred": "the same after subtracting the mean row of U",
    "cosine-without-pc": "the same after removing the first principal component of U",
    "euclidean": "‖U_i − u‖",
    "input-norm": "‖E_in[i]‖",
    "bias": "the bias of the LM head",
}
BLOCK = 1 << 14  # rows at a time
SMALLEST = 1e-6  # of the product of two norms
CHANGE = 1e-7  # of the first component between two rounds, at which it is found
ROUNDS = 500


def measure(weights: Weights, reference: np.ndarray | None) -> dict[str, np.ndarray]:
    """Every indicator that this model has, (V,) float32 each; those against a reference only where
    there is one.

    The cosine's denominator is at least 1e-6, so that an empty row counts as far (arXiv 2405.05417,
    section 3.2).
    """
    measured: dict[str, Tensor] = {}
    U = weights.unembedding
    if reference is not None and len(reference):
        u = U[torch.from_numpy(reference)].mean(0)
        mean = U.mean(0)
        measured["cosine"] = _cosine_distance(U, u)
        measured["cosine-centred"] = _cosine_distance(U, u - mean, mean=mean)
        pc = first_component(U, mean)
        measured["cosine-without-pc"] = _cosine_distance(U, u - (u @ pc) * pc, direction=pc)
        measured["euclidean"] = torch.cat(
            [torch.linalg.vector_norm(X - u, dim=1) for X in _blocks(U)]
        )
    measured["input-norm"] = torch.cat(
        [torch.linalg.vector_norm(X, dim=1) for X in _blocks(weights.embedding)]
    )
    if weights.bias is not None:
        measured["bias"] = weights.bias
    return {name: measured[name].float().numpy() for name in INDICATORS if name in measured}


def first_component(U: Tensor, mean: Tensor) -> Tensor:
    """Return the unit direction (D,) along which the rows of U (V, D) vary most, by subspace
    iteration.
    """
    if not U.isfinite().all():
        return torch.full_like(mean, torch.nan)  # of a run that went to NaN: there is none
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(U.shape[1], min(4, U.shape[1]), generator=generator)).Q
    first = Q[:, 0]
    for _ in range(ROUNDS):
        Z = torch.zeros_like(Q)
        for X in _blocks(U):
            X = X - mean
            Z += X.T @ (X @ Q)
        Q, R = torch.linalg.qr(Z)
        left = torch.linalg.svd(R).U  # within the subspace, the direction that was stretched most
        before, first = first, Q @ left[:, 0]
        Q = Q @ left
        if 1 - (first @ before).abs() < CHANGE:
            break
    return first / torch.linalg.vector_norm(first)


def _cosine_distance(
    U: Tensor, u: Tensor, mean: Tensor | None = None, direction: Tensor | None = None
) -> Tensor:
    """1 − cos of each row of U with u, after the mean or a direction was taken from the rows."""
    length, distances = torch.linalg.vector_norm(u), []
    for X in _blocks(U):
        if mean is not None:
            X = X - mean
        if direction is not None:
            X = X - torch.outer(X @ direction, direction)
        distances.append(
            1 - (X @ u) / (torch.linalg.vector_norm(X, dim=1) * length).clamp(min=SMALLEST)
        )
    return torch.cat(distances)


def _blocks(U: Tensor) -> Iterator[Tensor]:
    return iter(U.split(BLOCK))
