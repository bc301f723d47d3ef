"""Initial parameters: a function of seed and name, with the standard deviations that are
documented.
"""

import math

import pytest
import torch

from forensics.config import Model
from forensics.model import families
from forensics.model.decoder import Decoder
from forensics.model.hugging_face import exported_family
from forensics.model.initialize import Initialization, initialize
from forensics.model.knobs import shape_of
from forensics.model.shape import parameter_shapes


@pytest.mark.parametrize("scheme", ["normal", "scaled", "small", "olmo", "openlm"])
def test_a_tensor_has_the_same_numbers_whatever_the_other_knobs(scheme, make_shape):
    one = initialize(make_shape("llama"), scheme, 5)
    other = initialize(
        make_shape("llama", norm="post", qk_norm="head", tied=True, rope_theta=1e6), scheme, 5
    )
    gpt2 = initialize(
        make_shape("gpt2", mlp_width=one["layers.0.mlp.up.weight"].shape[0]), scheme, 5
    )
    for name in one.keys() & other.keys():
        assert torch.equal(one[name], other[name]), name
    for name in one.keys() & gpt2.keys():
        assert torch.equal(one[name], gpt2[name]), name
    assert "unembed.weight" in one and "unembed.weight" not in other


def test_more_layers_leave_the_first_ones_as_they_are(make_shape):
    two, three = (initialize(make_shape(layers=n), "normal", 0) for n in (2, 3))
    assert all(torch.equal(two[n], three[n]) for n in two)


def test_seeds_and_names_give_different_numbers(make_shape):
    shape = make_shape()
    a, b = initialize(shape, "normal", 0), initialize(shape, "normal", 1)
    matrices = [n for n in a if "norm" not in n]
    assert all(not torch.equal(a[n], b[n]) for n in matrices)
    flat = [tuple(a[n].flatten()[:8].tolist()) for n in matrices]
    assert len(set(flat)) == len(flat)
    assert all(
        torch.equal(x, y) for x, y in zip(a.values(), initialize(shape, "normal", 0).values())
    )


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_parameter_is_there_in_the_order_of_the_forward(family, make_shape):
    shape = make_shape(family)
    params = initialize(shape, "normal", 0)
    assert {n: tuple(p.shape) for n, p in params.items()} == parameter_shapes(shape)
    assert list(params) == list(parameter_shapes(shape))
    assert all(p.dtype == torch.float32 for p in params.values())
    for name, p in params.items():
        if "norm" in name:
            assert (p == (0.0 if name.endswith(".bias") else 1.0)).all()
        elif name.endswith(".bias"):
            assert (p == 0.0).all()


def test_standard_deviations_are_those_documented(make_shape):
    shape = make_shape("llama", width=192, heads=4, layers=3, vocabulary=400, mlp_width=512)
    into = ("attn.o_proj.weight", "mlp.down.weight")
    for scheme in ("normal", "scaled", "small", "olmo", "openlm"):
        for name, p in initialize(shape, scheme, 0).items():
            if "norm" in name:
                continue
            std, cut = 0.02, 1.0
            if scheme == "scaled" and name.endswith(into):
                std = 0.02 / math.sqrt(2 * 3)
            if scheme == "small":
                std = math.sqrt(2 / (5 * 192)) / (math.sqrt(2 * 3) if name.endswith(into) else 1)
            if scheme == "openlm" or (scheme == "olmo" and name != "embed.weight"):
                layer = int(name.split(".")[1]) if name.endswith(into) else 0
                # an embedding's rows have as many numbers as the stream is wide
                std = 1 / math.sqrt(p.shape[1] * (2 * (layer + 1) if name.endswith(into) else 1))
                cut = 0.98658  # standard deviation of a normal that is cut at 3
                assert p.abs().max() <= 3 * std * (1 + 1e-6)
            # four standard errors of an estimated standard deviation
            assert abs(float(p.std()) / (std * cut) - 1) < 4 / math.sqrt(2 * p.numel()), (
                scheme,
                name,
            )
            assert abs(float(p.mean())) < 4 * std / math.sqrt(p.numel()), (scheme, name)


def test_a_recipe_may_name_the_standard_deviations_and_a_bound(make_shape):
    shape = make_shape("gpt2", width=64, vocabulary=400, layers=2)
    how = Initialization("scaled", std=0.05, embedding_std=1.0, cutoff=2.0)
    for name, p in initialize(shape, how, 0).items():
        if "norm" in name or name.endswith(".bias"):
            continue
        std = 1.0 if name in ("embed.weight", "positions.weight") else 0.05
        std /= 2 if name.endswith(("attn.o_proj.weight", "mlp.down.weight")) else 1
        assert p.abs().max() <= 2 * std * (1 + 1e-6)
        # a normal that is cut at 2 has 0.8796 of the standard deviation
        assert abs(float(p.std()) / (0.8796 * std) - 1) < 4 / math.sqrt(2 * p.numel()), name


def test_the_stream_begins_with_the_embedding_times_its_scale(make_shape, make_batch):
    plain, scaled = (
        make_shape(),
        shape_of(Model(layers=2, width=32, heads=4, embed_scale=0), 61, 16),
    )
    assert scaled.embed_scale == math.sqrt(32) and plain.embed_scale == 1.0
    assert exported_family(scaled) is None
    params = initialize(plain, "normal", 0)
    larger = params | {"embed.weight": params["embed.weight"] * math.sqrt(32)}
    tokens = make_batch().tokens[:, :-1]
    assert torch.allclose(
        Decoder(scaled).hidden(params, tokens), Decoder(plain).hidden(larger, tokens), atol=1e-5
    )
