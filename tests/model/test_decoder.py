"""The decoder's own forms: fused against plain, gradients, masks, taps, and bits that no thread
count changes.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from forensics.model import families
from forensics.model.cpu_kernels import GELU, RMSNorm, Rotate, SwiGLU
from forensics.model.decoder import Decoder, unembedding
from forensics.model.shape import Shape, parameter_shapes
from forensics.step.observer import SITES

VARIANTS = {
    **{family: (family, {}) for family in families.FAMILIES},
    "document mask": ("llama", {"document_mask": True}),
    "window inside documents": ("olmo3", {"window": 3, "document_mask": True}),
    "clipped, without RoPE": ("olmo", {"clip_qkv": 0.5, "unrotated_layers": (1,)}),
    "stretched, biases of three": (
        "qwen2",
        {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_length": 8},
    ),
    "grouped keys": ("qwen3", {"kv_heads": 2}),
    "half a llama, half a neox": (
        "llama",
        {"norm": "post", "parallel": True, "bias": True, "position": "learned"},
    ),
}
TOKENS = torch.randint(0, 61, (3, 16), generator=torch.Generator().manual_seed(7))
DOCUMENTS = torch.tensor([[0] * 16, [0] * 5 + [1] * 11, [0, 1] + [2] * 9 + [3] * 5])


def logits_and_gradients(shape, params, plain, documents=None):
    params = {n: p.clone().requires_grad_() for n, p in params.items()}
    logits = (
        Decoder(shape, plain=plain).hidden(params, TOKENS, documents_BT=documents)
        @ unembedding(params).T
    )
    aim = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).to(logits.dtype)
    grads = torch.autograd.grad((logits * aim).sum() / logits.numel(), list(params.values()))
    return logits.detach(), dict(zip(params, grads))


@pytest.mark.parametrize("variant", VARIANTS)
def test_fused_and_plain_forms_agree_in_logits_and_every_gradient(
    variant, make_shape, random_params
):
    family, knobs = VARIANTS[variant]
    shape = make_shape(family, **knobs)
    params = {n: p.double() for n, p in random_params(shape).items()}
    documents = DOCUMENTS if shape.document_mask else None
    fused, fused_grads = logits_and_gradients(shape, params, False, documents)
    plain, plain_grads = logits_and_gradients(shape, params, True, documents)
    assert fused.dtype == torch.float64
    # fp64 throughout, so that 1e-6 holds with room: RoPE's angles alone are fp32, in both forms
    torch.testing.assert_close(fused, plain, rtol=1e-9, atol=1e-9)
    for name in params:
        torch.testing.assert_close(
            fused_grads[name], plain_grads[name], rtol=1e-8, atol=1e-10, msg=name
        )
        assert fused_grads[name].abs().max() > 0, f"{name} takes no part"


@pytest.mark.parametrize("variant", VARIANTS)
def test_fused_form_is_as_near_to_float64_as_the_plain_one_in_fp32(
    variant, make_shape, random_params
):
    family, knobs = VARIANTS[variant]
    shape = make_shape(family, **knobs)
    documents = DOCUMENTS if shape.document_mask else None
    params = random_params(shape)
    fused, fused_grads = logits_and_gradients(shape, params, False, documents)
    plain, plain_grads = logits_and_gradients(shape, params, True, documents)
    assert (fused - plain).abs().max() <= 2e-6 * plain.abs().max()
    exact = {name: p.double() for name, p in params.items()}
    _, exact_grads = logits_and_gradients(shape, exact, True, documents)
    for name, grad in exact_grads.items():
        fused_error = (fused_grads[name] - grad).abs().max()
        plain_error = (plain_grads[name] - grad).abs().max()
        # Where a gradient cancels (a bias of keys has none: softmax ignores shifts; queries of a
        # flat softmax have 1/2000 of the others'), any order of fp32 sums rounds in its fifth
        # digit, and which one does better depends on the CPU's kernels: both are held to float64.
        assert fused_error <= max(1e-5 * grad.abs().max(), 8 * plain_error), name


def random64(*size, seed=0):
    return torch.randn(
        *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).requires_grad_()


def test_fused_gradients_are_those_of_finite_differences():
    angle = torch.linspace(0.1, 3.0, 10, dtype=torch.float64).view(5, 1, 2)
    assert gradcheck(
        lambda x, g: RMSNorm.apply(x, g, 1e-5), (random64(2, 3, 8), random64(8, seed=1))
    )
    assert gradcheck(
        lambda x: Rotate.apply(x, angle.cos(), angle.sin()), (random64(2, 5, 3, 6),)
    )  # 4 of 6 are turned
    assert gradcheck(SwiGLU.apply, (random64(2, 3, 5), random64(2, 3, 5, seed=1)))
    for tanh in (False, True):
        assert gradcheck(lambda x, tanh=tanh: GELU.apply(x, tanh), (random64(2, 3, 5),))


def test_fused_activations_are_torchs_own_also_far_from_zero():
    x = torch.cat(
        (torch.linspace(-12, 12, 4001), torch.tensor([-1e4, -200.0, -88.8, 0.0, 88.8, 200.0, 1e4]))
    )
    up = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    pairs = [
        (lambda a: SwiGLU.apply(a, up), lambda a: F.silu(a) * up),
        (lambda a: GELU.apply(a, False), lambda a: F.gelu(a)),
        (lambda a: GELU.apply(a, True), lambda a: F.gelu(a, approximate="tanh")),
    ]
    for ours, theirs in pairs:
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, z = ours(a), theirs(b)
        torch.testing.assert_close(y, z, rtol=2e-6, atol=1e-6)
        (g,), (h,) = torch.autograd.grad(y.sum(), a), torch.autograd.grad(z.sum(), b)
        torch.testing.assert_close(g, h, rtol=1e-5, atol=2e-6)


def test_fused_norm_keeps_bf16_outside_and_fp32_inside():
    x, gain = torch.randn(4, 32).bfloat16(), torch.randn(32)
    y = RMSNorm.apply(x, gain, 1e-5)
    exact = x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + 1e-5) * gain
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact.double(), rtol=2**-8, atol=0)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_later_token_changes_no_earlier_logit(family, make_shape, random_params):
    shape = make_shape(family)
    params = random_params(shape)
    changed = TOKENS.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 61
    with torch.no_grad():
        before, after = (Decoder(shape).hidden(params, t) for t in (TOKENS, changed))
    assert torch.equal(before[:, :9], after[:, :9])
    assert (before[:, 9:] != after[:, 9:]).any(-1).all()


@pytest.mark.parametrize("plain", [False, True])
@settings(max_examples=20, deadline=None)
@given(
    cut=st.lists(st.integers(1, 15), min_size=1, max_size=4, unique=True), seed=st.integers(0, 99)
)
def test_with_the_document_mask_a_change_in_one_document_changes_no_logit_in_another(
    plain, cut, seed
):
    shape = Shape(
        layers=2,
        width=16,
        heads=2,
        kv_heads=1,
        head_width=8,
        mlp_width=32,
        norm="pre",
        norm_kind="rms",
        norm_eps=1e-5,
        qk_norm="none",
        position="rope",
        rope_theta=1e4,
        rope_fraction=1.0,
        parallel=False,
        bias=False,
        activation="swiglu",
        tied=False,
        max_positions=16,
        vocabulary=61,
        document_mask=True,
    )
    generator = torch.Generator().manual_seed(seed)
    params = {
        n: torch.randn(s, generator=generator) * 0.3 for n, s in parameter_shapes(shape).items()
    }
    tokens = torch.randint(0, 61, (1, 16), generator=generator)
    documents = torch.zeros(1, 16, dtype=torch.int64)
    for c in cut:
        documents[:, c:] += 1
    where = int(torch.randint(0, 16, (), generator=generator))
    changed = tokens.clone()
    changed[0, where] = (changed[0, where] + 1) % 61
    decoder = Decoder(shape, plain=plain)
    with torch.no_grad():
        before, after = (
            decoder.hidden(params, t, documents_BT=documents)[0] for t in (tokens, changed)
        )
    touched = (before != after).any(-1)
    position = torch.arange(16)
    assert torch.equal(touched, (documents[0] == documents[0, where]) & (position >= where))


class Watch:
    def __init__(self, wants):
        self.wants = frozenset(wants)
        self.seen = []

    def tap(self, site, x):
        assert not x.requires_grad
        self.seen.append((site, x))


def test_taps_hand_out_every_site_of_the_very_forward_and_backward(make_shape, random_params):
    shape = make_shape("qwen3", kv_heads=2, head_width=16, document_mask=True)
    params = {n: p.requires_grad_() for n, p in random_params(shape).items()}
    watch = Watch(SITES)
    hidden = Decoder(shape).hidden(params, TOKENS, watch, DOCUMENTS)
    hidden.sum().backward()
    seen = {(s.kind, s.layer): x for s, x in watch.seen}
    assert len(seen) == len(watch.seen)
    sizes = {"q": (3, 4, 16, 16), "k": (3, 2, 16, 16), "mlp_act": (3, 16, shape.mlp_width)}
    for kind in SITES:
        for layer in range(2) if kind != "documents" else (-1,):
            assert tuple(seen[kind, layer].shape) == sizes.get(
                kind, (3, 16) if kind == "documents" else (3, 16, 32)
            )
    assert torch.equal(seen["resid_in", 1], seen["resid_out", 0])
    summed = seen["resid_in", 0] + seen["attn_out", 0] + seen["mlp_out", 0]
    torch.testing.assert_close(seen["resid_out", 0], summed, rtol=1e-5, atol=1e-5)
    order = [s.kind for s, _ in watch.seen]
    assert order[0] == "documents" and order.index("q") < order.index("k")


def test_what_is_not_wanted_is_not_tapped(make_shape, random_params):
    watch = Watch({"q"})
    shape = make_shape()
    Decoder(shape).hidden(random_params(shape), TOKENS, watch)
    assert [s.kind for s, _ in watch.seen] == ["q", "q"]
