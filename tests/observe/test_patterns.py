"""Attention pair by pair: the same as the recorder's extremes and as what the decoder does."""

import math

import pytest
import torch
from torch.nn import functional as F

from forensics.model.decoder import Decoder
from forensics.observe.attention import attention_statistics
from forensics.observe.patterns import patterns


class Everything:
    wants = frozenset({"q", "k", "attn_out"})

    def __init__(self):
        self.seen = {}

    def tap(self, site, x):
        self.seen[site] = x


@pytest.mark.parametrize(
    ("family", "knobs"),
    [("llama", {}), ("qwen3", {"kv_heads": 2}), ("gpt2", {}), ("olmo3", {"window": 5})],
)
def test_the_extremes_are_those_that_the_recorder_writes(family, knobs, make_shape, random_params):
    shape = make_shape(family, **knobs)
    decoder, params = Decoder(shape), random_params(shape)
    tokens = torch.randint(0, 61, (16,), generator=torch.Generator().manual_seed(1))
    found, watch = patterns(decoder, params, tokens), Everything()
    with torch.no_grad():
        decoder.hidden(params, tokens[None], watch)
    assert found.scores.shape == found.weights.shape == (2, 4, 16, 16)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(2, 4, 16))
    for layer in range(2):
        q, k = watch.seen["q", layer], watch.seen["k", layer]
        told = attention_statistics(q, k, window=shape.window_of(layer)).columns()
        torch.testing.assert_close(found.scores[layer].amax((1, 2)), told["attn_logit_max"])
        p = found.weights[layer]
        entropy = -torch.where(p > 0, p * p.log(), 0.0).sum(-1).mean(-1)
        torch.testing.assert_close(entropy, told["attn_entropy_mean"].float(), rtol=1e-4, atol=1e-6)


def test_no_query_sees_what_comes_after_it_or_another_document(make_shape, random_params):
    shape = make_shape("llama", document_mask=True)
    documents = torch.tensor([0] * 5 + [1] * 11)
    tokens = torch.arange(16)
    found = patterns(Decoder(shape), random_params(shape), tokens, documents)
    later = torch.ones(16, 16).triu(1).bool()
    other = documents[None] != documents[:, None]
    assert (found.weights[:, :, later | other] == 0).all()
    assert (found.scores[:, :, later | other] == -math.inf).all()
    assert (found.weights[:, :, 5, 5] == 1).all()  # alone in its document


@pytest.mark.parametrize("most", [7, 8, 15])
def test_long_sequences_are_pooled_by_the_largest_pair(most, make_shape, random_params):
    shape = make_shape("llama")
    decoder, params, tokens = Decoder(shape), random_params(shape), torch.arange(16)
    whole, pooled = patterns(decoder, params, tokens), patterns(decoder, params, tokens, most=most)
    n = pooled.block
    assert n == math.ceil(16 / most) and pooled.scores.shape[-1] == math.ceil(16 / n) <= most
    wanted = F.max_pool2d(F.pad(whole.weights, (0, -16 % n, 0, -16 % n)), n)
    torch.testing.assert_close(pooled.weights, wanted)
    torch.testing.assert_close(pooled.scores.amax((2, 3)), whole.scores.amax((2, 3)))
