"""A decoder's copy in TransformerLens."""

import os

import pytest
import torch

from forensics.data.tokenize import bytes_tokenizer
from forensics.errors import ForensicsError
from forensics.model.decoder import Decoder, unembedding
from forensics.model.transformer_lens_bridge import bridge

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning",
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
    "ignore::SyntaxWarning",
)
TOKENS = torch.randint(0, 61, (2, 16), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(
    ("family", "knobs"),
    [
        ("llama", {}),
        ("olmo2", {}),
        ("qwen3", {}),
        ("gpt_neox", {}),
        ("olmo", {"clip_qkv": 0.5}),
        ("olmo3", {"window": 5, "rope_theta_sliding": 50.0}),
        ("qwen2", {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_length": 8}),
        ("smollm3", {"unrotated_layers": (1,)}),
        ("llama", {"rope_scaling": "llama3", "rope_factor": 4.0, "rope_original_length": 64}),
    ],
)
def test_the_bridge_gives_our_logits_and_our_attention(family, knobs, make_shape, random_params):
    shape = make_shape(family, **knobs)
    params = random_params(shape)
    before = {n: p.clone() for n, p in params.items()}
    lens = bridge(params, shape, None, 60)
    with torch.no_grad():
        logits, cache = lens.run_with_cache(TOKENS)
        ours = Decoder(shape).hidden(params, TOKENS) @ unembedding(params).T
    assert (logits - ours).abs().max() <= 1e-5 * ours.abs().max()
    pattern = cache["blocks.0.attn.hook_pattern"]
    assert tuple(pattern.shape) == (2, 4, 16, 16)
    torch.testing.assert_close(pattern.sum(-1), torch.ones(2, 4, 16))
    with torch.no_grad():
        next(lens.original_model.parameters()).zero_()
    assert all(torch.equal(params[n], before[n]) for n in params), "the bridge must hold a copy"


def test_text_becomes_the_runs_own_tokens_and_back(make_shape, random_params, tmp_path):
    bytes_tokenizer().save(str(tmp_path / "tokenizer.json"))
    shape = make_shape("llama", vocabulary=257)
    params = random_params(shape)
    lens = bridge(params, shape, tmp_path, 256)
    assert lens.to_tokens("Hi é").tolist() == [[*"Hi é".encode()]]  # no token is put in front
    assert lens.to_str_tokens(torch.tensor([72, 256])) == ["H", "<|endoftext|>"]
    assert bridge(params, shape, None, 256).to_tokens("7 12").tolist() == [[7, 12]]


def test_an_architecture_that_transformers_does_not_know_is_refused(
    make_shape, random_params, tmp_path
):
    shape = make_shape("llama", norm="post")
    with pytest.raises(ForensicsError) as e:
        bridge(random_params(shape), shape, None, 60)
    assert e.value.kind == "config"
    with pytest.raises(ForensicsError) as e:
        bridge(random_params(make_shape()), make_shape(), tmp_path, 60)
    assert e.value.kind == "missing"


def test_nothing_of_the_offline_switch_is_left_behind(make_shape, random_params, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    bridge(random_params(make_shape()), make_shape(), None, 60)
    assert "HF_HUB_OFFLINE" not in os.environ
