"""TensorProbe against float64 computed straight from the definitions of docs/formulas.md."""

import math

import pytest
import torch

from forensics.config import UNDECAYED
from forensics.step import sums
from forensics.train.advance import advance

UPDATES_OWN = ("update_norm", "update_ratio", "update_ratio_no_decay", "rms_t")


class Keep:
    """Keeps what a step had before and after, and runs the probe as the recorder does."""

    wants = frozenset()

    def __init__(self, model):
        self.model = model

    def begin(self, state, policy):
        self.before = state.clone()

    def tap(self, site, x): ...

    def gradients(self, state, grads, result):
        from forensics.observe.tensors import TensorProbe

        self.grads = {n: g.clone() for n, g in grads.items()}
        self.probe = TensorProbe(state, grads, result.grad_norms, result.clip_scale, result.policy)

    def end(self, state, result):
        self.after, self.result = state.clone(), result
        columns = self.probe.measure(state, self.model.decayed, result.action == "apply").columns()
        self.rows = {
            name: {c: values[i] for c, values in columns.items()}
            for i, name in enumerate(columns["tensor"])
        }


def naive(name, keep, decays):
    policy, t = keep.result.policy, keep.before.counters.updates
    g = keep.grads[name].double()
    clipped = g * keep.result.clip_scale
    old, new = keep.before.params[name].double(), keep.after.params[name].double()
    m, v0, v = (
        keep.after.exp_avg[name].double(),
        keep.before.exp_avg_sq[name].double(),
        keep.after.exp_avg_sq[name].double(),
    )
    b2 = policy.betas[1]
    row = {
        "grad_norm": g.norm(),
        "grad_rms": g.square().mean().sqrt(),
        "grad_max": g.abs().max(),
        "param_norm": old.norm(),
        "exp_avg_norm": m.norm(),
        "exp_avg_sq_norm": v.norm(),
        "unseen_share": (v == 0).double().mean(),
        "staleness": None,
        "gss_share": None,
    }
    if t > 0:
        before = v0 / (1 - b2**t)
        row["staleness"] = clipped.norm() / before.sum().sqrt() if before.sum() > 0 else None
        row["gss_share"] = ((v0 > 0) & (clipped.square() > 5000 * before)).double().mean()
    row |= dict.fromkeys(UPDATES_OWN)
    if keep.result.action == "apply":
        delta = new - old
        seen = v > 0
        v_hat = v / (1 - b2 ** (t + 1))
        row["update_norm"] = delta.norm()
        if old.norm() > 0:
            row["update_ratio"] = delta.norm() / old.norm()
            decay = policy.learning_rate * policy.weight_decay if decays else 0.0
            row["update_ratio_no_decay"] = (delta + decay * old).norm() / old.norm()
        if seen.any():
            row["rms_t"] = (clipped.square() / v_hat.clamp_min(policy.eps**2))[seen].mean().sqrt()
    return row


def check(keep, model):
    for name, row in keep.rows.items():
        wanted = naive(name, keep, name in model.decayed)
        for column, value in wanted.items():
            if value is None:
                assert row[column] is None, (name, column)
            else:
                assert row[column] == pytest.approx(float(value), rel=2e-5, abs=1e-12), (
                    name,
                    column,
                )
        assert row.keys() == wanted.keys() | {"tensor"}


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize(
    ("family", "tied"), [("llama", False), ("llama", True), ("gpt2", True), ("qwen3", False)]
)
def test_every_column_is_its_definition(
    family, tied, clip, make_shape, start_state, make_model, make_batch, make_policy
):
    shape = make_shape(
        family, tied=tied, vocabulary=300, width=64
    )  # 19,200 embeddings: more than one block of sums
    state, model = start_state(shape), make_model(shape)
    keep = Keep(model)
    for step in range(4):
        batch = make_batch(vocabulary=300, seed=step)
        advance(state, batch, make_policy(clip=clip, learning_rate=1e-2), model, keep)
        assert (keep.result.clip_scale < 1) == (clip > 0)
        check(keep, model)
        assert (keep.rows["embed.weight"]["staleness"] is None) == (step == 0)
    if not tied:
        share = keep.rows["embed.weight"]["unseen_share"]
        assert 0 < share < 1, "some tokens were never read"
    assert (
        keep.rows["norm.weight"]["update_ratio"]
        == keep.rows["norm.weight"]["update_ratio_no_decay"]
    )
    decayed = keep.rows["layers.0.mlp.up.weight"]
    assert decayed["update_ratio"] != decayed["update_ratio_no_decay"]


def test_embeddings_that_do_not_decay_have_an_update_ratio_without_decay_of_their_own(
    make_shape, start_state, make_batch, make_policy
):
    from forensics.model.decoder import Decoder
    from forensics.model.step_model import StepModel
    from forensics.train.optimizer import decayed_names

    shape = make_shape()
    decoder = Decoder(shape)
    model = StepModel(
        decoder, 4, "fused", decayed_names(decoder.names, UNDECAYED, False), "cpu", 60
    )
    keep = Keep(model)
    advance(start_state(shape), make_batch(), make_policy(), model, keep)
    check(keep, model)
    assert (
        keep.rows["embed.weight"]["update_ratio"]
        == keep.rows["embed.weight"]["update_ratio_no_decay"]
    )


@pytest.mark.parametrize("update", ["hold", "zero"])
def test_where_no_update_was_applied_its_columns_are_null(
    update, make_shape, start_state, make_model, make_batch, make_policy
):
    shape = make_shape()
    state, model = start_state(shape), make_model(shape)
    keep = Keep(model)
    advance(state, make_batch(seed=1), make_policy(), model)
    advance(state, make_batch(seed=2), make_policy(update=update), model, keep)
    check(keep, model)
    assert all(row[c] is None for row in keep.rows.values() for c in UPDATES_OWN)
    assert all(row["staleness"] is not None for row in keep.rows.values())


def test_a_gradient_that_is_five_thousand_times_the_second_moment_is_counted(
    make_shape, start_state, make_model, make_batch, make_policy
):
    shape = make_shape()
    state, model = start_state(shape), make_model(shape)
    keep = Keep(model)
    for step in range(3):
        advance(state, make_batch(seed=step), make_policy(clip=0.0), model)
    for v in state.exp_avg_sq.values():
        v.mul_(1e-6)
    advance(state, make_batch(seed=9), make_policy(clip=0.0), model, keep)
    check(keep, model)
    assert keep.rows["layers.0.mlp.up.weight"]["gss_share"] > 0.2
    assert keep.rows["layers.0.mlp.up.weight"]["staleness"] > 100


def test_huge_gradients_are_judged_after_clipping(make_policy):
    from forensics.observe.tensors import TensorProbe
    from forensics.step.state import Counters, TrainState

    theta = {"x": torch.ones(10)}
    v = {"x": torch.tensor([1e-6] * 5 + [1.0] * 5)}
    state = TrainState(theta, {"x": torch.zeros(10)}, v, Counters(1000, 1000, 1000))
    grad = torch.full((10,), 1e25)  # its square is inf in fp32
    probe = TensorProbe(state, {"x": grad}, {"x": 1e25 * math.sqrt(10)}, 1e-25, make_policy())
    found = probe.measure(state, frozenset(), applied=False).columns()
    assert found["gss_share"] == [0.5]  # 1 against 5000·1e-6, and against 5000
    assert found["staleness"][0] == pytest.approx(math.sqrt(10) / math.sqrt(5 + 5e-6), rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_crashes_nothing_and_shows(
    bad, make_shape, start_state, make_model, make_batch, make_policy
):
    shape = make_shape()
    state, model = start_state(shape), make_model(shape)
    advance(state, make_batch(), make_policy(), model)
    state.params["layers.1.mlp.up.weight"][0, 0] = bad
    keep = Keep(model)
    advance(state, make_batch(seed=1), make_policy(), model, keep)
    assert not math.isfinite(keep.rows["layers.1.mlp.up.weight"]["grad_norm"])
    assert not math.isfinite(keep.rows["layers.1.mlp.up.weight"]["update_norm"])


def test_sums_in_blocks_are_the_sums_and_do_not_change_with_threads():
    g = torch.Generator().manual_seed(0)
    for n in (0, 1, 4095, 4096, 4097, 5 * 4096, 300_001):
        x = torch.randn(n, generator=g)
        assert float(sums.total(x)) == pytest.approx(float(x.double().sum()), rel=1e-6, abs=1e-3)
        assert float(sums.square_sum(x)) == pytest.approx(
            float(x.double().square().sum()), rel=1e-6
        )
        pieces = list(sums.blocks(x, 2 * x))
        assert torch.equal(torch.cat([a.flatten() for a, _ in pieces] or [x]), x)
        assert all(torch.equal(b, 2 * a) for a, b in pieces)
        seen = set()
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            seen.add(
                (
                    float(sums.total(x)),
                    float(sums.square_sum(x)),
                    *sums.norms([x, x[: n // 2]]).tolist(),
                )
            )
        assert len(seen) == 1
    assert sums.norms([]).tolist() == []
