"""Models in GGUF files that are written here as llama.cpp's converter writes them."""

import json

import numpy as np
import pytest
import torch

from forensics.config import from_dict
from forensics.data.tokenize import train_tokenizer
from forensics.errors import ForensicsError
from forensics.formats import recognised
from forensics.formats.gguf_run import read_run
from forensics.model import hugging_face
from forensics.model.decoder import Decoder, unembedding
from forensics.model.knobs import shape_of

gguf = pytest.importorskip("gguf")
NAMES = {
    "model.embed_tokens": "token_embd",
    "lm_head": "output",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    **{f"self_attn.{p}_proj": f"attn_{p}" for p in "qkv"},
    **{f"self_attn.{p}_norm": f"attn_{p}_norm" for p in "qk"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{p}_proj": f"ffn_{p}" for p in ("gate", "up", "down")},
}


def interleaved(rows, heads):
    """As llama.cpp's converter permutes q and k of a Llama."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def write(path, family, shape, params, kind="F32", factors=None, **fields):
    writer = gguf.GGUFWriter(str(path), family)
    writer.add_block_count(shape.layers)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.mlp_width)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_context_length(128)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_key_length(shape.head_width)
    tokenizer = train_tokenizer(["the cat sat"] * 4, shape.vocabulary)
    ids = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in ids])
    document = json.loads(tokenizer.to_str())
    writer.add_token_merges([" ".join(m) for m in document["model"]["merges"]])
    for name, value in fields.items():
        getattr(writer, name)(value)
    type_ = gguf.GGMLQuantizationType[kind]
    names = dict(NAMES)
    if family == "olmo2":
        names["post_attention_layernorm"] = "post_attention_norm"
    for name, tensor in hugging_face.to_hf_tensors(params, shape).items():
        numbers = tensor.numpy()
        if family == "llama" and ".q_proj" in name:
            numbers = interleaved(numbers, shape.heads)
        if family == "llama" and ".k_proj" in name:
            numbers = interleaved(numbers, shape.kv_heads)
        module, _, suffix = name.rpartition(".")
        parts = module.removeprefix("model.layers.").partition(".")
        theirs = f"blk.{parts[0]}.{names[parts[2]]}" if parts[2] in names else names[module]
        plain = numbers.ndim == 1 or kind == "F32"
        stored = np.ascontiguousarray(numbers) if plain else gguf.quantize(numbers, type_)
        writer.add_tensor(f"{theirs}.{suffix}", stored, raw_dtype=None if plain else type_)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(factors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def made(make_shape, random_params, family, **knobs):
    shape = make_shape(family, vocabulary=260, length=128, **knobs)
    return shape, random_params(shape)


@pytest.mark.parametrize(
    ("family", "knobs"),
    [
        ("llama", {"kv_heads": 2, "tied": True}),
        ("llama", {"head_width": 16}),
        ("qwen2", {"kv_heads": 1}),
        ("qwen3", {"head_width": 16}),
        ("olmo2", {}),
    ],
)
def test_a_file_gives_the_model_that_was_written(
    family, knobs, make_shape, random_params, tmp_path
):
    shape, params = made(make_shape, random_params, family, **knobs)
    path = write(tmp_path / "m.gguf", family, shape, params)
    assert recognised(path).read_run(path).format == "gguf"
    run = read_run(path)
    assert shape_of(from_dict({"model": run.recipe["model"]}).model, 260, 128) == shape
    tensors = run.checkpoints[0].params
    assert all(torch.equal(tensors[name].read(), params[name]) for name in params)
    assert "the cat" not in run.tokenizer_text and json.loads(run.tokenizer_text)["model"]


def test_the_losses_are_those_of_the_weights_to_quantisation(make_shape, random_params, tmp_path):
    shape = make_shape("llama", vocabulary=260, length=128)
    params = random_params(shape, scale=12.0)  # so that attention is sharp, and its rows matter
    path = write(tmp_path / "m.gguf", "llama", shape, params, kind="Q8_0")
    tensors = {name: t.read() for name, t in read_run(path).checkpoints[0].params.items()}
    tokens = torch.randint(0, 260, (4, 33), generator=torch.Generator().manual_seed(0))

    def loss(of):
        with torch.no_grad():
            logits = Decoder(shape).hidden(of, tokens[:, :-1]) @ unembedding(of).T
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].ravel()))

    apart = abs(loss(tensors) - loss(params))
    assert apart < 0.01
    turned = dict(params)
    for name in params:
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            turned[name] = torch.from_numpy(interleaved(params[name].numpy(), shape.heads))
    # the other convention is another model, without an error
    assert abs(loss(turned) - loss(params)) > 10 * max(apart, 0.002)


def test_llama_3s_wavelengths_are_recognised_in_their_factors(make_shape, random_params, tmp_path):
    knobs = {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_length": 8192}
    shape, params = made(
        make_shape, random_params, "llama", head_width=64, rope_theta=500000.0, **knobs
    )
    from forensics.model.rope import frequencies

    factors = frequencies(shape, False, scaled=False) / frequencies(shape, False)
    run = read_run(write(tmp_path / "m.gguf", "llama", shape, params, factors=factors))
    assert run.recipe["model"]["rope_scaling"] == "llama3"
    assert run.recipe["model"]["rope_factor"] == 8.0
    factors[5] *= 1.5
    with pytest.raises(ForensicsError, match="no rule"):
        read_run(write(tmp_path / "m.gguf", "llama", shape, params, factors=factors))


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("add_expert_count", 8, "expert_count"),
        ("add_sliding_window", 64, "sliding_window"),
        ("add_rope_scaling_type", gguf.RopeScalingType.LINEAR, "linear"),
        ("add_rope_scaling_type", gguf.RopeScalingType.YARN, "yarn of llama.cpp"),
    ],
)
def test_what_is_not_built_is_refused_in_one_line(
    field, value, named, make_shape, random_params, tmp_path
):
    shape, params = made(make_shape, random_params, "llama")
    path = write(tmp_path / "m.gguf", "llama", shape, params, **{field: value})
    with pytest.raises(ForensicsError, match=named) as e:
        read_run(path)
    assert e.value.kind == "config" and "\n" not in str(e.value)


def test_an_architecture_that_is_not_built_is_refused(make_shape, random_params, tmp_path):
    shape, params = made(make_shape, random_params, "llama")
    path = write(tmp_path / "m.gguf", "mamba", shape, params)
    with pytest.raises(ForensicsError, match="mamba") as e:
        read_run(path)
    assert e.value.kind == "config"


def test_tensors_of_another_kind_of_model_are_named(make_shape, random_params, tmp_path):
    shape, params = made(make_shape, random_params, "qwen3")
    path = write(tmp_path / "m.gguf", "llama", shape, params)
    with pytest.raises(ForensicsError, match="q_norm"):
        read_run(path)


def test_an_imported_file_takes_its_own_tokenizer_along_and_trains_on(
    make_shape, random_params, tmp_path
):
    from forensics.foreign.bring_in import import_run
    from forensics.foreign.options import ImportOptions
    from forensics.train.run import open_run

    shape, params = made(make_shape, random_params, "llama", tied=True)
    path = write(tmp_path / "m.gguf", "llama", shape, params)
    options = ImportOptions(data=("stdlib/json",), sequence_length=16, batch=2)
    found = import_run(str(path), tmp_path / "runs", "small", options)
    run = open_run(tmp_path / "runs", "small")
    state = run.load(0)
    assert all(torch.equal(state.params[name], params[name]) for name in params)
    assert run.corpus.tokenizer_file.is_file() and found.order == "known"
    assert found.logits.agrees
    twice = [run.replay(run.load(0), 2).digest() for _ in range(2)]
    assert twice[0] == twice[1] != state.digest()
