"""Our decoder against transformers': equal logits both ways, in every family and its variants.

Tolerance: 1e-5 of the largest logit, in fp32 with eager attention (seen: about 5e-7). The weights
are random, gains and biases too, and larger than at initialisation, so that a norm or a bias that
is left out shows.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from forensics.errors import ForensicsError
from forensics.model import families, hugging_face
from forensics.model.decoder import Decoder, unembedding
from forensics.step.state import TrainState
from forensics.train import checkpoint

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)

VARIANTS = {
    **{family: (family, {}) for family in families.FAMILIES},
    "llama, tied": ("llama", {"tied": True}),
    "llama, grouped keys": ("llama", {"kv_heads": 2}),
    "llama, head width": (
        "llama",
        {"head_width": 12, "kv_heads": 1, "norm_eps": 1e-3, "rope_theta": 100.0},
    ),
    "qwen3, tied, grouped keys, head width": (
        "qwen3",
        {"tied": True, "kv_heads": 2, "head_width": 16},
    ),
    "olmo, grouped keys": ("olmo", {"kv_heads": 2}),
    "olmo, tied": ("olmo", {"tied": True}),
    "olmo2, grouped keys": ("olmo2", {"kv_heads": 2}),
    "olmo2, tied": ("olmo2", {"tied": True}),
    "gpt_neox, tied, half of each head turned": ("gpt_neox", {"tied": True, "rope_fraction": 0.5}),
    "gpt_neox, one after the other": ("gpt_neox", {"parallel": False, "norm_eps": 1e-3}),
    "gpt2, untied, more positions": ("gpt2", {"tied": False, "max_positions": 40}),
}
TOKENS = torch.randint(0, 61, (3, 16), generator=torch.Generator().manual_seed(7))


def our_logits(params, shape, tokens=TOKENS):
    with torch.no_grad():
        return Decoder(shape).hidden(params, tokens) @ unembedding(params).T


def their_logits(model, tokens=TOKENS):
    with torch.no_grad():
        return model.eval()(tokens).logits


def assert_equal_logits(ours, theirs):
    assert ours.abs().max() > 0.1  # an all-zero model would agree with anything
    assert (ours - theirs).abs().max() <= 1e-5 * ours.abs().max()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_opens_in_transformers_and_gives_the_same_logits(
    variant, make_shape, random_params, tmp_path
):
    from transformers import AutoModelForCausalLM

    family, knobs = VARIANTS[variant]
    shape = make_shape(family, **knobs)
    params = random_params(shape)
    path, _, _ = checkpoint.save(tmp_path, TrainState.start(params), shape, None, 60)
    theirs, report = AutoModelForCausalLM.from_pretrained(
        path, attn_implementation="eager", output_loading_info=True
    )
    assert type(theirs).__name__ == families.FAMILIES[family].architecture
    assert not any(report.values()), f"transformers found weights missing or too many: {report}"
    assert_equal_logits(our_logits(params, shape), their_logits(theirs))


@pytest.mark.parametrize("variant", VARIANTS)
def test_export_and_import_give_back_every_bit(variant, make_shape, random_params, tmp_path):
    family, knobs = VARIANTS[variant]
    shape = make_shape(family, **knobs)
    params = random_params(shape)
    path, _, _ = checkpoint.save(tmp_path, TrainState.start(params), shape, None, 60)
    back, found = checkpoint.load_hf_folder(path)
    assert found == shape
    assert list(back) == list(params)
    for name, p in params.items():
        assert torch.equal(back[name], p), name


def theirs_of(name):
    """A random model of transformers' own making, from its own configuration class."""
    import transformers as t

    torch.manual_seed(3)
    llama = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "initializer_range": 0.2,
        "attn_implementation": "eager",
        "pad_token_id": None,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    neox = {k: v for k, v in llama.items() if k != "num_key_value_heads"}
    gpt2 = {
        "vocab_size": 61,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 32,
        "initializer_range": 0.2,
        "attn_implementation": "eager",
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**llama)),
        "llama, tied": lambda: t.LlamaForCausalLM(t.LlamaConfig(**llama, tie_word_embeddings=True)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**llama, head_dim=16)),
        "olmo": lambda: t.OlmoForCausalLM(t.OlmoConfig(**llama)),
        "olmo2": lambda: t.Olmo2ForCausalLM(t.Olmo2Config(**llama)),
        "gpt_neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**neox)),
        "gpt_neox, in sequence": lambda: t.GPTNeoXForCausalLM(
            t.GPTNeoXConfig(**neox, use_parallel_residual=False)
        ),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**gpt2)),
    }[name]()


THEIRS = (
    "llama",
    "llama, tied",
    "qwen3",
    "olmo",
    "olmo2",
    "gpt_neox",
    "gpt_neox, in sequence",
    "gpt2",
)


@pytest.mark.parametrize("name", THEIRS)
def test_a_model_of_transformers_gives_the_same_logits_here(name, tmp_path):
    theirs = theirs_of(name)
    theirs.save_pretrained(tmp_path)
    params, shape = checkpoint.load_hf_folder(tmp_path)
    assert_equal_logits(our_logits(params, shape), their_logits(theirs))


def test_a_longer_text_than_any_before_is_rotated_right(make_shape, random_params, tmp_path):
    from transformers import AutoModelForCausalLM

    shape = make_shape("llama", length=48, rope_theta=50.0)
    params = random_params(shape)
    path, _, _ = checkpoint.save(tmp_path, TrainState.start(params), shape, None, 60)
    theirs = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
    decoder = Decoder(shape)
    for length in (3, 48, 17):  # the angles are made for the longest so far
        tokens = torch.randint(0, 61, (2, length))
        with torch.no_grad():
            ours = decoder.hidden(params, tokens) @ unembedding(params).T
        assert_equal_logits(ours, their_logits(theirs, tokens))


def test_knobs_that_are_no_known_architecture_have_no_hugging_face_form(
    make_shape, random_params, tmp_path
):
    shape = make_shape("llama", norm="post")
    assert hugging_face.exported_family(shape) is None
    with pytest.raises(ForensicsError) as e:
        hugging_face.to_hf_config(shape, 60)
    assert e.value.kind == "config"
    params = random_params(shape)
    path, digest, _ = checkpoint.save(
        tmp_path, TrainState.start(params), shape, None, 60
    )  # and still is a checkpoint
    assert not (path / "config.json").exists()
    state, found = checkpoint.load(path)
    assert (state.digest(), found) == (digest, shape)


@pytest.mark.parametrize(
    "changed",
    [
        {"document_mask": True},
        {"qk_norm": "whole"},
        {"bias": True},
        {"activation": "gelu"},
        {"norm_kind": "layer"},
    ],
)
def test_one_knob_off_the_family_is_not_exported_as_the_family(make_shape, changed):
    assert hugging_face.exported_family(make_shape("llama", **changed)) is None


def test_what_the_knobs_say_decides_the_export_not_the_family_they_started_from(make_shape):
    assert hugging_face.exported_family(make_shape("llama", qk_norm="head")) == "qwen3"
    assert hugging_face.exported_family(make_shape("qwen3", qk_norm="none")) == "llama"


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "mamba"},
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"rope_parameters": {"rope_type": "yarn"}},
        {"num_hidden_layers": None},
        {"vocab_size": "many"},
    ],
)
def test_a_configuration_that_is_not_built_here_is_refused_in_one_line(make_shape, change):
    config = hugging_face.to_hf_config(make_shape("llama"), 60) | change
    with pytest.raises(ForensicsError) as e:
        hugging_face.from_hf_config(config)
    assert e.value.kind == "config" and "\n" not in str(e.value)


@pytest.mark.parametrize("key", ["scale_attn_by_inverse_layer_idx", "add_cross_attention"])
def test_a_gpt2_with_other_attention_is_refused(make_shape, key):
    with pytest.raises(ForensicsError, match=key):
        hugging_face.from_hf_config(hugging_face.to_hf_config(make_shape("gpt2"), 60) | {key: True})


def test_a_folder_whose_weights_are_not_those_of_its_configuration_is_refused(
    make_shape, random_params, tmp_path
):
    shape = make_shape("llama")
    path, _, _ = checkpoint.save(tmp_path, TrainState.start(random_params(shape)), shape, None, 60)
    tensors = load_file(path / "model.safetensors")
    save_file(
        {n: t for n, t in tensors.items() if "layers.1.mlp.up" not in n}, path / "model.safetensors"
    )
    with pytest.raises(ForensicsError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        checkpoint.load_hf_folder(path)
    save_file(tensors, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(ForensicsError, match="wanted shape"):
        checkpoint.load_hf_folder(path)
    (path / "config.json").write_text("{")
    with pytest.raises(ForensicsError) as e:
        checkpoint.load_hf_folder(path)
    assert e.value.kind == "data"
