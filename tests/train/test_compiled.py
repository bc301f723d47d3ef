"""`train.compile`: one graph for every family, bits that recording does not change, an identity of
its own.

The three runs share one compiled block: compiling costs most of the time here, and torch keeps what
it compiled.
"""

import pytest
import torch
import torch._dynamo.utils

from forensics import identity
from forensics.errors import ForensicsError
from forensics.model import families
from forensics.model.decoder import Decoder
from forensics.train.run import build_model, check_compiler

# Dynamo asks every tensor for .grad and hides the warning by a hook, which comes too late where
# warnings are errors.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)

SETTINGS = {"train.steps": 3, "train.held_out_every": 0, "data.held_out": 0, "checkpoint.every": 0}


@pytest.fixture(scope="module")
def compiled(train_run):
    """Level → the run it gave, and the number of graphs that all of them took."""
    identity.enable_determinism(1)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    found = {
        level: train_run(
            f"compiled-{level}", **SETTINGS, **{"train.compile": True, "record.level": level}
        )
        for level in ("off", "light", "dense")
    }
    return found, torch._dynamo.utils.counters["stats"]["unique_graphs"] - before


@pytest.fixture(scope="module")
def eager(train_run):
    return train_run("eager", **SETTINGS)


def test_no_level_of_recording_changes_a_bit_of_a_compiled_run(compiled):
    found, _ = compiled
    digests = {
        level: run.table("steps", ["state_digest"]).to_pydict()["state_digest"]
        for level, run in found.items()
    }
    assert digests["off"] == digests["light"] == digests["dense"]
    assert len(set(digests["off"])) == 3 and None not in digests["off"]
    assert [run.table("heads").num_rows for run in found.values()] == [0, 3 * 2 * 2, 3 * 2 * 2]
    assert [run.table("tokens").num_rows for run in found.values()] == [0, 0, 3 * 4 * 32]


def test_all_of_them_run_one_graph_that_says_what_the_eager_block_says(compiled, eager):
    found, graphs = compiled
    assert graphs == 1, "every layer, step and level shares the block's graph"
    losses = [run.table("steps", ["loss"]).to_pydict()["loss"] for run in (found["light"], eager)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name in ("attn_entropy_mean", "attn_logit_spread", "sink_mass"):
        heads = [run.table("heads", [name]).to_pydict()[name] for run in (found["light"], eager)]
        assert heads[0] == pytest.approx(heads[1], rel=1e-3, abs=1e-4), name


def test_a_compiled_run_replays_bit_for_bit(compiled):
    run = compiled[0]["light"]
    assert run.state_at(3).digest() == run.load(3).digest()
    replayed = run.replay(run.load(0), 3)
    assert replayed.digest() == run.load(3).digest()


def test_the_fingerprint_keeps_compiled_and_eager_apart(compiled, eager):
    prints = [run.header.fingerprint for run in (compiled[0]["light"], eager)]
    assert [p["compile"] for p in prints] == [True, False]
    assert identity.fingerprint_difference(*prints) == ["compile", "compiler"]
    assert prints[0]["compiler"] and prints[1]["compiler"] is None


@pytest.mark.parametrize("family", families.FAMILIES)
@torch._dynamo.config.patch(recompile_limit=64)  # as a compiled decoder sets it
def test_every_family_is_one_graph_with_the_eager_gradients(family, make_shape, random_params):
    """Traced and differentiated by the compiler, run without its C++: an eager stand-in for what it
    would generate.
    """
    knobs = {
        "qwen3": {"document_mask": True},
        "olmo": {"clip_qkv": 0.5},
        "olmo3": {"window": 5, "sliding_layers": (0,)},
        "smollm3": {"unrotated_layers": (0,)},
    }
    shape = make_shape(family, layers=1, **knobs.get(family, {}))
    decoder, params = Decoder(shape), random_params(shape, scale=1.0)
    weights = {
        n.removeprefix("layers.0."): p.requires_grad_(True)
        for n, p in params.items()
        if n.startswith("layers.0.")
    }
    x = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    angles = decoder._rope(0, 16)
    mask = torch.ones(2, 1, 16, 16, dtype=torch.bool).tril() if shape.document_mask else None
    mask = decoder._within_window(mask, 16, x.device)
    found = []
    for block in (
        decoder.block,
        torch.compile(decoder.block, backend="aot_eager", fullgraph=True, dynamic=False),
    ):
        out = block(x, weights, angles, mask)
        assert [name for name, part in out._asdict().items() if part.requires_grad] == ["resid"]
        grads = torch.autograd.grad(out.resid.square().sum(), [x, *weights.values()])
        found.append(([*out], [*grads]))
    for eager, traced in zip(*found):  # outputs, then gradients
        # of all gradients: that of a key's bias is 0 but for rounding, because a softmax ignores
        # shifts
        scale = max(float(each.detach().abs().max()) for each in eager)
        for a, b in zip(eager, traced):
            torch.testing.assert_close(b, a, rtol=2e-4, atol=2e-5 * scale)


def test_without_a_compiler_one_line_says_so(monkeypatch, recipe_of, make_shape):
    recipe = recipe_of(**{"train.compile": True})
    monkeypatch.setenv("CXX", "/nonexistent")
    with pytest.raises(ForensicsError) as e:
        build_model(recipe, make_shape(), "cpu", 60)
    assert e.value.kind == "device" and "\n" not in str(e.value)
    assert "CXX=/nonexistent" in str(e.value) and "--set train.compile=false" in str(e.value)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ForensicsError, match=r"found no g\+\+"):
        build_model(recipe, make_shape(), "cpu", 60)
    build_model(recipe_of(), make_shape(), "cpu", 60)  # eager runs need none


def test_without_pythons_headers_one_line_says_so(monkeypatch, recipe_of, make_shape, tmp_path):
    monkeypatch.setattr("sysconfig.get_path", lambda name, scheme: str(tmp_path))
    with pytest.raises(ForensicsError, match=r"Python\.h") as e:
        build_model(recipe_of(**{"train.compile": True}), make_shape(), "cpu", 60)
    assert e.value.kind == "device"


def test_on_cuda_the_kernels_of_an_eager_run_want_a_compiler_too(monkeypatch):
    monkeypatch.setenv("CC", "/nonexistent")
    with pytest.raises(
        ForensicsError, match=r"training on CUDA wants .* found CC=/nonexistent"
    ) as e:
        check_compiler("cuda", False)
    assert "train.device=cpu" in str(e.value)
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None
    )  # without Triton they take their other forms
    check_compiler("cuda", False)
    monkeypatch.setenv("CXX", "/nonexistent")
    check_compiler("cpu", False)
