"""Logits beside transformers': equal for what is read rightly, the first block named where not."""

import json

import pytest
from safetensors.torch import load_file, save_file

from forensics.errors import ForensicsError
from forensics.model import hugging_face
from forensics.model.compare_transformers import compare_with_transformers
from forensics.model.forward import of_folder
from forensics.train import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture
def folder(make_shape, random_params, tmp_path):
    shape = make_shape("olmo3", layers=3, window=5)
    params = random_params(shape)
    (tmp_path / "config.json").write_text(json.dumps(hugging_face.to_hf_config(shape, 60)))
    save_file(hugging_face.to_hf_tensors(params, shape), tmp_path / "model.safetensors")
    return tmp_path


def test_equal_logits_are_said_to_be_equal_by_both_ways(folder):
    params, shape, _ = checkpoint.load_hf_folder(folder)
    for source in (folder, None):
        found = compare_with_transformers(params, shape, source=source)
        assert found.agrees and found.own_weights == (source is not None)
        assert found.largest_logit > 0.1 and found.largest_difference < 1e-4
        assert "equal transformers'" in found.sentence()


@pytest.mark.parametrize(
    ("changed", "first"),
    [
        ("embed.weight", "embedding"),
        ("layers.1.attn.q_proj.weight", "block 1"),
        ("unembed.weight", "block 2, the final norm or the unembedding"),
    ],
)
def test_the_first_block_that_differs_is_named(changed, first, folder):
    params, shape, _ = checkpoint.load_hf_folder(folder)
    params[changed] = params[changed].flip(0)
    found = compare_with_transformers(params, shape, source=folder)
    assert found.agrees is False and found.first_difference == first
    assert first in found.sentence()


def test_weights_that_transformers_would_draw_are_no_comparison(folder):
    params, shape, _ = checkpoint.load_hf_folder(folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    found = compare_with_transformers(params, shape, source=folder)
    assert found.agrees is None and "up_proj" in found.why_not
    with pytest.raises(ForensicsError, match="up_proj") as e:
        of_folder(folder)  # of `forensics tokens --verify`
    assert e.value.kind == "data"


def test_what_transformers_has_no_class_for_is_not_compared(make_shape, random_params):
    shape = make_shape("llama", norm="post")
    found = compare_with_transformers(random_params(shape), shape)
    assert found.agrees is None and found.why_not


def test_its_own_configuration_is_what_the_class_is_made_of(folder):
    params, shape, _ = checkpoint.load_hf_folder(folder)
    config = json.loads((folder / "config.json").read_text())
    assert compare_with_transformers(params, shape, config).agrees
    other = config | {"sliding_window": 2}
    found = compare_with_transformers(params, shape, other)
    assert found.agrees is False and found.first_difference == "block 0"


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2", "smollm3", "qwen2"])
def test_parameters_are_handed_to_every_kind_of_class(family, make_shape, random_params):
    shape = make_shape(family, **({"unrotated_layers": (1,)} if family == "smollm3" else {}))
    found = compare_with_transformers(random_params(shape), shape)
    assert found.agrees and not found.own_weights, found.why_not
