"""Influence against autograd through the whole window, against leave-one-out replays, and where it
cannot be trusted.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from forensics.config import Data
from forensics.errors import ForensicsError
from forensics.model.decoder import Decoder, unembedding
from forensics.step.skip_step import SkipWindow
from forensics.train.advance import fold
from forensics.train.loop import train
from forensics.train.run import open_run
from replay.blame import window_memory
from replay.blame.adjoint import Smooth
from replay.blame.metagradient import influence
from replay.blame.probe_target import probe_target
from replay.blame.window_memory import longest_window, memory_needed

STEPS, B, T = 8, 4, 16
VARIANTS = {
    "llama, tied": ("llama", {"tied": True}),
    "gpt2": ("gpt2", {}),
    "gpt_neox": ("gpt_neox", {}),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {"kv_heads": 2}),
    "qwen3, inside documents": ("qwen3", {"document_mask": True, "activation": "gelu_tanh"}),
}


class Case:
    """A window with everything in it: clipping, z-loss, decay, a held, a zero, an empty, a skipped
    and a frozen step.
    """

    def __init__(self, family, knobs, make_shape, make_model, make_batch, make_policy, start_state):
        self.shape = make_shape(family, **knobs)
        self.model = make_model(self.shape, micro_batch=2)
        self.run = SimpleNamespace(
            model=self.model, shape=self.shape, stream=self.stream, policy=self.policy, name="made"
        )
        self.start = start_state(self.shape, scale=2.0)
        losses = tuple(4.0 + 2.0 * (i % 2) for i in range(64))
        self.start.window = SkipWindow(losses, tuple(10.0 * (i % 2) for i in range(64)))
        self.batches = [make_batch(B, T, seed=k) for k in range(STEPS)]
        for k, batch in enumerate(self.batches):
            batch.weight[k % B, 3:7] = 0.0  # masked tokens
            batch.weight[1] = 1.5
        self.batches[5].weight.mul_(100.0)  # a loss that SkipStep does not let through
        self.probe = make_batch(3, T, seed=99)
        plain = make_policy(
            learning_rate=5e-3, z_loss=1e-3, skip_step=True, clip=0.5, weight_decay=0.3
        )
        self.policies = [plain] * STEPS
        self.policies[1] = replace(plain, update="hold")
        self.policies[2] = replace(plain, clip=0.0, learning_rate=2e-3)
        self.policies[3] = replace(plain, update="none")
        self.policies[4] = replace(
            plain, frozen=frozenset({"embed.weight", "layers.0.attn.k_proj.weight"})
        )
        self.policies[6] = replace(plain, update="zero")

    def stream(self, step):
        return self.batches[step]

    def policy(self, counters):
        return self.policies[counters.step]

    def target(self, params):
        return self.ce(params, self.probe)[0].mean()

    def ce(self, params, batch):
        """(ce, logz), each (B·T,), by the decoder's own plain form."""
        inputs, targets = batch.tokens[:, :-1], batch.tokens[:, 1:]
        documents = None
        if self.shape.document_mask:
            ends = (inputs == self.model.eot).long()
            documents = ends.cumsum(1) - ends
        hidden = Decoder(self.shape, plain=True).hidden(params, inputs, documents_BT=documents)
        logits = F.linear(hidden, unembedding(params)).reshape(-1, self.shape.vocabulary)
        return F.cross_entropy(logits, targets.reshape(-1), reduction="none"), logits.logsumexp(1)

    def by_autograd(self, moved):
        """d target / d every token's weight (STEPS, B, T), float64, one graph through all steps
        that `moved`.
        """
        w = torch.ones(STEPS, B, T, dtype=torch.float64, requires_grad=True)
        theta = {n: p.double().requires_grad_() for n, p in self.start.params.items()}
        m, v = ({n: torch.zeros_like(p) for n, p in theta.items()} for _ in range(2))
        updates, clipped = 0, 0
        for k in moved:
            p, batch = self.policies[k], self.batches[k]
            # a frozen tensor goes on as the same one: without a name of its own, its gradient would
            # take in earlier steps
            theta = {n: t.view_as(t) for n, t in theta.items()}
            ce, logz = self.ce(theta, batch)
            weight = (w[k] * batch.weight.double()).reshape(-1)
            loss = (weight * (ce + p.z_loss * logz.square())).sum() / batch.denominator
            names = [n for n in theta if n not in p.frozen]
            grads = dict(
                zip(names, torch.autograd.grad(loss, [theta[n] for n in names], create_graph=True))
            )
            norm = sum(g.square().sum() for g in grads.values()).sqrt()
            if 0 < p.clip < norm:
                grads, clipped = {n: g * (p.clip / norm) for n, g in grads.items()}, clipped + 1
            updates += 1
            (b1, b2), rate = p.betas, p.learning_rate
            for n, g in grads.items():
                m[n] = b1 * m[n] + (1 - b1) * g
                v[n] = b2 * v[n] + (1 - b2) * g * g
                if p.update == "hold":
                    continue
                seen = v[n] > 0
                root = torch.where(seen, torch.where(seen, v[n], 1.0) / (1 - b2**updates), 0.0)
                root = torch.where(seen, torch.where(seen, root, 1.0).sqrt(), 0.0)
                decay = p.weight_decay if n in self.model.decayed else 0.0
                theta = theta | {
                    n: theta[n] * (1 - rate * decay)
                    - rate * (m[n] / (1 - b1**updates)) / (root + p.eps)
                }
        assert clipped >= 2, "clipping is to be part of it"
        value = self.target(theta)
        return float(value.detach()), torch.autograd.grad(value, w)[0].numpy()


@pytest.fixture
def case(make_shape, make_model, make_batch, make_policy, start_state):
    def build(variant="llama, tied"):
        return Case(
            *VARIANTS[variant], make_shape, make_model, make_batch, make_policy, start_state
        )

    return build


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_autograd_through_the_whole_window(variant, case):
    made = case(variant)
    value, exact = made.by_autograd([0, 1, 2, 4, 7])
    ask = {"start": made.start, "precision": "float64", "tokens": True, "check": False}
    found = influence(made.run, 0, STEPS, made.target, **ask)
    assert found.value == pytest.approx(value, rel=1e-11)
    assert np.abs(exact).max() > 1e-6
    assert np.linalg.norm(found.by_token - exact) <= 1e-9 * np.linalg.norm(exact)
    np.testing.assert_allclose(
        found.by_sequence, exact.sum(2), rtol=1e-7, atol=1e-9 * np.abs(exact).max()
    )
    assert (found.by_sequence[[3, 5, 6]] == 0).all(), (
        "steps that were left out, skipped or not applied move nothing"
    )
    assert (found.by_sequence[[0, 1, 2, 4, 7]] != 0).all()
    assert (found.by_token[0, 0, 3:7] == 0).all(), "masked tokens"


def test_two_replays_in_float64_confirm_it_where_the_optimizer_is_smooth(case):
    made = case()
    made.policies = [replace(p, eps=0.01) for p in made.policies]
    found = influence(made.run, 0, STEPS, made.target, start=made.start, precision="float64")
    condition = found.condition
    assert condition.ok and condition.relative_error < 1e-6, condition
    assert (
        condition.measured == pytest.approx(condition.predicted, rel=1e-4)
        and condition.predicted != 0
    )


def test_the_first_updates_of_a_run_are_signs_and_called_badly_conditioned(case):
    """From moments of zero an update is η·sign(g): two weights a hair apart can move a parameter
    either way.
    """
    made = case()
    found = influence(made.run, 0, STEPS, made.target, start=made.start, precision="float64")
    assert not found.condition.ok
    assert (
        "no smooth function" in found.condition.sentence
        and "Trust the replays" in found.condition.sentence
    )


def test_in_float32_it_is_the_same_to_rounding(case):
    made = case()
    made.policies = [replace(p, eps=0.01) for p in made.policies]
    _, exact = made.by_autograd([0, 1, 2, 4, 7])
    found = influence(made.run, 0, STEPS, made.target, start=made.start)
    assert np.linalg.norm(found.by_sequence - exact.sum(2)) <= 1e-4 * np.linalg.norm(exact.sum(2))
    assert found.condition.ok and found.by_token is None


def test_kept_states_and_all_states_give_the_same_bits(case, monkeypatch):
    made = case()
    ask = {"start": made.start, "tokens": True, "check": False}
    whole = influence(made.run, 0, STEPS, made.target, **ask)
    monkeypatch.setattr(window_memory, "HOLD", 0)
    assert window_memory.segment(1, STEPS) == 2
    kept = influence(made.run, 0, STEPS, made.target, **ask)
    assert np.array_equal(kept.by_token, whole.by_token) and kept.value == whole.value
    assert kept.condition is None


def test_micro_batches_of_its_own_change_nothing_but_rounding(case, monkeypatch):
    made = case()
    ask = {"start": made.start, "precision": "float64", "check": False}
    whole = influence(made.run, 0, STEPS, made.target, **ask).by_sequence
    monkeypatch.setattr("replay.blame.adjoint.ACTIVATIONS", 1)
    pieces = influence(made.run, 0, STEPS, made.target, **ask).by_sequence
    assert np.linalg.norm(pieces - whole) <= 1e-11 * np.linalg.norm(whole)


def test_the_start_is_left_as_it_was_and_the_states_are_the_runs_to_the_bit(base):
    start = base.state_at(40)
    digest, seen = start.digest(), []
    own = probe_target(base, base.batches.held_out())

    def target(params):
        seen.append({n: p.detach().clone() for n, p in params.items()})
        return own(params)

    found = influence(base, 40, 45, target, start=start, check=False)
    assert start.digest() == digest
    end = base.state_at(45)
    assert all(torch.equal(seen[0][n], p) for n, p in end.params.items())
    assert found.value == pytest.approx(float(own(end.params)), rel=1e-6)
    assert found.advances > 5 and found.seconds > 0


def test_the_probe_target_is_the_mean_loss_and_its_gradient(base, make_batch):
    batch = make_batch(3, 32, 256)
    batch.weight[0, :9] = 0.0
    target = probe_target(base, batch)
    params = {n: p.requires_grad_() for n, p in base.load(25).params.items()}
    value = target(params)
    logits = (
        Decoder(base.shape, plain=True).hidden(params, batch.tokens[:, :-1]) @ unembedding(params).T
    )
    ce = F.cross_entropy(
        logits.reshape(-1, base.shape.vocabulary), batch.tokens[:, 1:].reshape(-1), reduction="none"
    )
    exact = (ce * batch.weight.reshape(-1)).sum() / batch.weight.sum()
    assert value.item() == pytest.approx(exact.item(), rel=1e-6)
    with torch.no_grad():
        assert target(params).item() == pytest.approx(exact.item(), rel=1e-6)
    for a, b in zip(*(torch.autograd.grad(2 * x, list(params.values())) for x in (value, exact))):
        assert (a - b).norm() <= 1e-4 * b.norm() + 1e-9


def left_out(run, start, first, last, target):
    """Change of the target for each sequence left out, (K, B): a real replay of the rest of the
    window for each.
    """
    states, state = [], start.clone()
    for step in range(first, last):
        states.append(state.clone())
        fold(state, run.stream, run.policy, step + 1, run.model)
    with torch.no_grad():
        whole = float(target(state.params))
        rows = []
        for k, at in enumerate(states):
            row = []
            for i in range(len(run.stream(first + k).tokens)):

                def stream(step, k=k, i=i):
                    batch = run.stream(step)
                    if step != first + k:
                        return batch
                    weight = batch.weight.clone()
                    weight[i] = 0.0
                    return replace(batch, weight=weight)

                row.append(
                    float(target(fold(at.clone(), stream, run.policy, last, run.model).params))
                    - whole
                )
            rows.append(row)
    return np.array(rows)


def test_it_ranks_sequences_as_leave_one_out_replays_do(tmp_path, recipe_of):
    """Windows after warm-up, three seeds, the median of Spearman's correlation; 16 steps in
    benchmarks/blame.py.
    """
    found = []
    for seed, (first, last) in enumerate([(34, 40), (34, 40), (32, 40)]):
        settings = {
            "train.seed": seed,
            "train.batch": 8,
            "train.micro_batch": 8,
            "train.learning_rate": 3e-3,
        }
        settings |= {
            "data.sequence_length": 16,
            "model.layers": 1,
            "train.steps": 40,
            "record.level": "off",
        }
        recipe = recipe_of(**settings)
        train(recipe, name=f"ranked-{seed}", recipe_name="tiny", runs=tmp_path)
        run = open_run(tmp_path, f"ranked-{seed}")
        start, target = run.state_at(first), probe_target(run, run.batches.held_out())
        replayed = left_out(run, start, first, last, target)
        ours = influence(run, first, last, target, start=start)
        assert ours.condition.ok, ours.condition.sentence
        ranks = [x.ravel().argsort().argsort() for x in (-ours.by_sequence, replayed)]
        found.append(np.corrcoef(ranks)[0, 1])
    assert np.median(found) >= 0.9, found


def test_a_chaotic_window_is_called_badly_conditioned_and_float64_is_offered(base):
    def policy(counters):
        return replace(base.policy(counters), learning_rate=1.0)

    found = influence(base, 50, 66, policy=policy)
    assert not found.condition.ok
    assert "float64" in found.condition.sentence and "replays" in found.condition.sentence


def test_a_skipped_nan_leaks_nothing_and_an_applied_one_is_said(case):
    made = case()
    made.batches[5].weight.fill_(float("nan"))
    made.policies = [replace(p, eps=0.01) for p in made.policies]
    ask = {"start": made.start, "precision": "float64"}
    found = influence(made.run, 0, STEPS, made.target, **ask)
    assert np.isfinite(found.by_sequence).all() and found.condition.ok
    made.policies = [replace(p, skip_step=False) for p in made.policies]
    found = influence(made.run, 0, STEPS, made.target, **ask)
    assert (
        not np.isfinite(found.value)
        and not found.condition.ok
        and "finite" in found.condition.sentence
    )


def test_a_target_that_nothing_moves_has_no_influence(case):
    made = case()
    found = influence(made.run, 0, STEPS, lambda params: torch.tensor(2.5), start=made.start)
    assert found.value == 2.5 and (found.by_sequence == 0).all() and found.condition.ok


def test_progress_goes_to_its_end(base, monkeypatch):
    monkeypatch.setattr(window_memory, "HOLD", 0)
    seen = []
    influence(base, 40, 47, progress=lambda done, total, note="": seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, 29)) and {total for _, total in seen} == {28}


def test_memory_is_a_few_copies_of_the_root_of_the_window(make_shape):
    shape = make_shape("llama", layers=8, width=448, heads=7, vocabulary=8192, length=512)
    run = SimpleNamespace(
        shape=shape,
        header=SimpleNamespace(parameters=25_000_000, steps=10_000),
        recipe=SimpleNamespace(data=Data(sequence_length=512), train=SimpleNamespace(batch=16)),
    )
    needed = memory_needed(run, 64)
    assert 60 * 4 * 25_000_000 < needed < 16e9
    assert memory_needed(run, 64, "float64") < 16e9
    longest = longest_window(run, needed)
    assert longest >= 64 and memory_needed(run, longest) <= needed < memory_needed(run, 2 * longest)
    assert longest_window(run, 1 << 20) == 0


@pytest.mark.parametrize(
    ("ask", "kind", "words"),
    [
        ({"precision": "bf16"}, "usage", "float64"),
        ({"last": 10}, "usage", "at least one step"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(ask, kind, words, base):
    ask = {"first": 10, "last": 12} | ask
    with pytest.raises(ForensicsError, match=words) as e:
        influence(base, **ask)
    assert e.value.kind == kind and "\n" not in str(e.value)


def test_without_held_out_sequences_a_target_is_asked_for(tmp_path, recipe_of):
    train(
        recipe_of(**{"data.held_out": 0, "train.steps": 4}),
        name="all-used",
        recipe_name="tiny",
        runs=tmp_path,
    )
    run = open_run(tmp_path, "all-used")
    with pytest.raises(ForensicsError, match="holds no sequences out"):
        influence(run, 1, 3)


def test_the_smooth_decoder_is_the_decoder(make_shape, random_params, make_batch):
    tokens = make_batch().tokens[:, :-1]
    for family, knobs in VARIANTS.values():
        shape = make_shape(family, **knobs)
        params = {n: p.double() for n, p in random_params(shape).items()}
        a, b = (
            decoder.hidden(params, tokens) for decoder in (Smooth(shape, "cpu"), Decoder(shape))
        )
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
