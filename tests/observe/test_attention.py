"""Attention statistics against the T×T computation in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forensics import identity
from forensics.observe import attention
from forensics.observe.attention import attention_statistics


def naive(q, k, documents=None, window=0):
    """Every column from its definition (docs/formulas.md), (H,) float64, with all T×T logits."""
    B, H, T, K = q.shape
    q, k = q.double(), k.double().repeat_interleave(H // k.shape[1], dim=1)
    s = q @ k.transpose(-1, -2) / math.sqrt(K)
    open_ = torch.ones(T, T, dtype=torch.bool).tril().expand(B, 1, T, T)
    if documents is not None:
        open_ = open_ & (documents[:, None, :, None] == documents[:, None, None, :])
    if window:
        open_ = open_ & torch.ones(T, T, dtype=torch.bool).triu(1 - window)
    masked = s.masked_fill(~open_, -math.inf)
    log_p = masked.log_softmax(-1)
    p = log_p.exp()
    entropy = -(p * log_p.masked_fill(~open_, 0.0)).sum(-1)
    keys = open_.sum(-1).expand(B, H, T)
    mean = s.masked_fill(~open_, 0.0).sum(-1) / keys
    first = open_.to(torch.int8).argmax(-1).expand(B, H, T)
    sink = p.gather(-1, first[..., None])[..., 0]
    many = keys > 1

    def over(x, how):
        return torch.stack(
            [
                how(x[:, h][many[:, h]]) if many[:, h].any() else torch.tensor(math.nan).double()
                for h in range(H)
            ]
        )

    return {
        "attn_logit_max": masked.amax((0, 2, 3)),
        "attn_logit_spread": (masked.amax(-1) - mean).amax((0, 2)),
        "attn_entropy_mean": entropy.mean((0, 2)),
        "attn_entropy_min": over(entropy, torch.amin),
        "attn_entropy_norm": over(entropy / keys.double().log(), torch.mean),
        "sink_mass": over(sink, torch.mean),
        "q_norm_max": q.norm(dim=-1).amax((0, 2)),
        "k_norm_max": k.norm(dim=-1).amax((0, 2)),
    }


def assert_near(found, wanted, size):
    """Logits to 2e-6 of the largest; entropies and shares to what that error of a logit can move
    them by.
    """
    slack = 1e-5 + 4e-6 * size
    for name, column in found.items():
        rtol, atol = (
            (3e-6, 3e-6 * size + 1e-6)
            if "logit" in name or "norm_max" in name
            else (1e-4, min(slack, 0.5))
        )
        torch.testing.assert_close(
            column.double(),
            wanted[name],
            rtol=rtol,
            atol=atol,
            equal_nan=True,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def random_qk(B, H, G, T, K, scale=1.0, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    q, k = torch.randn(B, H, T, K, generator=g), torch.randn(B, G, T, K, generator=g)
    return (q * math.sqrt(scale)).to(dtype), (k * math.sqrt(scale)).to(dtype)


def random_documents(B, T, seed):
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(B, T, generator=g) < 0.2).long().cumsum(1)


@settings(max_examples=60, deadline=None)
@given(
    B=st.integers(1, 3),
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (4, 1), (3, 3)]),
    K=st.sampled_from([2, 7, 16]),
    T=st.sampled_from([1, 2, 3, 63, 64, 65, 100, 129, 200]),
    scale=st.sampled_from([1e-3, 1.0, 30.0, 1e3]),
    documents=st.booleans(),
    bf16=st.booleans(),
    window=st.sampled_from([0, 0, 1, 2, 5, 40, 64, 500]),
    seed=st.integers(0, 10**6),
)
def test_every_column_is_its_definition(B, heads, K, T, scale, documents, bf16, window, seed):
    H, G = heads
    q, k = random_qk(B, H, G, T, K, scale, seed, torch.bfloat16 if bf16 else torch.float32)
    ids = random_documents(B, T, seed) if documents else None
    wanted = naive(q, k, ids, window)
    found = attention_statistics(q, k, ids, window).columns()
    assert found.keys() == wanted.keys()
    assert_near(
        found,
        wanted,
        float(wanted["q_norm_max"].amax() * wanted["k_norm_max"].amax()) / math.sqrt(K),
    )
    assert torch.isnan(found["attn_entropy_min"]).all() == (
        T == 1 or window == 1 or (ids is not None and bool((ids.diff() > 0).all()))
    )


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("documents", [False, True])
def test_logits_of_forty_thousand_give_entropies_that_are_exact_and_never_negative(sign, documents):
    """Whole numbers, so that every logit is exact in fp32: what is left is the error of the
    statistics themselves.
    """
    g = torch.Generator().manual_seed(0)
    q = torch.randint(-8, 9, (2, 3, 150, 16), generator=g).float()
    k = torch.randint(-8, 9, (2, 3, 150, 16), generator=g).float()
    q[:, :, 40::7] *= 40 * sign
    q[0, 1, 77], k[0, 1, 60] = 100.0 * sign, 100.0  # one pair at ±100·100·16/4 = ±4e4
    ids = random_documents(2, 150, 3) if documents else None
    wanted = naive(q, k, ids)
    if sign > 0 and not documents:
        assert wanted["attn_logit_max"][1] == 4e4
    assert max(wanted["attn_logit_spread"]) > 3e4 if sign > 0 and not documents else True
    statistics = attention_statistics(q, k, ids)
    found = statistics.columns()
    assert torch.equal(found["attn_logit_max"].double(), wanted["attn_logit_max"])
    for name in ("attn_entropy_mean", "attn_entropy_min", "attn_entropy_norm", "sink_mass"):
        torch.testing.assert_close(found[name].double(), wanted[name], rtol=1e-5, atol=1e-6)
    assert (found["attn_entropy_min"] >= 0).all()


@settings(max_examples=40, deadline=None)
@given(
    T=st.integers(2, 90),
    scale=st.sampled_from([1e-6, 1.0, 1e3, 1e6, 1e12]),
    seed=st.integers(0, 10**6),
    same=st.booleans(),
)
def test_entropies_are_never_negative_and_shares_never_leave_0_to_1(T, scale, seed, same):
    q, k = random_qk(2, 2, 1, T, 4, scale, seed)
    if same:  # all keys alike: uniform attention, the other end
        k = k[:, :, :1].expand_as(k).contiguous()
    found = attention_statistics(q, k).columns()
    assert (found["attn_entropy_min"] >= 0).all()
    assert (
        found["attn_entropy_min"]
        <= found["attn_entropy_mean"].double() * T / (T - 1) * (1 + 1e-6) + 1e-6
    ).all()
    for share in ("attn_entropy_norm", "sink_mass"):
        assert (found[share] >= 0).all() and (found[share] <= 1 + 1e-5).all()
    assert (found["attn_logit_spread"] >= -1e-5 * found["attn_logit_max"].abs() - 1e-5).all()


def test_one_key_has_entropy_zero_and_no_share():
    q, k = random_qk(2, 3, 3, 1, 8)
    found = attention_statistics(q, k).columns()
    assert (found["attn_entropy_mean"] == 0).all()
    assert (found["attn_logit_spread"].abs() < 1e-5).all()
    for name in ("attn_entropy_min", "attn_entropy_norm", "sink_mass"):
        assert torch.isnan(found[name]).all(), name


def test_the_one_pair_that_spikes_is_found_wherever_it_lies():
    for i, j in ((0, 0), (63, 63), (64, 0), (64, 64), (127, 63), (199, 198)):
        q, k = random_qk(2, 2, 2, 200, 4)
        q[1, 1, i], k[1, 1, j] = 100.0, 100.0
        wanted = 100.0 * 100.0 * 4 / 2
        assert float(attention_statistics(q, k).merged["attn_logit_max"][1]) == wanted
        assert float(attention_statistics(q, k).merged["attn_logit_max"][0]) < 50


def test_a_pair_that_the_mask_hides_is_not_found():
    q, k = random_qk(1, 1, 1, 130, 4)
    q[0, 0, 30], k[0, 0, 31] = 100.0, 100.0  # the key lies after the query
    assert float(attention_statistics(q, k).merged["attn_logit_max"]) < 2e3
    ids = torch.zeros(1, 130, dtype=torch.long)
    ids[0, 100:] = 1
    q, k = random_qk(1, 1, 1, 130, 4)
    q[0, 0, 110], k[0, 0, 20] = 100.0, 100.0  # in another document
    assert float(attention_statistics(q, k).merged["attn_logit_max"]) == 2e4
    assert float(attention_statistics(q, k, ids).merged["attn_logit_max"]) < 2e3


def test_micro_batches_merge_into_the_statistics_of_the_whole():
    q, k = random_qk(6, 4, 2, 70, 8, seed=2)
    ids = random_documents(6, 70, 5)
    for documents in (None, ids):
        whole = attention_statistics(q, k, documents).columns()
        parts = [
            attention_statistics(q[a:b], k[a:b], documents[a:b] if documents is not None else None)
            for a, b in ((0, 1), (1, 4), (4, 6))
        ]
        merged = parts[0].merge(parts[1]).merge(parts[2]).columns()
        for name in whole:
            torch.testing.assert_close(merged[name], whole[name], rtol=1e-6, atol=1e-6)


def test_how_many_sequences_go_at_once_changes_nothing(monkeypatch):
    q, k = random_qk(5, 2, 2, 70, 8)
    whole = attention_statistics(q, k).columns()
    monkeypatch.setattr(attention, "ELEMENTS", 1)
    one = attention_statistics(q, k).columns()
    for name in whole:
        torch.testing.assert_close(one[name], whole[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["q", "k"])
def test_nan_and_inf_crash_nothing_and_show_up(bad, which):
    q, k = random_qk(2, 2, 2, 80, 4)
    (q if which == "q" else k)[1, 0, 70, 2] = bad
    found = attention_statistics(q, k).columns()
    assert not torch.isfinite(found["attn_logit_max"][0])
    assert not torch.isfinite(found["q_norm_max" if which == "q" else "k_norm_max"][0])
    for name, column in found.items():
        assert torch.isfinite(column[1]), name


def test_memory_grows_with_t_and_not_with_t_squared(monkeypatch):
    """The largest tensor that is made, as PyTorch's dispatcher sees them."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(x, torch.Tensor):
                    self.most = max(self.most, x.numel())
            return out

    monkeypatch.setattr(attention, "ELEMENTS", 1)

    def most(T):
        q, k = random_qk(1, 1, 1, T, 4)
        with Largest() as watch:
            attention_statistics(q, k)
        return watch.most

    rows = attention.QUERIES
    assert most(1024) == rows * 1024 and most(2048) == 2 * rows * 1024


@pytest.mark.parametrize("documents", [False, True])
def test_no_bit_changes_with_the_number_of_threads(documents):
    q, k = random_qk(5, 4, 2, 200, 24)
    ids = random_documents(5, 200, 1) if documents else None
    found = {}
    for threads in (1, 2, 3, 4):
        identity.enable_determinism(threads)
        found[threads] = attention_statistics(q, k, ids).columns()
    for threads in (2, 3, 4):
        for name, column in found[1].items():
            assert torch.equal(found[threads][name], column), (threads, name)
