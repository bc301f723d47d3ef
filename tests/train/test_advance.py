"""One step: the tree of micro-batches, threads, what each kind of update moves, SkipStep, frozen
tensors.
"""

import pytest
import torch

from forensics import identity
from forensics.model import families
from forensics.model.initialize import initialize
from forensics.step.state import Counters, TrainState
from forensics.train.advance import advance, fold, token_losses


class Gradients:
    """Keeps a step's gradients; clipping would scale them in place, so copies."""

    wants = frozenset()

    def begin(self, state, policy): ...
    def tap(self, site, x): ...
    def end(self, state, result): ...

    def gradients(self, state, grads, result):
        self.grads = {n: g.clone() for n, g in grads.items()}


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_number_of_threads_changes_no_bit(
    family, make_shape, make_model, make_batch, make_policy
):
    """At sizes that PyTorch splits among threads, and that 3 threads do not split evenly (7·147
    rows).
    """
    shape = make_shape(family, layers=1, width=192, vocabulary=257, length=147)
    start = initialize(shape, "normal", 0)
    seen = {}
    for threads in (1, 2, 3, 4):
        identity.enable_determinism(threads)
        state, model = (
            TrainState.start({n: p.clone() for n, p in start.items()}),
            make_model(shape, 7),
        )
        results = [
            advance(state, make_batch(7, 147, 257, step), make_policy(z_loss=1e-4), model)
            for step in range(2)
        ]
        losses = token_losses(state.params, make_batch(7, 147, 257, 9), model, "fp32")
        seen[threads] = (
            [(r.loss, r.grad_norm, r.grad_norms) for r in results],
            state.digest(),
            losses.sum(1).tolist(),
        )
    assert seen[1] == seen[2] == seen[3] == seen[4]


@pytest.mark.parametrize("optimizer", ["foreach", "loop"])
def test_threads_change_no_bit_of_the_other_implementations(
    optimizer, make_shape, make_model, make_batch, make_policy
):
    shape = make_shape("llama", layers=1, width=192, vocabulary=257, length=147)
    seen = set()
    for threads in (1, 3):
        identity.enable_determinism(threads)
        state = TrainState.start(initialize(shape, "normal", 0))
        advance(state, make_batch(7, 147, 257), make_policy(), make_model(shape, 7, optimizer))
        seen.add(state.digest())
    assert len(seen) == 1


def gradients(batch, micro_batch, shape, start_state, make_model, make_policy):
    watch, state = Gradients(), start_state(shape)
    result = advance(
        state, batch, make_policy(clip=0.0, update="zero"), make_model(shape, micro_batch), watch
    )
    return watch.grads, result


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 6, 12])
def test_micro_batches_give_the_same_bits_each_time_and_the_plain_sum_to_rounding(
    micro_batch, make_shape, start_state, make_model, make_batch, make_policy
):
    shape, batch = make_shape("qwen3", kv_heads=2, tied=True), make_batch(12)
    batch.weight[3] = 0.0
    first, result = gradients(batch, micro_batch, shape, start_state, make_model, make_policy)
    again, _ = gradients(batch, micro_batch, shape, start_state, make_model, make_policy)
    whole, plain = gradients(batch, 12, shape, start_state, make_model, make_policy)
    for name in whole:
        assert torch.equal(first[name], again[name]), name
        assert (first[name] - whole[name]).abs().max() <= 2e-6 * whole[name].abs().max() + 1e-9, (
            name
        )
    assert result.loss == pytest.approx(plain.loss, rel=1e-6)
    assert result.grad_norm == pytest.approx(plain.grad_norm, rel=1e-6)
    torch.testing.assert_close(result.ce, plain.ce, rtol=1e-5, atol=1e-6)


def test_micro_batches_are_added_in_one_fixed_tree(
    make_shape, start_state, make_model, make_batch, make_policy
):
    """Five leaves: (0 + 1) + (2 + (3 + 4)), to the bit; no other order of five fp32 sums would give
    it everywhere.
    """
    shape, batch = make_shape(), make_batch(5)
    found, _ = gradients(batch, 1, shape, start_state, make_model, make_policy)
    leaves = []
    for i in range(5):
        cut = slice(i, i + 1)
        one = type(batch)(
            batch.tokens[cut], batch.weight[cut], batch.denominator, batch.sequence[cut]
        )
        leaves.append(gradients(one, 1, shape, start_state, make_model, make_policy)[0])
    for name, grad in found.items():
        a, b, c, d, e = (leaf[name] for leaf in leaves)
        assert torch.equal(grad, (a + b) + (c + (d + e))), name
    assert any(
        not torch.equal(found[n], sum((leaf[n] for leaf in leaves[1:]), leaves[0][n]))
        for n in found
    )


@pytest.mark.parametrize("tied", [False, True])
def test_a_frozen_tensor_keeps_its_value_and_moments_and_the_others_their_gradients(
    tied, make_shape, start_state, make_model, make_batch, make_policy
):
    shape = make_shape("llama", tied=tied)
    frozen = frozenset({"embed.weight", "layers.1.mlp.gate.weight", "norm.weight"})
    state, free = start_state(shape), start_state(shape)
    model = make_model(shape)
    before = state.clone()
    a, b = Gradients(), Gradients()
    advance(state, make_batch(), make_policy(frozen=frozen, clip=0.0), model, a)
    advance(free, make_batch(), make_policy(clip=0.0), model, b)
    for name in state.params:
        if name in frozen:
            for group in ("params", "exp_avg", "exp_avg_sq"):
                assert torch.equal(getattr(state, group)[name], getattr(before, group)[name]), name
            assert name not in a.grads
        else:
            assert torch.equal(a.grads[name], b.grads[name]) and torch.equal(
                state.params[name], free.params[name]
            ), name
    assert not any(p.requires_grad for p in state.params.values())


@pytest.mark.parametrize(
    ("update", "moves", "moments", "updates"),
    [
        ("apply", True, True, 1),
        ("hold", False, True, 1),
        ("zero", False, False, 0),
        ("none", False, False, 0),
    ],
)
@pytest.mark.parametrize("advance_schedule", [True, False])
def test_each_kind_of_update_moves_what_the_design_says(
    update,
    moves,
    moments,
    updates,
    advance_schedule,
    make_shape,
    start_state,
    make_model,
    make_batch,
    make_policy,
):
    shape = make_shape()
    state = start_state(shape)
    before = state.clone()
    policy = make_policy(update=update, advance_schedule=advance_schedule)
    result = advance(state, make_batch() if update != "none" else None, policy, make_model(shape))
    assert result.action == update and (result.loss is None) == (update == "none")
    assert state.counters == Counters(1, int(advance_schedule), updates)
    for group, changed in (("params", moves), ("exp_avg", moments), ("exp_avg_sq", moments)):
        same = [torch.equal(x, getattr(before, group)[n]) for n, x in getattr(state, group).items()]
        assert not any(same) if changed else all(same), group


def test_a_zero_update_keeps_a_nan_out_of_the_state(
    make_shape, start_state, make_model, make_batch, make_policy
):
    shape = make_shape()
    state, batch = start_state(shape), make_batch()
    batch.weight[0, 0] = float("nan")
    digest = (before := state.clone()).digest()
    result = advance(state, batch, make_policy(update="zero"), make_model(shape))
    assert result.loss != result.loss
    before.counters = state.counters
    assert state.digest() == before.digest() != digest


def test_clipping_scales_the_gradient_to_the_norm_asked_for(
    make_shape, start_state, make_model, make_batch, make_policy
):
    shape, model = make_shape(), make_model(make_shape())
    state = start_state(shape)
    result = advance(state, make_batch(), make_policy(clip=0.1), model)
    assert result.clip_scale == 0.1 / result.grad_norm < 1
    scaled = advance(start_state(shape), make_batch(), make_policy(clip=0.1, clip_eps=0.5), model)
    assert scaled.clip_scale == 0.1 / (scaled.grad_norm + 0.5)
    # after one update from zero moments, m = (1 − β₁)·g̃
    norm = sum(float(m.double().square().sum()) for m in state.exp_avg.values()) ** 0.5
    assert norm == pytest.approx(0.1 * 0.1, rel=1e-5)
    free = start_state(shape)
    assert advance(free, make_batch(), make_policy(clip=1e9), model).clip_scale == 1.0
    none = start_state(shape)
    advance(none, make_batch(), make_policy(clip=0.0), model)
    assert free.digest() == none.digest()


def test_an_infinite_gradient_norm_clips_nothing_to_zero(
    make_shape, start_state, make_model, make_batch, make_policy
):
    shape = make_shape()
    state, batch = start_state(shape), make_batch()
    batch.weight[0, 0] = float("inf")
    result = advance(state, batch, make_policy(), make_model(shape))
    assert result.clip_scale == 1.0 and not torch.isfinite(state.params["unembed.weight"]).all()


def skip_run(state, shape, steps, make_model, make_batch, make_policy, bad=()):
    """Folds to step `steps`; the batches of `bad` weigh a thousand times too much. Returns the
    actions.
    """

    def stream(step):
        batch = make_batch(2, 8, seed=step)
        if step in bad:
            batch.weight.mul_(1000.0)
        return batch

    actions = []
    fold(
        state,
        stream,
        lambda c: make_policy(skip_step=True),
        steps,
        make_model(shape, 2),
        after=lambda s, r: actions.append(r.action),
    )
    return actions


def test_skip_step_skips_a_planted_batch_and_nothing_else(
    make_shape, start_state, make_model, make_batch, make_policy
):
    shape = make_shape("llama", layers=1, width=16)
    state, at = start_state(shape), {}
    actions = skip_run(state, shape, 70, make_model, make_batch, make_policy)
    at[70] = state.clone()
    actions += skip_run(state, shape, 80, make_model, make_batch, make_policy, bad={70, 75})
    assert [i for i, a in enumerate(actions) if a == "skipped"] == [70, 75]
    assert state.counters == Counters(80, 80, 78)
    one = at[70].clone()
    skip_run(one, shape, 71, make_model, make_batch, make_policy, bad={70})
    assert all(
        torch.equal(one.params[n], at[70].params[n])
        and torch.equal(one.exp_avg[n], at[70].exp_avg[n])
        for n in one.params
    )
    assert (
        len(one.window.losses) == 71
    )  # what was skipped enters the window: after a shift it learns the level


def test_skip_step_resumes_bit_for_bit_from_a_checkpoint_in_the_middle(
    make_shape, start_state, make_model, make_batch, make_policy, tmp_path
):
    from forensics.train import checkpoint

    shape = make_shape("llama", layers=1, width=16)
    bad = {66, 70}
    whole = start_state(shape)
    actions = skip_run(whole, shape, 75, make_model, make_batch, make_policy, bad)
    state = start_state(shape)
    first = skip_run(state, shape, 68, make_model, make_batch, make_policy, bad)
    path, _, _ = checkpoint.save(tmp_path, state, shape, None, 60)
    loaded, _ = checkpoint.load(path)
    assert loaded.window == state.window and len(loaded.window.losses) == 68
    assert first + skip_run(loaded, shape, 75, make_model, make_batch, make_policy, bad) == actions
    assert loaded.digest() == whole.digest() and "skipped" in actions[68:]
    forgetful, _ = checkpoint.load(
        path
    )  # what the window is worth: without it the batch at 70 goes in
    forgetful.window = type(forgetful.window)()
    assert "skipped" not in skip_run(forgetful, shape, 75, make_model, make_batch, make_policy, bad)


def test_token_losses_are_those_of_the_step_whatever_the_micro_batch(
    make_shape, start_state, make_model, make_batch, make_policy
):
    shape, batch = make_shape("llama", document_mask=True), make_batch(vocabulary=60)
    batch.tokens[:, 5] = 60  # ends the one document before it
    state = start_state(shape, scale=4.0)
    before = state.clone()
    result = advance(state, batch, make_policy(), make_model(shape, 2))
    for micro_batch in (1, 3, None):
        ce = token_losses(before.params, batch, make_model(shape, 2), "fp32", micro_batch)
        torch.testing.assert_close(ce, result.ce, rtol=1e-5, atol=1e-6)
    free = token_losses(before.params, batch, make_model(make_shape("llama"), 2), "fp32")
    torch.testing.assert_close(free[:, :6], ce[:, :6], rtol=1e-5, atol=1e-6)
    assert (free[:, 6:] - ce[:, 6:]).abs().max() > 1e-4


def test_the_digest_sees_every_part_of_the_state(make_shape, start_state):
    state = start_state(make_shape())
    seen = {state.digest()}
    assert state.clone().digest() in seen
    for group in ("params", "exp_avg", "exp_avg_sq"):
        changed = state.clone()
        getattr(changed, group)["norm.weight"][3] += 1e-7
        seen.add(changed.digest())
    for counters in (Counters(1, 0, 0), Counters(0, 1, 0), Counters(0, 0, 1)):
        changed = state.clone()
        changed.counters = counters
        seen.add(changed.digest())
    changed = state.clone()
    changed.window = changed.window.push(1.0, 2.0)
    seen.add(changed.digest())
    changed = state.clone()
    changed.params["norm.weight"] = changed.params["norm.weight"].view(2, -1)
    seen.add(changed.digest())
    assert len(seen) == 9
