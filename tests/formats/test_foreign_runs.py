"""Each format's checkpoint, by its own writer where there is one, gives its own model's logits."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from forensics.config import from_dict
from forensics.errors import ForensicsError
from forensics.formats import recognised
from forensics.model.decoder import Decoder, unembedding
from forensics.model.knobs import shape_of
from forensics.model.shape import parameter_shapes

FIXTURES = Path(__file__).parents[1] / "fixtures" / "foreign" / "formats"
LOGITS_CLOSE = 2e-5  # largest difference of a logit, fp32 against fp32
# folder → format, its moments' tensor that truth.npz holds, our name of it
CASES = {
    "olmo-pt/step3-unsharded": ("olmo", "layers.1.mlp.norm.weight"),
    "olmo-safetensors/step3-unsharded": ("olmo", "layers.1.mlp.norm.weight"),
    "olmo-core/step3": ("olmo-core", "layers.0.mlp.norm.weight"),
    "nanogpt": ("nanogpt", "layers.1.mlp.norm.weight"),
    "nanogpt-no-bias": ("nanogpt", "layers.1.mlp.norm.weight"),
    "litgpt-llama/step-00000003": ("litgpt", "layers.1.mlp.norm.weight"),
    "litgpt-neox/step-00000003": ("litgpt", "layers.1.mlp.norm.weight"),
    "gpt-neox/global_step7": ("gpt-neox", None),
    "gpt-neox-layers/global_step7": ("gpt-neox", None),
    "nanotron-1/7": ("nanotron", None),
    "nanotron-2/7": ("nanotron", None),
    "nanotron-interleaved/7": ("nanotron", None),
    "megatron-core/iter_0000007": ("megatron-core", None),
}


def read(folder):
    return recognised(folder).read_run(folder)


@pytest.mark.parametrize("name", CASES)
def test_logits_and_moments_are_those_of_the_model_that_wrote_it(name):
    kind, moment = CASES[name]
    folder = FIXTURES / name
    run, truth = read(folder), np.load(folder / "truth.npz")
    assert run.format == kind and run.unplaced == ()
    (checkpoint,) = run.checkpoints
    assert checkpoint.step == (3 if moment else 7)
    rows = checkpoint.params["embed.weight"].shape[0]
    section = run.recipe["model"]
    shape = shape_of(from_dict({"model": section}).model, rows, section["max_positions"])
    params = {name: tensor.read().clone() for name, tensor in checkpoint.params.items()}
    assert {n: tuple(p.shape) for n, p in params.items()} == parameter_shapes(shape)
    assert all(t.shape == parameter_shapes(shape)[n] for n, t in checkpoint.params.items())
    hidden = Decoder(shape).hidden(params, torch.from_numpy(truth["tokens"]))
    logits = hidden @ unembedding(params).T
    assert (logits - torch.from_numpy(truth["logits"])).abs().max() < LOGITS_CLOSE
    if moment is None:
        assert checkpoint.exp_avg is None
        return
    assert checkpoint.updates == 3
    assert set(checkpoint.exp_avg) == set(checkpoint.exp_avg_sq) == set(params)
    assert np.array_equal(checkpoint.exp_avg_sq[moment].read().numpy(), truth["moment"])


@pytest.mark.parametrize("name", CASES)
def test_every_setting_of_the_recipe_is_a_key_of_ours(name):
    run = read(FIXTURES / name)
    recipe = from_dict(run.recipe)  # unknown keys and values out of range are refused
    assert recipe.train.steps >= 3 and recipe.data.sequence_length == 16


def test_what_olmos_configuration_says_is_said_in_our_words():
    run = read(FIXTURES / "olmo-pt")
    assert run.recipe["data"] == {"sequence_length": 16, "window": "inside", "mask_repeats": True}
    train = run.recipe["train"]
    assert train["steps"] == 50 and train["batch"] == 4 and train["micro_batch"] == 2
    assert train["undecayed"] == ["embed.weight", "positions.weight"]
    assert (train["warmup"], train["warmup_from"], train["min_lr"]) == (2, 0.1, 0.1)
    assert (train["loss_over"], train["clip_eps"], train["z_loss"]) == ("tokens", 1e-6, 1e-4)
    assert run.recipe["model"]["clip_qkv"] == 0.5
    assert run.tokens.paths == ("/data/part-0.npy", "/data/part-1.npy")
    assert (run.tokens.kind, run.tokens.dtype, run.tokens.eot) == ("bare", "uint32", 0)
    assert (run.order.rule, run.order.seed, run.order.epoch) == ("olmo", 11, 0)
    (checkpoint,) = run.checkpoints
    assert (checkpoint.sequences, checkpoint.tokens, checkpoint.epoch) == (12, 192, 0)


def test_what_olmo_cores_configuration_says_is_said_in_our_words():
    run = read(FIXTURES / "olmo-core")
    train = run.recipe["train"]
    assert train["undecayed"] == ["embed.weight"] and train["loss_over"] == "unmasked"
    assert (train["steps"], train["batch"], train["warmup"]) == (10, 4, 2)
    assert (run.order.rule, run.order.seed, run.order.epoch) == ("olmo_core", 78, 1)
    (checkpoint,) = run.checkpoints
    assert (checkpoint.sequences, checkpoint.tokens, checkpoint.epoch) == (12, 192, 1)


def test_no_batch_of_nanogpt_can_be_found_and_it_says_why():
    run = read(FIXTURES / "nanogpt")
    assert run.order.rule == "unknown" and "random place" in run.order.why_unknown
    assert "train.bin" in run.order.still_known
    assert run.recipe["train"]["warmup_from"] == 1 / 6


def edited(tmp_path, name, file, old, new):
    """Copy a fixture with one text of one file changed."""
    folder = tmp_path / "copy"
    shutil.copytree(FIXTURES / name, folder)
    path = folder / file
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    return folder


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "says"),
    [
        ("olmo-pt", "step3-unsharded/config.yaml", b"alibi: false", b"alibi: true", "alibi"),
        (
            "olmo-pt",
            "step3-unsharded/config.yaml",
            b"residual_dropout: 0.0",
            b"residual_dropout: 0.1",
            "residual_dropout",
        ),
        ("olmo-pt", "step3-unsharded/config.yaml", b"n_layers: 2", b"n_layers: 3", "blocks.2"),
        ("olmo-pt", "step3-unsharded/config.yaml", b"n_layers: 2", b"n_layers: many", "n_layers"),
        (
            "olmo-pt",
            "step3-unsharded/config.yaml",
            b"max_grad_norm_ratio: null",
            b"max_grad_norm_ratio: 2.0",
            "max_grad_norm_ratio",
        ),
        (
            "olmo-pt",
            "step3-unsharded/config.yaml",
            b"seed: 11",
            b"seed: !!python/object/apply:os.system [ls]",
            "YAML",
        ),
        (
            "olmo-pt",
            "step3-unsharded/config.yaml",
            b"mlp_hidden_size: 64",
            b"mlp_hidden_size: 96",
            "belong together",
        ),
        ("olmo-core", "step3/config.json", b'"reordered_norm"', b'"peri_norm"', "peri_norm"),
        ("olmo-core", "step3/config.json", b'"silu"', b'"gelu"', "activation"),
        (
            "olmo-core",
            "step3/config.json",
            b"CosWithWarmup",
            b"InvSqrtWithWarmup",
            "InvSqrtWithWarmup",
        ),
        (
            "litgpt-llama",
            "step-00000003/model_config.yaml",
            b"n_expert: 0",
            b"n_expert: 8",
            "n_expert",
        ),
        ("gpt-neox", "global_step7/configs/toy.yml", b'"rotary"', b'"alibi"', "pos_emb"),
        (
            "nanotron-1",
            "7/model_config.json",
            b'"rope_scaling": null',
            b'"rope_scaling": 2',
            "rope_scaling",
        ),
    ],
)
def test_what_is_not_built_is_refused_by_name(tmp_path, name, file, old, new, says):
    if says == "InvSqrtWithWarmup":  # newer files say a type beside the class
        old, new = b'"cos_with_warmup"', b'"InvSqrtWithWarmup"'
    folder = edited(tmp_path, name, file, old, new)
    with pytest.raises(ForensicsError, match=says) as e:
        read(folder)
    assert "\n" not in str(e.value) and e.value.kind == "data"


def test_a_missing_shard_is_named(tmp_path):
    for name, pattern, says in [
        ("gpt-neox-layers", "global_step7/layer_02-model_01-*", "2 ranks"),
        (
            "nanotron-2",
            "7/model/model/decoder/0/pp_block/attn/o_proj/*tp-rank-1*",
            "is a shard missing",
        ),
        ("megatron-core", "iter_0000007/__0_0.distcp", "no such file"),
    ]:
        folder = tmp_path / name
        shutil.copytree(FIXTURES / name, folder)
        (file,) = folder.glob(pattern)
        file.unlink()
        with pytest.raises(ForensicsError, match=says):
            [t.read() for c in read(folder).checkpoints for t in c.params.values()]


def test_a_nanochat_checkpoint_is_refused_by_what_lacks(tmp_path):
    (tmp_path / "model_000010.pt").write_bytes(b"")
    (tmp_path / "meta_000010.json").write_text('{"step": 10, "model_config": {"n_kv_head": 2}}')
    with pytest.raises(ForensicsError, match="ReLU²"):
        read(tmp_path)


def test_olmo_weighs_its_z_loss_by_1e_4_whatever_its_configuration_says(tmp_path):
    """Its trainer's loss is never handed the multiplier: seen in logged z-losses and moments."""
    folder = tmp_path / "step3-unsharded"
    shutil.copytree(FIXTURES / "olmo-pt" / "step3-unsharded", folder)
    config = folder / "config.yaml"
    stated = "softmax_auxiliary_loss: true\nauxiliary_loss_multiplier: 1.0e-05\n"
    lines = [line for line in config.read_text().splitlines(True) if "auxiliary" not in line]
    config.write_text("".join(lines) + stated)
    run = read(folder)
    assert run.recipe["train"]["z_loss"] == 1e-4
    assert any("auxiliary_loss_multiplier = 1e-05" in note for note in run.notes)
