"""What must hold on a GPU, bit for bit: replay, recording, resuming; and the GPU's own kernels
against float64.

`bash benchmarks/gpu.sh` runs these on a GPU; its dry mode, and every other run of the tests, runs
them on the CPU, where the same code takes its CPU forms.
"""

import math
import os

import pytest
import torch

from forensics import config, identity
from forensics.config import UNDECAYED
from forensics.model import families
from forensics.model.decoder import Decoder
from forensics.model.initialize import initialize
from forensics.model.loss import loss_and_gradient
from forensics.model.step_model import StepModel
from forensics.observe.attention import attention_statistics
from forensics.observe.tensors import TensorProbe
from forensics.step.state import Counters, TrainState
from forensics.train import loop
from forensics.train.advance import advance
from forensics.train.optimizer import decayed_names
from forensics.train.run import open_run

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float32
PRECISION = "bf16" if DEVICE == "cuda" else "fp32"
COMPILING = pytest.param(
    True,
    marks=pytest.mark.skipif(
        DEVICE == "cpu" and "FORENSICS_GPU_SH" not in os.environ,
        reason="train/test_compiled.py has it on the CPU",
    ),
)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings(
        "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
    ),
    # torch's compiler and Triton say such things on some machines
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Online softmax is disabled:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*TensorFloat32.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Please use the new API settings:UserWarning"),
]


def recipe(**settings):
    raw = {
        "data": {
            "source": "stdlib/json",
            "tokenizer": "bytes",
            "sequence_length": 64,
            "held_out": 4,
        },
        "model": {"family": "llama", "layers": 2, "width": 128, "heads": 2},
        "train": {
            "steps": 12,
            "batch": 8,
            "micro_batch": 4,
            "learning_rate": 1e-2,
            "warmup": 2,
            "threads": 1,
            "device": DEVICE,
            "held_out_every": 6,
        },
        "checkpoint": {"every": 4},
        "record": {"flush_every": 5},
    }
    for dotted, value in settings.items():
        section, key = dotted.split(".", 1)
        raw[section][key] = value
    return config.from_dict(raw)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def trained(folder):
    """`trained(**settings)`: a run of that recipe, trained once."""
    made = {}

    def build(**settings):
        key = repr(sorted(settings.items()))
        if key not in made:
            name = f"run{len(made)}"
            loop.train(recipe(**settings), name=name, recipe_name="gpu", runs=folder)
            made[key] = open_run(folder, name)
        return made[key]

    return build


def states(run):
    return {step: run.load(step).digest() for step in run.saved_steps()}


def rows(run, table):
    found = run.table(table).to_pylist()
    return [
        {k: repr(v) for k, v in row.items() if k not in ("seconds", "created", "state_digest")}
        for row in found
    ]


@pytest.mark.parametrize("compiled", [False, COMPILING])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_replay_verifies_every_bit_of_a_run(family, compiled, trained):
    from replay.verify import verify

    run = trained(**{"model.family": family, "train.compile": compiled})
    assert run.header.device == DEVICE and run.header.precision == PRECISION
    report = verify(run.runs, run.name, 0, 12)
    assert report.bitwise, report.sentence()
    assert report.compared >= 12


@pytest.mark.parametrize("compiled", [False, COMPILING])
@pytest.mark.parametrize("level", ["off", "dense"])
def test_no_level_of_recording_changes_a_bit(level, compiled, trained):
    light = trained(**{"model.family": "llama", "train.compile": compiled})
    other = trained(**{"model.family": "llama", "train.compile": compiled, "record.level": level})
    assert states(other) == states(light)
    assert [(r["loss"], r["grad_norm"]) for r in rows(other, "steps")] == [
        (r["loss"], r["grad_norm"]) for r in rows(light, "steps")
    ]


@pytest.mark.parametrize("compiled", [False, COMPILING])
def test_activation_checkpointing_changes_no_bit(compiled, trained):
    kept = trained(**{"model.family": "llama", "train.compile": compiled})
    again = trained(
        **{"model.family": "llama", "train.compile": compiled, "train.checkpoint_activations": True}
    )
    assert states(again) == states(kept)


def test_a_run_that_was_stopped_and_resumed_is_the_run_that_was_not(folder, trained):
    import signal

    whole = trained(**{"model.family": "llama", "train.compile": False})

    def stop(done, total, note=""):
        if done == 6:
            signal.raise_signal(signal.SIGINT)

    settings = {"model.family": "llama", "train.compile": False}
    outcome = loop.train(
        recipe(**settings), name="stopped", recipe_name="gpu", runs=folder, progress=stop
    )
    assert outcome.interrupted
    loop.train(recipe(**settings), name="stopped", recipe_name="gpu", runs=folder, resume=True)
    resumed = open_run(folder, "stopped")
    for table in ("steps", "layers", "heads", "tensors", "sequences"):
        assert rows(resumed, table) == rows(whole, table), table
    assert {s: d for s, d in states(resumed).items() if s in states(whole)} == states(whole)


def model_of(shape, micro_batch=4, **decoder):
    built = Decoder(shape, DEVICE, **decoder)
    return StepModel(
        built,
        micro_batch,
        "fused",
        decayed_names(built.names, UNDECAYED, True),
        DEVICE,
        shape.vocabulary - 1,
    )


@pytest.mark.parametrize(
    "knobs", [{}, {"document_mask": True}, {"kv_heads": 2}], ids=["plain", "documents", "grouped"]
)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_family_trains_strictly_and_twice_alike(
    family, knobs, make_shape, make_batch, make_policy
):
    if "kv_heads" in knobs and family in ("gpt2", "gpt_neox"):
        knobs = {}
    shape = make_shape(family, width=64, vocabulary=97, length=48, **knobs)
    seen = set()
    for _ in range(2):
        params = {n: t.to(DEVICE) for n, t in initialize(shape, "normal", 0).items()}
        state, model = TrainState.start(params), model_of(shape)
        for step in range(2):
            advance(
                state,
                make_batch(8, 48, 97, step),
                make_policy(z_loss=1e-4, precision=PRECISION),
                model,
            )
        seen.add(state.digest())
    assert len(seen) == 1
    assert identity.fingerprint(
        device=DEVICE, threads=1, compiled=False, optimizer="fused", precision=PRECISION
    )["deterministic"]


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_cross_entropy_in_chunks_is_the_plain_one_and_twice_alike(dtype):
    g = torch.Generator().manual_seed(0)
    hidden, matrix = torch.randn(5000, 64, generator=g), torch.randn(9001, 64, generator=g)
    targets, weight = torch.randint(0, 9001, (5000,), generator=g), torch.rand(5000, generator=g)
    h, W, t, w = (x.to(DEVICE) for x in (hidden, matrix, targets, weight))
    found = [
        loss_and_gradient(h, W, t, w, 7.0, 1e-3, statistics=s, dtype=dtype) for s in (True, False)
    ]
    for name in ("ce", "logz", "grad_hidden", "grad_unembedding"):
        assert torch.equal(getattr(found[0], name), getattr(found[1], name)), name
    H, U = (x.to(dtype).double().requires_grad_() for x in (h, W))
    logits = H @ U.T
    if (
        dtype == torch.bfloat16
    ):  # the product itself is rounded; what comes after it is what is tested
        logits = logits + (logits.detach().to(dtype).double() - logits.detach())
    logz = logits.logsumexp(1)
    ce = logz - logits.gather(1, t[:, None])[:, 0]
    grads = torch.autograd.grad((w.double() * (ce + 1e-3 * logz.square())).sum() / 7.0, (H, U))
    close = 1e-5 if dtype == torch.float32 else 2e-2
    largest, p = logits.detach().amax(1), logits.detach().softmax(1)
    ours, rows_ = found[0], found[0].rows
    for a, b, tolerance in (
        (ours.ce, ce, close),
        (ours.logz, logz, close),
        (ours.grad_hidden, grads[0], close),
        (ours.grad_unembedding, grads[1], close),
        (rows_.largest, largest, close),
        (rows_.entropy, torch.special.entr(p).sum(1), close),
        (rows_.mean_square, logits.detach().square().mean(1), close),
    ):
        assert float((a.detach() - b.detach()).abs().max()) <= tolerance * float(
            b.detach().abs().max()
        )


@pytest.mark.skipif(DEVICE == "cpu", reason="a GPU's memory is what is measured")
def test_the_loss_holds_no_more_than_a_chunk_of_logits():
    N, D, V = 65536, 64, 32768
    h, W = torch.randn(N, D, device=DEVICE), torch.randn(V, D, device=DEVICE)
    targets, weight = torch.zeros(N, dtype=torch.int64, device=DEVICE), torch.ones(N, device=DEVICE)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss_and_gradient(h, W, targets, weight, float(N), 0.0, dtype=torch.bfloat16)
    assert torch.cuda.max_memory_allocated() - before < N * V * 4 / 8


def test_statistics_of_attention_are_those_of_float64():
    g = torch.Generator().manual_seed(1)
    q, k = (
        torch.randn(2, 300, heads, 64, generator=g).transpose(1, 2).to(HALF).to(DEVICE)
        for heads in (4, 2)
    )
    found = attention_statistics(q, k).columns()
    s = q.double() @ k.double().repeat_interleave(2, 1).transpose(2, 3) / 8.0
    mask = torch.ones(300, 300, dtype=torch.bool, device=DEVICE).tril()
    p = s.masked_fill(~mask, -math.inf).softmax(-1)
    entropy = torch.special.entr(p).sum(-1)
    wanted = {
        "attn_logit_max": s.masked_fill(~mask, -math.inf).amax((0, 2, 3)),
        "attn_entropy_mean": entropy.mean((0, 2)),
        "sink_mass": p[:, :, 1:, 0].mean((0, 2)),
        "q_norm_max": q.double().norm(dim=-1).amax((0, 2)),
    }
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-4, atol=1e-5, msg=name)


def test_statistics_of_tensors_are_those_of_the_cpu(make_policy):
    g = torch.Generator().manual_seed(2)
    sizes = {"a.weight": (300, 700), "b.weight": (5,), "c.weight": (70_001,)}

    def filled(scale=1.0):
        return {n: torch.randn(s, generator=g) * scale for n, s in sizes.items()}

    params, grads, m = filled(), filled(1e-2), filled(1e-3)
    v = {n: t.square() * (t > -1e-3) for n, t in filled(1e-3).items()}
    new = {n: t - 0.01 for n, t in params.items()}
    found = {}
    for device in ("cpu", DEVICE):
        groups = [{n: t.to(device) for n, t in x.items()} for x in (params, m, v, grads, new)]
        state = TrainState(groups[0], groups[1], groups[2], Counters(9, 9, 9))
        norms = {n: float(t.norm()) for n, t in grads.items()}
        probe = TensorProbe(state, groups[3], norms, 0.7, make_policy())
        state.params = groups[4]
        found[device] = probe.measure(state, frozenset({"a.weight"}), True).columns()
    for column, values in found["cpu"].items():
        if column == "tensor":
            assert found[DEVICE][column] == values
        else:
            assert found[DEVICE][column] == pytest.approx(values, rel=1e-4), column
