"""References that the rows themselves show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forensics.data.tokenize import train_tokenizer
from forensics.errors import ForensicsError
from forensics.model.vocabulary_matrices import Weights
from forensics.tokens import reference
from forensics.tokens.categories import Categories, categorise

D = 64


@pytest.fixture(scope="module")
def categories() -> Categories:
    return categorise(train_tokenizer(["the cat sat on the mat and the dog ran"] * 4, 290))


def rows(V: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(V, D, generator=torch.Generator().manual_seed(seed)) + 0.5


def tied(U: torch.Tensor, grain: torch.Tensor | None = None) -> Weights:
    return Weights(U, U, None, True, grain)


def test_the_largest_cluster_with_a_witness_is_found_in_the_noise_that_is_left_of_its_start(
    categories: Categories,
) -> None:
    U = rows(290)
    unused = [0, 7, 40, 111, 200, 270]  # 0 is the end-of-text token, a witness
    U[unused] = rows(1, seed=1) + 0.02 * torch.randn(
        6, D, generator=torch.Generator().manual_seed(2)
    )
    found = reference.found(tied(U), categories)
    assert found is not None and found.ids.tolist() == unused and found.kind == "cluster"
    assert "6 rows" in found.why and "1 special tokens" in found.why


def test_a_larger_cluster_without_a_witness_gives_way_to_one_with(categories: Categories) -> None:
    U = rows(290)
    U[[50, 60, 70, 80, 90]] = rows(1, seed=1)
    U[[0, 100, 101]] = rows(1, seed=2)
    found = reference.found(tied(U), categories)
    assert found is not None and found.ids.tolist() == [0, 100, 101]
    U = rows(290)
    U[[50, 60, 70, 80, 90]] = rows(1, seed=1)
    found = reference.found(tied(U), categories)
    assert (
        found is not None
        and found.ids.tolist() == [50, 60, 70, 80, 90]
        and "witnesses: none" in found.why
    )


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_rows_within_one_quantisation_step_are_one_cluster_and_rows_further_off_are_not(
    kind: str, categories: Categories
) -> None:
    gguf = pytest.importorskip("gguf")
    from forensics.formats.gguf_file import quantisation_steps

    U = rows(290)
    base = rows(1, seed=1)
    step = float(base.max() - base.min()) / (15 if kind == "Q4_1" else 255)
    noise = torch.rand(8, D, generator=torch.Generator().manual_seed(3)) - 0.5
    U[[0, 20, 30, 40, 50, 60, 70, 80]] = base + 0.01 * step * noise
    U[90] = base[0] + 4 * step
    type_ = gguf.GGMLQuantizationType[kind]
    data = gguf.quantize(U.numpy(), type_)
    values = torch.from_numpy(np.array(gguf.dequantize(data, type_)))

    class Tensor:
        tensor_type = type_

    Tensor.data = data
    grain = quantisation_steps(Tensor, values)  # type: ignore[arg-type]
    assert grain is not None and grain.shape == (290, D // 32)
    found = reference.found(tied(values, grain), categories)
    assert found is not None and found.ids.tolist() == [0, 20, 30, 40, 50, 60, 70, 80]
    assert "one quantisation step" in found.why


def test_without_clusters_padding_then_unused_bytes_stand_in(categories: Categories) -> None:
    n = len(categories.ids)
    padded = reference.found(tied(rows(n + 10)), categories)
    assert (
        padded is not None
        and padded.kind == "witnesses"
        and padded.ids.tolist() == list(range(n, n + 10))
    )
    unused = reference.found(tied(rows(n)), categories)
    assert unused is not None and len(unused.ids) == 13 and "unused bytes" in unused.why


def test_empty_rows_are_no_reference(categories: Categories) -> None:
    n = len(categories.ids)
    U = rows(n + 10)
    U[n:] = 0
    found = reference.found(tied(U), categories)
    assert found is not None and "unused bytes" in found.why


def test_many_equal_rows_are_found_as_one(categories: Categories) -> None:
    U = rows(3000)
    U[290:2900] = rows(1, seed=1)
    found = reference.found(tied(U), categories)
    assert found is not None and found.ids.tolist() == list(range(290, 2900))


def test_given_ids_are_single_ones_and_ranges_and_must_be_rows() -> None:
    assert reference.given("7-9, 3,8", 10).ids.tolist() == [3, 7, 8, 9]
    for text, words in (("9-7", "9-7"), ("3,10", "10"), ("x", "IDS"), ("", "IDS"), ("-4", "IDS")):
        with pytest.raises(ForensicsError) as e:
            reference.given(text, 10)
        assert e.value.kind == "usage" and words in str(e.value)
