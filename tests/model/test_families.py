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

LLAMA3 = {"rope_scaling": "llama3", "rope_factor": 4.0, "rope_original_length": 64}
YARN = {"rope_scaling": "yarn", "rope_factor": 8.0, "rope_original_length": 40, "rope_theta": 50.0}
VARIANTS = {
    **{family: (family, {}) for family in families.FAMILIES},
    # of two layers none would be without RoPE, and nothing of 16 positions outside the window
    "smollm3": ("smollm3", {"unrotated_layers": (1,)}),
    "olmo3": ("olmo3", {"window": 5}),
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
    "llama, llama3": ("llama", LLAMA3),
    "qwen2, yarn, grouped keys, tied": ("qwen2", YARN | {"kv_heads": 2, "tied": True}),
    "smollm3, untied": ("smollm3", {"unrotated_layers": (0,), "tied": False, "kv_heads": 1}),
    "olmo, clipped": ("olmo", {"clip_qkv": 0.5}),
    "olmo3, yarn, grouped keys": ("olmo3", YARN | {"window": 3, "kv_heads": 2}),
    "olmo3, both slide": ("olmo3", {"window": 1, "sliding_layers": (0, 1)}),
    "gpt_neox, yarn": ("gpt_neox", YARN | {"rope_fraction": 0.5}),
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
    back, found, _ = checkpoint.load_hf_folder(path)
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
        "llama, llama3": lambda: t.LlamaForCausalLM(t.LlamaConfig(**llama, rope_parameters=LLAMA)),
        "llama, yarn": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(**llama, rope_scaling={"type": "yarn", "factor": 4.0}, rope_theta=80.0)
        ),
        "olmo, clipped": lambda: t.OlmoForCausalLM(t.OlmoConfig(**llama, clip_qkv=0.6)),
        "olmo3": lambda: t.Olmo3ForCausalLM(
            t.Olmo3Config(**llama | {"num_hidden_layers": 5}, sliding_window=4)
        ),
        "olmo3, yarn": lambda: t.Olmo3ForCausalLM(
            t.Olmo3Config(
                **llama | {"num_hidden_layers": 4},
                sliding_window=4,
                rope_theta=100.0,
                rope_scaling=YARN_THEIRS,
            )
        ),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**llama)),
        "smollm3": lambda: t.SmolLM3ForCausalLM(
            t.SmolLM3Config(**llama | {"num_hidden_layers": 5})
        ),
    }[name]()


LLAMA = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_THEIRS = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 40}
THEIRS = (
    "llama",
    "llama, llama3",
    "llama, yarn",
    "olmo, clipped",
    "olmo3",
    "olmo3, yarn",
    "qwen2",
    "smollm3",
    "llama, tied",
    "qwen3",
    "olmo",
    "olmo2",
    "gpt_neox",
    "gpt_neox, in sequence",
    "gpt2",
)


@pytest.mark.parametrize("name", THEIRS)
def test_a_model_of_transformers_gives_the_same_logits_and_gradients_here(name, tmp_path):
    theirs = theirs_of(name)
    with torch.no_grad():
        for parameter in theirs.parameters():  # biases and gains are no longer 0 and 1
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    theirs.save_pretrained(tmp_path)
    params, shape, _ = checkpoint.load_hf_folder(tmp_path)
    logits = theirs.eval()(TOKENS).logits
    aim = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    (logits * aim).sum().backward()
    tied = shape.tied
    gradients = {name: p.grad for name, p in theirs.named_parameters(remove_duplicate=tied)}
    if shape.parallel or "gpt_neox.embed_in.weight" in gradients:  # named otherwise when saved
        gradients["embed_out.weight"] = gradients["lm_head.weight"]
    wanted = hugging_face.from_hf_tensors(gradients, shape)
    for plain in (False, True):
        ours = {name: p.clone().requires_grad_() for name, p in params.items()}
        found = Decoder(shape, plain=plain).hidden(ours, TOKENS) @ unembedding(ours).T
        assert_equal_logits(found.detach(), logits.detach())
        grads = torch.autograd.grad((found * aim).sum(), list(ours.values()))
        largest = max(float(grad.abs().max()) for grad in wanted.values())
        for name, grad in zip(ours, grads):
            assert (grad - wanted[name]).abs().max() <= 1e-5 * largest, name


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
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "truncate": False}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
        {"rope_parameters": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"factor": 2.0}},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_scaling": {"type": "default", "rope_type": "linear", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_scaling": "linear"},
        {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}},
        {"rope_interleaved": True},
        {"rope_ratio": 2.0},
        {"partial_rotary_factor": 0.5},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"layer_types": ["full_attention"]},
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


@pytest.mark.parametrize("family", families.FAMILIES)
def test_where_a_configuration_is_silent_the_class_of_transformers_decides(family):
    from transformers import AutoConfig

    theirs = AutoConfig.for_model(family)
    known = families.FAMILIES[family]
    said = {"tie_word_embeddings": known.knobs["tied"]}
    for knob in ("norm_eps", "max_positions", "kv_heads", "head_width"):
        if knob in known.config and knob in known.knobs:
            said[known.config[knob]] = known.knobs[knob]
    said |= known.unsaid
    theta = said.pop("rope_theta", known.knobs["rope_theta"])
    for key, value in said.items():
        assert getattr(theirs, key) == value, key
    if known.knobs["position"] == "rope":
        assert theta == type(theirs).default_theta


def test_olmo3_takes_the_kinds_of_layer_and_their_angles_from_its_configuration(make_shape):
    shape = make_shape("olmo3", layers=6, **YARN)
    assert shape.sliding_layers == (0, 1, 2, 4) and shape.window == 4096
    config = hugging_face.to_hf_config(shape, 60)
    assert config["layer_types"][3] == config["layer_types"][5] == "full_attention"
    silent = {k: v for k, v in config.items() if k not in ("layer_types", "sliding_window")}
    assert hugging_face.from_hf_config(silent).sliding_layers == (0, 1, 2, 4, 5)  # every fourth
    with pytest.raises(ForensicsError, match="sliding layers"):
        hugging_face.from_hf_config(
            config | {"rope_parameters": {"sliding_attention": YARN_THEIRS}}
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_recipes_model_section_can_be_made_of_any_shape(variant, make_shape):
    from forensics import config
    from forensics.model.knobs import section_of, shape_of

    family, knobs = VARIANTS[variant]
    shape = make_shape(family, **knobs)
    section = section_of(shape, family)
    assert shape_of(config.from_dict({"model": section}).model, 61, 16) == shape
