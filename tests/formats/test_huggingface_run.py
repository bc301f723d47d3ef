"""Folders, shards, revisions and caches of Hugging Face as runs; what is not whole is named."""

import json

import pytest
import torch
from safetensors.torch import save_file

from forensics.errors import ForensicsError
from forensics.formats import huggingface_hub_name, recognised
from forensics.formats.huggingface_folder import read_config, read_weights
from forensics.formats.huggingface_run import read_run
from forensics.formats.revision_names import known_run, parse, parse_all
from forensics.model import hugging_face
from forensics.train import checkpoint


def write(folder, shape, params, shards=1, **change):
    """Write a folder as transformers does; `change` alters its configuration, None removes."""
    folder.mkdir(parents=True, exist_ok=True)
    config = hugging_face.to_hf_config(shape, 60) | change
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = hugging_face.to_hf_tensors(params, shape)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return tensors
    names, file_of = sorted(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = names[i::shards]
        save_file({name: tensors[name] for name in part}, folder / file)
        file_of |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": file_of}))
    return tensors


@pytest.mark.parametrize(
    ("name", "stage", "step", "tokens"),
    [
        ("step143000", "", 143000, None),
        ("step556000-tokens2460B", "", 556000, 2_460 * 10**9),
        ("step150-tokens1B", "", 150, 10**9),
        ("stage1-step928646-tokens3896B", "stage1", 928646, 3_896 * 10**9),
        ("stage2-ingredient3-step11931-tokens50B", "stage2-ingredient3", 11931, 50 * 10**9),
        ("stage3-step1000-tokens1.5T", "stage3", 1000, 1_500 * 10**9),
        ("stage1-step-40000", "stage1", 40000, None),
        ("ckpt_007", "", 7, None),
        ("checkpoint-400", "", 400, None),
    ],
)
def test_a_name_tells_stage_and_step(name, stage, step, tokens):
    found = parse(name)
    assert (found.stage_name, found.step, found.named_tokens) == (stage, step, tokens)


def test_names_that_tell_no_step_are_kept_and_the_others_sorted_by_training():
    names = ["stage2-step10", "main", "stage1-step1000", "step150-tokens1B", "stage1-step200", "x1"]
    found = parse_all(names)
    assert [r.name for r in found.parsed] == [
        "step150-tokens1B",  # before there were stages: the first one's
        "stage1-step200",
        "stage1-step1000",
        "stage2-step10",
    ]
    assert found.unparsed == ("main", "x1")
    assert [r.step for r in parse_all(["step1000", "step64", "step512"]).parsed] == [64, 512, 1000]


@pytest.mark.parametrize(
    ("repository", "name", "updates", "tokens"),
    [
        ("EleutherAI/pythia-1.4b-v0", "step1000", 500, 2_097_152_000),
        ("EleutherAI/pythia-1.4b", "step1000", 1000, 2_097_152_000),
        ("EleutherAI/pythia-160m-deduped-v0", "step3000", 1500, 6_291_456_000),
        ("allenai/OLMo-7B-hf", "step1000-tokens4B", 1000, 4_423_680_000),
        ("allenai/Olmo-3-1025-7B", "stage1-step1000", 1000, 4_194_304_000),
        ("allenai/Olmo-3-1025-7B", "stage2-step1000", 1000, None),
        ("HuggingFaceTB/SmolLM3-3B-checkpoints", "stage2-step-3480000", 3480000, 8_210_350_080_000),
        ("LLM360/Amber", "ckpt_000", 0, 1_706_976 * 2048),
    ],
)
def test_updates_and_tokens_of_a_public_run_are_counted_and_not_read_off_its_name(
    repository, name, updates, tokens
):
    known = known_run(repository)
    assert (known.updates(parse(name)), known.tokens(parse(name))) == (updates, tokens)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "olmo3", "qwen2"])
def test_a_sharded_folder_gives_every_tensor_lazily_under_our_names(
    family, make_shape, random_params, tmp_path
):
    shape = make_shape(family)
    params = random_params(shape)
    write(tmp_path, shape, params, shards=3)
    save_file({"tok_embeddings.weight": torch.zeros(2, 2)}, tmp_path / "consolidated.safetensors")
    save_file({"model.norm.weight": torch.zeros(32)}, tmp_path / "backup.safetensors")
    assert recognised(tmp_path).read_run is not None
    run = read_run(tmp_path)
    (only,) = run.checkpoints
    assert (only.step, run.unplaced) == (0, ())
    for name, tensor in only.params.items():
        assert torch.equal(tensor.read(), params[name]) and tensor.shape == params[name].shape
    loaded, found, _ = checkpoint.load_hf_folder(tmp_path)
    assert found == shape and all(torch.equal(loaded[name], params[name]) for name in params)


def damaged(kind, folder, tensors):
    if kind == "shard":
        (folder / "model-00002-of-00002.safetensors").unlink()
    elif kind == "no index":
        (folder / "model.safetensors.index.json").unlink()
        (folder / "model-00001-of-00002.safetensors").unlink()
    elif kind == "cut":
        file = folder / "model-00001-of-00002.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
    elif kind == "empty":
        (folder / "model-00001-of-00002.safetensors").write_bytes(b"")
    elif kind == "outside":
        index = json.dumps({"weight_map": {"a": "../a.safetensors"}})
        (folder / "model.safetensors.index.json").write_text(index)
    elif kind == "index":
        (folder / "model.safetensors.index.json").write_text("{")


@pytest.mark.parametrize(
    ("kind", "error", "named"),
    [
        ("shard", "missing", "model-00002-of-00002.safetensors"),
        ("no index", "missing", "model-00001-of-00002.safetensors"),
        ("cut", "data", "model-00001-of-00002.safetensors"),
        ("empty", "data", "model-00001-of-00002.safetensors"),
        ("outside", "data", "../a.safetensors"),
        ("index", "data", "model.safetensors.index.json"),
    ],
)
def test_a_file_that_is_missing_or_damaged_is_named_in_every_way_in(
    kind, error, named, make_shape, random_params, tmp_path
):
    shape = make_shape("llama")
    damaged(kind, tmp_path, write(tmp_path, shape, random_params(shape), shards=2))
    ways = (
        read_run,
        checkpoint.load_hf_folder,
        lambda folder: read_weights(folder, read_config(folder)),
    )
    for way in ways:
        with pytest.raises(ForensicsError) as e:
            way(tmp_path)
        assert e.value.kind == error and named in e.value.message, e.value
        assert "\n" not in str(e.value)


def test_every_tensor_of_another_name_or_shape_is_listed_with_the_nearest(
    make_shape, random_params, tmp_path
):
    shape = make_shape("llama")
    tensors = write(tmp_path, shape, random_params(shape))
    tensors["model.layers.0.mlp.up_projection.weight"] = tensors.pop(
        "model.layers.0.mlp.up_proj.weight"
    )
    tensors["model.norm.weight"] = torch.ones(31)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].long()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ForensicsError) as e:
        read_run(tmp_path)
    for part in (
        "3 of 21 tensors",
        "model.layers.0.mlp.up_proj.weight, found none (nearest: model.layers.0.mlp.up_projection",
        "model.norm.weight: wanted shape (32,), found (31,)",
        "found int64",
    ):
        assert part in e.value.message


def test_olmos_own_tensors_in_a_hugging_face_folder_are_said_to_be_that(
    make_shape, random_params, tmp_path
):
    shape = make_shape("olmo")
    write(tmp_path, shape, random_params(shape))
    save_file(
        {"transformer.blocks.0.att_proj.weight": torch.zeros(3, 3)}, tmp_path / "model.safetensors"
    )
    with pytest.raises(ForensicsError, match="OLMo's own format"):
        read_run(tmp_path)
    with pytest.raises(ForensicsError, match="OLMo's own format"):
        checkpoint.load_hf_folder(tmp_path)


@pytest.mark.parametrize("family", ["llama", "gpt2", "smollm3"])
def test_where_nothing_says_that_embeddings_are_tied_the_class_does_in_every_command(
    family, make_shape, random_params, tmp_path
):
    usual = family != "llama"
    shape = make_shape(
        family, tied=True, **({"unrotated_layers": (1,)} if family[0] == "s" else {})
    )
    params = random_params(shape)
    write(tmp_path, shape, params, tie_word_embeddings=None)
    if usual:
        assert read_run(tmp_path).recipe["model"]["tied"]
        assert checkpoint.load_hf_folder(tmp_path).shape.tied
        assert read_weights(tmp_path, read_config(tmp_path)).tied
        return
    for way in (
        read_run,
        checkpoint.load_hf_folder,
        lambda folder: read_weights(folder, read_config(folder)),
    ):
        with pytest.raises(ForensicsError, match="not tied by default") as e:
            way(tmp_path)
        assert '"tie_word_embeddings": true' in e.value.hint and "lm_head.weight" in e.value.hint


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("says", [True, False])
def test_two_matrices_that_are_stored_are_two_where_they_differ_and_said_where_they_are_equal(
    equal, says, make_shape, random_params, tmp_path
):
    shape = make_shape("llama")
    params = random_params(shape)
    if equal:
        params["unembed.weight"] = params["embed.weight"].clone()
    write(tmp_path, shape, params, tie_word_embeddings=says)
    run, loaded = read_run(tmp_path), checkpoint.load_hf_folder(tmp_path)
    weights = read_weights(tmp_path, read_config(tmp_path))
    tied = says and equal
    assert run.recipe["model"]["tied"] == loaded.shape.tied == weights.tied == tied
    assert bool(run.notes[1:]) == bool(loaded.notes) == (says != equal)
    if not tied:
        assert torch.equal(loaded.params["unembed.weight"], params["unembed.weight"])


@pytest.fixture(scope="module")
def cached(make_shape, random_params, tmp_path_factory):
    """A cache as huggingface_hub lays it out: two revisions by name, one commit without."""
    shape = make_shape("gpt_neox")
    home = tmp_path_factory.mktemp("hub")
    place = home / "models--EleutherAI--pythia-160m-v0"
    (place / "refs").mkdir(parents=True)
    for step, commit in ((1000, "a" * 40), (143000, "b" * 40), (7, "c" * 40)):
        write(place / "snapshots" / commit, shape, random_params(shape, seed=step))
    for name, commit in (("step1000", "a"), ("step143000", "b"), ("main", "b"), ("step9", "d")):
        (place / "refs" / name).write_text(commit * 40)
    return home


def test_a_cached_repository_is_a_run_with_its_revisions(cached, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(cached))
    run = read_run(huggingface_hub_name.local_folder("EleutherAI/pythia-160m-v0"))
    assert [(c.step, c.tokens) for c in run.checkpoints] == [
        (500, 2_097_152_000),
        (71500, 299_892_736_000),
    ]
    assert set(run.unparsed) == {"main", "c" * 40}
    assert run.recipe["data"] == {"sequence_length": 2048} and run.recipe["train"]["batch"] == 2048
    one = read_run(huggingface_hub_name.local_folder("EleutherAI/pythia-160m-v0@step1000"))
    assert [c.step for c in one.checkpoints] == [500]
    commit = read_run(huggingface_hub_name.local_folder("EleutherAI/pythia-160m-v0@ccccccc"))
    assert [c.step for c in commit.checkpoints] == [0]


def test_a_revision_that_is_not_there_lists_the_nearest_and_no_network_says_what_to_fetch(
    cached, monkeypatch
):
    monkeypatch.setenv("HF_HUB_CACHE", str(cached))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ForensicsError) as e:
        huggingface_hub_name.local_folder("EleutherAI/pythia-160m-v0@step2000")
    assert e.value.kind == "missing" and "step1000" in e.value.hint
    with pytest.raises(ForensicsError) as e:
        huggingface_hub_name.local_folder("allenai/OLMo-2-0425-1B@stage1-step0-tokens0B")
    assert e.value.kind == "missing"
    for part in ("config.json", "*.safetensors", "tokenizer.json", str(cached)):
        assert part in e.value.hint
    with pytest.raises(ForensicsError) as e:
        huggingface_hub_name.local_folder("a b")
    assert e.value.kind == "usage"


def test_checkpoints_of_the_trainer_are_states_of_one_run(make_shape, random_params, tmp_path):
    shape = make_shape("llama")
    for step in (20, 100, 3):
        folder = tmp_path / f"checkpoint-{step}"
        write(folder, shape, random_params(shape, seed=step))
        state = {"global_step": step, "log_history": [{"step": step, "loss": 1.0}]}
        (folder / "trainer_state.json").write_text(json.dumps(state))
    run = read_run(tmp_path)
    assert [c.step for c in run.checkpoints] == [3, 20, 100]
    assert run.logs == (tmp_path / "checkpoint-100" / "trainer_state.json",)
    (tmp_path / "checkpoint-20").rename(tmp_path / "last")
    assert read_run(tmp_path / "last").checkpoints[0].step == 20
    assert read_run(tmp_path).unparsed == ("last",)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_moments_of_the_trainer_come_in_under_our_names(
    family, make_shape, random_params, tmp_path
):
    from transformers import AutoModelForCausalLM

    shape = make_shape(family)
    folder = tmp_path / "checkpoint-2"
    write(folder, shape, random_params(shape))
    model = AutoModelForCausalLM.from_pretrained(folder)
    named = dict(model.named_parameters())
    groups = [
        {"params": [p for p in named.values() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in named.values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    for _ in range(2):
        model(torch.arange(12)[None], labels=torch.arange(12)[None]).loss.backward()
        optimizer.step()
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    (only,) = read_run(tmp_path).checkpoints
    assert only.updates == only.step == 2
    for kind in ("exp_avg", "exp_avg_sq"):
        theirs = {name: optimizer.state[p][kind] for name, p in named.items()}
        wanted = hugging_face.from_hf_tensors(theirs, shape)
        found = getattr(only, kind)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name].read(), wanted[name]) for name in wanted)
    train = read_run(tmp_path).recipe["train"]
    assert (train["betas"], train["weight_decay"], train["eps"]) == ([0.9, 0.95], 0.1, 1e-8)
    one = torch.optim.SGD(model.parameters(), lr=1e-3)
    torch.save(one.state_dict(), folder / "optimizer.pt")
    run = read_run(tmp_path)
    assert run.checkpoints[0].exp_avg is None and any("no moments" in note for note in run.notes)


@pytest.mark.parametrize(
    ("change", "kind", "named"),
    [
        ({"model_type": None}, "config", "model_type None"),
        ({"model_type": "olmo_hybrid"}, "config", "olmo_hybrid"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "config", "linear"),
        ({"attention_bias": True}, "config", "attention_bias"),
    ],
)
def test_a_model_of_another_kind_is_refused_in_one_line(
    change, kind, named, make_shape, random_params, tmp_path
):
    shape = make_shape("llama")
    write(tmp_path, shape, random_params(shape), **change)
    for way in (read_run, checkpoint.load_hf_folder):
        with pytest.raises(ForensicsError) as e:
            way(tmp_path)
        assert e.value.kind == kind and named in e.value.message and "\n" not in str(e.value)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ForensicsError):
        read_run(tmp_path)
    with pytest.raises(ForensicsError, match=r"no config\.json"):
        (tmp_path / "empty").mkdir()
        read_run(tmp_path / "empty")
