"""The loss and its gradient in chunks, against autograd of the plain form."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from forensics.model import loss
from forensics.model.loss import evaluate, loss_and_gradient, plain_cross_entropy


def problem(N, D=24, V=61, seed=0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    weight = torch.rand(N, generator=g)
    weight[::5] = 0.0
    return (
        torch.randn(N, D, generator=g) * scale,
        torch.randn(V, D, generator=g),
        torch.randint(0, V, (N,), generator=g),
        weight,
    )


def by_autograd(hidden, unembedding, targets, weight, denominator, z_loss):
    """float64, from the definition."""
    h, W = hidden.double().requires_grad_(), unembedding.double().requires_grad_()
    ce, logz = plain_cross_entropy_64(h, W, targets)
    total = (weight.double() * (ce + z_loss * logz.square())).sum() / denominator
    return ce.detach(), logz.detach(), *torch.autograd.grad(total, (h, W))


def plain_cross_entropy_64(h, W, targets):
    logits = h @ W.T
    return F.cross_entropy(logits, targets, reduction="none"), logits.logsumexp(1)


@pytest.mark.parametrize(
    ("N", "z_loss"), list(itertools.product((1, 511, 512, 513, 576, 1300), (0.0, 1e-2)))
)
def test_loss_and_gradient_are_those_of_autograd(N, z_loss):
    hidden, unembedding, targets, weight = problem(N)
    out = loss_and_gradient(hidden, unembedding, targets, weight, 37.0, z_loss)
    ce, logz, grad_hidden, grad_unembedding = by_autograd(
        hidden, unembedding, targets, weight, 37.0, z_loss
    )
    torch.testing.assert_close(out.ce.double(), ce, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.logz.double(), logz, rtol=1e-6, atol=1e-6)
    for found, exact in ((out.grad_hidden, grad_hidden), (out.grad_unembedding, grad_unembedding)):
        assert (found.double() - exact).abs().max() <= 2e-6 * max(exact.abs().max(), 1e-3)
    assert out.rows is None


def test_in_float64_it_is_autograd_to_rounding():
    hidden, unembedding, targets, weight = problem(700)
    exact = by_autograd(hidden, unembedding, targets, weight, 37.0, 1e-2)
    out = loss_and_gradient(
        hidden.double(), unembedding.double(), targets, weight, 37.0, 1e-2, statistics=True
    )
    for found, wanted in zip(out[:4], exact):
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)
    assert all(column.dtype == torch.float64 for column in out.rows)
    ce = evaluate(hidden.double(), unembedding.double(), targets)
    torch.testing.assert_close(ce, exact[0], rtol=1e-13, atol=1e-13)


@given(rows=st.integers(0, 5000))
def test_chunks_cover_every_row_once_and_none_but_the_only_one_is_short(rows):
    found = list(loss.chunks(rows))
    assert [i for c in found for i in range(c.start, c.stop)] == list(range(rows))
    assert all(c.stop - c.start < loss.CHUNK + loss.SHORT for c in found)
    assert all(c.stop - c.start >= loss.SHORT for c in found) or len(found) == 1


def test_logits_of_ten_thousand_overflow_nothing():
    hidden, unembedding, targets, weight = problem(64, scale=1e4)
    out = loss_and_gradient(hidden, unembedding, targets, weight, 64.0, 1e-4, statistics=True)
    ce, logz, grad_hidden, _ = by_autograd(hidden, unembedding, targets, weight, 64.0, 1e-4)
    torch.testing.assert_close(
        out.ce.double(), ce, rtol=1e-4, atol=0.1
    )  # an ulp of a logit of 1e5 is 0.008
    torch.testing.assert_close(out.logz.double(), logz, rtol=1e-5, atol=1e-2)
    assert (out.grad_hidden.double() - grad_hidden).abs().max() <= 1e-2 * grad_hidden.abs().max()
    assert torch.isfinite(out.rows.entropy).all() and (out.rows.entropy >= 0).all()


@pytest.mark.parametrize("z_loss", [0.0, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whether_statistics_are_asked_for_changes_no_bit(z_loss, dtype):
    hidden, unembedding, targets, weight = problem(700)
    with_, without = (
        loss_and_gradient(
            hidden, unembedding, targets, weight, 700.0, z_loss, statistics=s, dtype=dtype
        )
        for s in (True, False)
    )
    for name in ("ce", "logz", "grad_hidden", "grad_unembedding"):
        assert torch.equal(getattr(with_, name), getattr(without, name)), name


def test_statistics_of_the_logits_are_their_definitions():
    hidden, unembedding, targets, weight = problem(700)
    rows = loss_and_gradient(hidden, unembedding, targets, weight, 700.0, 0.0, statistics=True).rows
    logits = hidden.double() @ unembedding.double().T
    log_p = logits.log_softmax(1)
    torch.testing.assert_close(rows.largest.double(), logits.amax(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        rows.mean_square.double(), logits.square().mean(1), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(
        rows.entropy.double(), -(log_p.exp() * log_p).sum(1), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(rows.logz.double(), logits.logsumexp(1), rtol=1e-6, atol=1e-6)


def test_a_target_of_weight_zero_has_a_loss_but_no_gradient():
    hidden, unembedding, targets, _ = problem(20)
    weight = torch.zeros(20)
    weight[3] = 1.0
    out = loss_and_gradient(hidden, unembedding, targets, weight, 1.0, 0.0)
    assert (out.ce > 0).all()
    assert set(out.grad_hidden.abs().sum(1).nonzero().flatten().tolist()) == {3}


def test_bf16_products_are_near_and_the_gradient_keeps_the_hidden_dtype():
    hidden, unembedding, targets, weight = problem(600)
    exact = loss_and_gradient(hidden, unembedding, targets, weight, 600.0, 0.0)
    half = loss_and_gradient(
        hidden.bfloat16(), unembedding, targets, weight, 600.0, 0.0, dtype=torch.bfloat16
    )
    assert half.grad_hidden.dtype == torch.bfloat16 and half.grad_unembedding.dtype == torch.float32
    assert (half.ce - exact.ce).abs().mean() < 0.05
    assert (
        half.grad_unembedding - exact.grad_unembedding
    ).norm() < 0.03 * exact.grad_unembedding.norm()


def test_a_nan_in_one_row_is_that_rows_alone_but_for_the_unembedding():
    hidden, unembedding, targets, weight = problem(30)
    hidden[4] = float("nan")
    out = loss_and_gradient(hidden, unembedding, targets, weight, 30.0, 0.0, statistics=True)
    assert torch.isnan(out.ce).nonzero().flatten().tolist() == [4]
    assert torch.isnan(out.grad_unembedding).all()


def test_evaluate_is_the_same_cross_entropy_and_needs_no_gradient(monkeypatch):
    hidden, unembedding, targets, _ = problem(1300)
    plain = plain_cross_entropy(hidden, unembedding, targets)[0]
    torch.testing.assert_close(evaluate(hidden, unembedding, targets), plain, rtol=1e-6, atol=1e-6)
    monkeypatch.setattr(loss, "CHUNK", 100)
    torch.testing.assert_close(evaluate(hidden, unembedding, targets), plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_a_steps_gradients_are_autograds_of_the_whole_model(
    tied, z_loss, make_shape, random_params, make_batch, make_model
):
    """Through `advance`'s own forward and backward: weights, z-loss, two micro-batches, tied
    embeddings.
    """
    from forensics.step.observer import SILENT
    from forensics.step.policy import StepPolicy
    from forensics.step.result import StepResult
    from forensics.step.state import Counters, TrainState
    from forensics.train.advance import _forward_backward

    shape = make_shape("llama", tied=tied)
    batch = make_batch()
    batch.weight[1, 4:] = 0.0
    batch.weight[2] = 2.5
    params = random_params(shape)
    policy = StepPolicy(
        1e-3, (0.9, 0.95), 1e-8, 0.1, 1.0, z_loss, frozenset(), "fp32", "apply", True, False
    )
    result = StepResult(0, policy, Counters(), "apply", batch)
    grads = _forward_backward(
        TrainState.start(params), batch, policy, make_model(shape, 2), SILENT, result
    )

    exact = {n: p.double().requires_grad_() for n, p in params.items()}
    model = make_model(shape, plain=True)
    hidden = model.decoder.hidden(exact, batch.tokens[:, :-1]).reshape(-1, 32)
    W = exact["embed.weight" if tied else "unembed.weight"]
    ce, logz = plain_cross_entropy_64(hidden, W, batch.tokens[:, 1:].reshape(-1))
    weight = batch.weight.reshape(-1).double()
    total = (weight * (ce + z_loss * logz.square())).sum() / batch.denominator
    wanted = dict(zip(exact, torch.autograd.grad(total, list(exact.values()))))
    assert grads.keys() == wanted.keys()
    for name, grad in wanted.items():
        assert (grads[name].double() - grad).abs().max() <= 1e-5 * grad.abs().max(), name
    assert result.loss == pytest.approx(
        float((weight * ce.detach()).sum()) / batch.denominator, rel=1e-6
    )
    norm = sum(float(g.square().sum()) for g in wanted.values()) ** 0.5
    assert result.grad_norm == pytest.approx(norm, rel=1e-5)
