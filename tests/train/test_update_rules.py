"""Each optimizer against torch's own, or its formula, and its product with the Jacobian."""

import numpy as np
import pytest
import torch

from forensics.errors import ForensicsError
from forensics.step.state import Counters, TrainState
from forensics.train.loop import train
from forensics.train.optimizer import pull_back, update
from forensics.train.optimizers import RULES
from forensics.train.optimizers.muon import orthogonalized
from forensics.train.optimizers.rule import Adjoint
from forensics.train.run import open_run
from replay.blame.metagradient import influence

SHAPES = {
    "embed.weight": (40, 12),
    "layers.0.attn.q_proj.weight": (12, 12),
    "layers.0.mlp.up.weight": (32, 12),
    "layers.0.mlp.down.weight": (12, 32),
    "layers.0.attn.norm.weight": (12,),
}
MATRICES = [name for name, shape in SHAPES.items() if len(shape) == 2 and name != "embed.weight"]
GROUPS = ("params", "exp_avg", "exp_avg_sq")
BESIDE_ADAMW = [name for name in RULES if name != "adamw"]


def draws(seed, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return {n: torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
            for n, shape in SHAPES.items()}  # fmt: skip


def walked(policy, decayed, steps=5, dtype=torch.float32, implementation="loop"):
    state = TrainState.start(draws(0, dtype))
    for step in range(steps):
        update(state, draws(step + 1, dtype), policy, decayed, implementation)
        state.counters = Counters(step + 1, step + 1, step + 1)
    return state


def stepped(optimizers, params, steps=5):
    for step in range(steps):
        for name, grad in draws(step + 1).items():
            params[name].grad = grad
        for optimizer in optimizers:
            optimizer.step()
    return params


@pytest.mark.parametrize("implementation", ["fused", "foreach", "loop"])
def test_nadamw_is_torchs_nadam_with_decoupled_decay(implementation, make_policy):
    policy = make_policy(update_rule="nadamw", learning_rate=1e-2, eps=1e-7)
    found = walked(policy, frozenset(SHAPES), implementation=implementation)
    params = {n: torch.nn.Parameter(x) for n, x in draws(0).items()}
    torchs = torch.optim.NAdam(
        params.values(),
        lr=1e-2,
        betas=policy.betas,
        eps=1e-7,
        weight_decay=0.1,
        decoupled_weight_decay=True,
    )
    for name, wanted in stepped([torchs], params).items():
        torch.testing.assert_close(found.params[name], wanted.data, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("scale", "theirs"), [("match_rms", "match_rms_adamw"), ("original", "original")]
)
def test_muon_is_torchs_for_matrices_and_adamw_beside_it_to_the_bit(scale, theirs, make_policy):
    policy = make_policy(
        update_rule="muon", learning_rate=1e-2, momentum=0.9, matrix_scale=scale, matrix_rate=2.0
    )
    found = walked(policy, frozenset(SHAPES))
    params = {n: torch.nn.Parameter(x) for n, x in draws(0).items()}
    muon = torch.optim.Muon(
        [params[n] for n in MATRICES],
        lr=2e-2,
        weight_decay=0.1,
        momentum=0.9,
        adjust_lr_fn=theirs,
    )
    others = [params[n] for n in SHAPES if n not in MATRICES]
    adamw = torch.optim.AdamW(others, 1e-2, policy.betas, 1e-8, 0.1, foreach=False)
    for name, wanted in stepped([muon, adamw], params).items():
        assert torch.equal(found.params[name], wanted.data), name
    assert all((found.exp_avg_sq[name] == 0).all() for name in MATRICES)


def test_newton_schulz_brings_every_singular_value_near_one():
    for shape in ((20, 7), (7, 20), (9, 9)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()
        values = torch.linalg.svdvals(orthogonalized(matrix, torch.float64))
        assert values.min() > 0.3 and values.max() < 1.3


def test_lion_is_its_formula(make_policy):
    policy = make_policy(update_rule="lion", learning_rate=1e-3, betas=(0.9, 0.99))
    decayed = frozenset(MATRICES)
    found = walked(policy, decayed)
    for name, theta in draws(0, torch.float64).items():
        m = torch.zeros_like(theta)
        for step in range(5):
            g = draws(step + 1)[name].double()
            theta = theta * (1 - 1e-4 * (name in decayed)) - 1e-3 * (0.9 * m + 0.1 * g).sign()
            m = 0.99 * m + 0.01 * g
        torch.testing.assert_close(found.params[name].double(), theta, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.exp_avg[name].double(), m, rtol=1e-5, atol=1e-6)
    assert all((v == 0).all() for v in found.exp_avg_sq.values())


@pytest.mark.parametrize("rule", RULES)
def test_where_parameters_are_held_the_moments_move_alone(rule, make_policy):
    policy = make_policy(update_rule=rule)
    held = walked(make_policy(update_rule=rule, update="hold"), frozenset(SHAPES))
    moved = walked(policy, frozenset(SHAPES))
    for name, theta in draws(0).items():
        assert torch.equal(held.params[name], theta)
        assert not torch.equal(moved.params[name], theta)
        for group in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(getattr(held, group)[name], getattr(moved, group)[name])
    frozen = make_policy(update_rule=rule, frozen=frozenset(MATRICES))
    left = walked(frozen, frozenset(SHAPES))
    assert all(torch.equal(left.params[name], draws(0)[name]) for name in MATRICES)


@pytest.mark.parametrize("hold", [False, True], ids=["applied", "held"])
@pytest.mark.parametrize("rule", RULES)
def test_the_product_with_the_jacobian_is_the_updates_own_difference(rule, hold, make_policy):
    """In float64, from moments that are real: ⟨pull, J·d⟩ by a central difference, ⟨Jᵀ·pull, d⟩."""
    policy = make_policy(
        update_rule=rule, learning_rate=0.05, eps=1e-3, update="hold" if hold else "apply"
    )
    decayed, grads = frozenset(MATRICES), draws(9, torch.float64)
    start = walked(make_policy(update_rule=rule), decayed, 3, torch.float64)
    ways = {g: draws(20 + i, torch.float64) for i, g in enumerate((*GROUPS, "grads"))}
    for name in SHAPES:
        ways["exp_avg_sq"][name] *= 0.1 * start.exp_avg_sq[name]  # where v is 0 it stays 0

    def after(h):
        state = start.clone()
        for group in GROUPS:
            for name in SHAPES:
                getattr(state, group)[name].add_(ways[group][name], alpha=h)
        moved = {name: grads[name] + h * ways["grads"][name] for name in SHAPES}
        update(state, moved, policy, decayed, "loop")
        return state

    pulls = {group: draws(40 + i, torch.float64) for i, group in enumerate(GROUPS)}

    def along(state):
        return sum(
            float((getattr(state, group)[name] * pulls[group][name]).sum())
            for group in GROUPS
            for name in SHAPES
        )

    h = 1e-6
    wanted = (along(after(h)) - along(after(-h))) / (2 * h)
    there = after(0.0)
    adjoint = Adjoint(*({n: x.clone() for n, x in pulls[group].items()} for group in GROUPS))
    moments = (there.exp_avg, there.exp_avg_sq)
    bars = pull_back(adjoint, moments, grads, start.counters.updates, policy, decayed)
    found = sum(
        float((getattr(adjoint, group)[name] * ways[group][name]).sum())
        for group in GROUPS
        for name in SHAPES
    ) + sum(float((bars[name] * ways["grads"][name]).sum()) for name in SHAPES)
    assert found == pytest.approx(wanted, rel=2e-7)


def test_a_run_of_each_goes_on_bit_for_bit_and_its_influence_is_its_replays(recipe_of, runs):
    for rule in BESIDE_ADAMW:
        recipe = recipe_of(
            **{
                "train.update_rule": rule,
                "train.steps": 6,
                "train.held_out_every": 0,
                "train.learning_rate": 1e-3,
                "model.layers": 1,
                "model.width": 16,
                "data.sequence_length": 16,
                "checkpoint.every": 3,
            }
        )
        train(recipe, name=rule, recipe_name="tiny", runs=runs)
        run = open_run(runs, rule)
        again = run.replay(run.load(3), 6)
        assert again.digest() == run.load(6).digest()
        if rule == "lion":
            with pytest.raises(ForensicsError, match="Lion moves parameters by a sign") as e:
                influence(run, 3, 6)
            assert e.value.kind == "usage"
            continue
        found = influence(run, 3, 6, precision="float64")
        assert np.isfinite(found.by_sequence).all() and np.abs(found.by_sequence).max() > 0
        assert found.condition is not None and found.condition.finding == "agrees"
