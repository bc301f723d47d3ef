"""AdamW against its formula in float64, and its three implementations against each other."""

import pytest
import torch

from forensics.config import UNDECAYED
from forensics.errors import ForensicsError
from forensics.step.state import Counters, TrainState
from forensics.train.optimizer import (
    Adjoint,
    decayed_names,
    pull_back,
    require_patterns,
    update,
)
from forensics.train.optimizers.adamw import bias_corrections

NAMES = (
    "embed.weight",
    "layers.0.attn.norm.weight",
    "layers.0.attn.q_proj.weight",
    "layers.0.attn.q_proj.bias",
    "layers.0.attn.q_norm.weight",
    "unembed.weight",
)


def random_state(dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return TrainState.start({n: torch.randn(40, 33, generator=g).to(dtype) for n in NAMES})


def random_grads(step, dtype=torch.float32):
    g = torch.Generator().manual_seed(100 + step)
    grads = {n: torch.randn(40, 33, generator=g).to(dtype) * 10.0 ** (step - 2) for n in NAMES}
    grads["embed.weight"][5:9] = 0.0  # rows that no token touched
    return grads


def by_the_formula(state, grads, policy, decayed):
    """The docstring of optimizer.py, in float64."""
    t = state.counters.updates + 1
    (b1, b2), lr = policy.betas, policy.learning_rate
    for n, g in grads.items():
        if n in policy.frozen:
            continue
        m, v, theta = state.exp_avg[n], state.exp_avg_sq[n], state.params[n]
        m.copy_(b1 * m + (1 - b1) * g)
        v.copy_(b2 * v + (1 - b2) * g * g)
        if policy.update == "hold":
            continue
        decay = policy.weight_decay if n in decayed else 0.0
        theta.copy_(
            theta * (1 - lr * decay)
            - lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + policy.eps)
        )


def run(implementation, policy, dtype=torch.float32, steps=5):
    state = random_state(dtype)
    decayed = decayed_names(NAMES, UNDECAYED, True)
    for step in range(steps):
        grads = random_grads(step, dtype)
        if implementation == "formula":
            by_the_formula(state, grads, policy, decayed)
        else:
            update(state, grads, policy, decayed, implementation)
        state.counters = Counters(step + 1, step + 1, step + 1)
    return state


@pytest.mark.parametrize("implementation", ["fused", "foreach", "loop"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"betas": (0.8, 0.999), "eps": 1e-3, "weight_decay": 0.5, "learning_rate": 0.05},
        {"update": "hold"},
        {"frozen": frozenset({"embed.weight"})},
    ],
)
def test_every_implementation_is_the_formula(implementation, fields, make_policy):
    policy = make_policy(**fields)
    exact = run("formula", policy, torch.float64)
    found = run(implementation, policy)
    for group in ("params", "exp_avg", "exp_avg_sq"):
        for name, x in getattr(exact, group).items():
            torch.testing.assert_close(
                getattr(found, group)[name].double(),
                x,
                rtol=5e-6,
                atol=2e-6 * float(x.abs().max()),
                msg=f"{group}/{name}",
            )
    if fields.get("update") == "hold":
        assert all(torch.equal(found.params[n], random_state().params[n]) for n in NAMES)
    if "frozen" in fields:
        assert torch.equal(found.params["embed.weight"], random_state().params["embed.weight"])
        assert (found.exp_avg["embed.weight"] == 0).all()


def test_foreach_is_the_loop_to_the_bit_and_fused_is_near(make_policy):
    states = {i: run(i, make_policy()) for i in ("fused", "foreach", "loop")}
    assert states["foreach"].digest() == states["loop"].digest()
    assert states["fused"].digest() != states["loop"].digest(), (
        "if these are equal now, say so in docs/architecture.md"
    )
    for name in NAMES:
        a, b = states["fused"].params[name], states["loop"].params[name]
        assert (a - b).abs().max() <= 1e-6 * b.abs().max(), name
        torch.testing.assert_close(
            states["fused"].exp_avg_sq[name], states["loop"].exp_avg_sq[name], rtol=1e-6, atol=0
        )


@pytest.mark.parametrize("implementation", ["fused", "foreach", "loop"])
def test_a_row_without_gradient_only_decays_and_its_moments_stay_zero(implementation, make_policy):
    """What the exact test of under-trained tokens rests on: e ← e·(1 − ηλ), step by step, to the
    bit.
    """
    policy = make_policy(learning_rate=3e-3)
    state = run(implementation, policy)
    assert (state.exp_avg["embed.weight"][5:9] == 0).all() and (
        state.exp_avg_sq["embed.weight"][5:9] == 0
    ).all()
    row = random_state().params["embed.weight"][5:9].clone()
    for _ in range(5):
        row.mul_(1 - 3e-3 * 0.1)
    assert torch.equal(state.params["embed.weight"][5:9], row)


def test_norms_and_biases_never_decay_and_embeddings_where_asked():
    matrix = {"layers.0.attn.q_proj.weight"}
    assert decayed_names(NAMES, UNDECAYED, False) == matrix
    assert decayed_names((*NAMES, "positions.weight"), UNDECAYED, True) == matrix | {
        "embed.weight",
        "unembed.weight",
        "positions.weight",
    }


@pytest.mark.parametrize("implementation", ["fused", "foreach", "loop"])
def test_a_learning_rate_of_zero_moves_the_moments_alone(implementation, make_policy):
    state = run(implementation, make_policy(learning_rate=0.0))
    assert all(torch.equal(state.params[n], random_state().params[n]) for n in NAMES)
    assert all((state.exp_avg_sq[n] > 0).any() for n in NAMES)


def test_bias_corrections_are_one_minus_beta_to_the_updates():
    assert bias_corrections((0.9, 0.95), 1) == pytest.approx((0.1, 0.05))
    assert bias_corrections((0.9, 0.95), 0) == (0.0, 0.0)


def tracked(state):
    """Copies of a state's tensors that autograd follows, by (group, name)."""
    groups = ("params", "exp_avg", "exp_avg_sq")
    return {
        (group, n): x.clone().requires_grad_()
        for group in groups
        for n, x in getattr(state, group).items()
    }


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"betas": (0.8, 0.999), "eps": 1e-3, "weight_decay": 0.5, "learning_rate": 0.05},
        {"update": "hold"},
        {"frozen": frozenset({"embed.weight"})},
    ],
)
@pytest.mark.parametrize("steps", [0, 3])
def test_the_product_with_the_jacobian_is_autograds(fields, steps, make_policy):
    """Of one update, from moments of zero and from real ones, every output pulled on at random;
    rows of zeros are finite.
    """
    policy, decayed = make_policy(**fields), decayed_names(NAMES, UNDECAYED, True)
    state = run("formula", policy, torch.float64, steps)
    grads = {n: g.requires_grad_() for n, g in random_grads(steps, torch.float64).items()}
    before = tracked(state)
    (b1, b2), rate, t = policy.betas, policy.learning_rate, steps + 1
    after = {}
    for n in NAMES:
        theta, m, v = (before[group, n] for group in ("params", "exp_avg", "exp_avg_sq"))
        if n not in policy.frozen:
            m, v = b1 * m + (1 - b1) * grads[n], b2 * v + (1 - b2) * grads[n] ** 2
            if policy.update != "hold":
                seen = v > 0
                root = torch.where(seen, (torch.where(seen, v, 1.0) / (1 - b2**t)).sqrt(), 0.0)
                decay = policy.weight_decay if n in decayed else 0.0
                theta = theta * (1 - rate * decay) - rate * (m / (1 - b1**t)) / (root + policy.eps)
        after["params", n], after["exp_avg", n], after["exp_avg_sq", n] = theta, m, v
    pulls = {
        key: torch.randn(x.shape, generator=torch.Generator().manual_seed(i), dtype=x.dtype)
        for i, (key, x) in enumerate(after.items())
    }
    total = sum((x * pulls[key]).sum() for key, x in after.items())
    leaves = [*before.values(), *grads.values()]
    exact = dict(
        zip(
            [*before, *(("grads", n) for n in NAMES)],
            torch.autograd.grad(total, leaves, allow_unused=True),
        )
    )

    groups = (
        {n: pulls[group, n].clone() for n in NAMES} for group in ("params", "exp_avg", "exp_avg_sq")
    )
    adjoint = Adjoint(*groups)
    m, v = ({n: after[group, n].detach() for n in NAMES} for group in ("exp_avg", "exp_avg_sq"))
    given = {n: g.detach() for n, g in grads.items() if n not in policy.frozen}
    found = pull_back(adjoint, (m, v), given, steps, policy, decayed)
    assert found.keys() == given.keys()
    for n in NAMES:
        for group in ("params", "exp_avg", "exp_avg_sq"):
            mine = getattr(adjoint, group)[n]
            assert torch.isfinite(mine).all()
            torch.testing.assert_close(
                mine, exact[group, n], rtol=1e-11, atol=1e-12, msg=f"{group} {n}"
            )
        if n in found:
            assert torch.isfinite(found[n]).all()
            torch.testing.assert_close(found[n], exact["grads", n], rtol=1e-11, atol=1e-9, msg=n)


def test_decay_is_by_patterns_of_names():
    norms = {name for name in NAMES if "norm" in name or name.endswith(".bias")}
    assert norms
    assert decayed_names(NAMES, ["embed.weight"], True) == set(NAMES) - {"embed.weight"}  # OLMo 2
    assert decayed_names(NAMES, [], True) == set(NAMES)
    assert decayed_names(NAMES, [*UNDECAYED, "embed.weight"], True) == (
        set(NAMES) - norms - {"embed.weight"}
    )
    require_patterns(NAMES, ["layers.*.attn.*", *UNDECAYED])
    with pytest.raises(ForensicsError, match=r"'embedding\.weight', which names none") as e:
        require_patterns(NAMES, ["embedding.weight"])
    assert "embed.weight" in e.value.hint
