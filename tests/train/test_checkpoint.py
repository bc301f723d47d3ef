"""A checkpoint holds the state to the bit, and says so when it does not."""

import errno
import json
import os
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from forensics.data.tokenize import bytes_tokenizer
from forensics.errors import ForensicsError
from forensics.model import hugging_face
from forensics.model.families import FAMILIES
from forensics.store import writer
from forensics.train import checkpoint
from forensics.train.advance import advance


@pytest.fixture
def trained(make_shape, start_state, make_model, make_batch, make_policy):
    """A small state after three updates, SkipStep's window in use, and its shape."""
    shape = make_shape("olmo2", layers=1, width=16, kv_heads=2)
    state = start_state(shape)
    for step in range(3):
        advance(
            state, make_batch(2, 8, seed=step), make_policy(skip_step=True), make_model(shape, 2)
        )
    return state, shape


@pytest.fixture
def tokenizer(tmp_path):
    bytes_tokenizer().save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.fixture
def saved(trained, tmp_path, tokenizer):
    state, shape = trained
    path, digest, size = checkpoint.save(tmp_path / "checkpoints", state, shape, tokenizer, 60)
    assert digest == state.digest() and size == sum(
        f.stat().st_size for f in path.iterdir() if f.name != "manifest.json"
    )
    return path


def test_save_and_load_give_back_every_bit(saved, trained):
    state, shape = trained
    found, found_shape = checkpoint.load(saved)
    assert found.digest() == state.digest() and found_shape == shape
    for group in ("params", "exp_avg", "exp_avg_sq"):
        ours, theirs = getattr(state, group), getattr(found, group)
        assert list(ours) == list(theirs) and all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert (
        found.counters == state.counters
        and found.window == state.window
        and len(found.window.losses) == 3
    )


def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(
    saved, trained, make_model, make_batch, make_policy
):
    state, shape = trained
    loaded, _ = checkpoint.load(saved)
    for s in (state, loaded):
        advance(s, make_batch(2, 8, seed=9), make_policy(), make_model(shape, 2))
    assert loaded.digest() == state.digest()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.0, 1e-42])
def test_odd_numbers_are_saved_as_they_are(bad, trained, tmp_path):
    state, shape = trained
    state.params["norm.weight"][0] = bad
    path, digest, _ = checkpoint.save(tmp_path / "odd", state, shape, None, 60)
    assert checkpoint.load(path)[0].digest() == digest


def test_the_folder_holds_no_pickle_and_what_transformers_needs(saved):
    assert sorted(f.name for f in saved.iterdir()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    document = json.loads((saved / "state.json").read_text())
    assert document["counters"] == {"step": 3, "schedule": 3, "updates": 3}
    assert set(load_file(saved / "optimizer.safetensors")) == {
        n for n in document["tensors"] if not n.startswith("params/")
    }


@pytest.mark.parametrize("where", ["first", "middle", "last"])
@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "manifest.json",
    ],
)
@pytest.mark.parametrize("bit", [0, 5])
def test_one_flipped_bit_in_any_file_is_an_integrity_error(name, where, bit, saved):
    file = saved / name
    data = bytearray(file.read_bytes())
    data[{"first": 0, "middle": len(data) // 2, "last": -1}[where]] ^= 1 << bit
    file.write_bytes(data)
    with pytest.raises(ForensicsError) as e:
        checkpoint.load(saved)
    assert e.value.kind == "integrity" and saved.name in str(e.value) and "\n" not in str(e.value)
    assert checkpoint.verify(saved) == [e.value.message]


@pytest.mark.parametrize("at", range(0, 1100, 37))
def test_no_byte_of_the_manifest_can_change_unseen(at, saved):
    file = saved / "manifest.json"
    data = bytearray(file.read_bytes())
    data[at % len(data)] ^= 4
    file.write_bytes(data)
    with pytest.raises(ForensicsError) as e:
        checkpoint.load(saved)
    assert e.value.kind == "integrity"


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "optimizer.safetensors", "state.json", "config.json", "tokenizer.json"],
)
def test_a_file_that_is_cut_or_gone_is_an_integrity_error(name, saved):
    data = (saved / name).read_bytes()
    (saved / name).write_bytes(data[:-1])
    with pytest.raises(ForensicsError) as cut:
        checkpoint.load(saved)
    (saved / name).unlink()
    with pytest.raises(ForensicsError) as gone:
        checkpoint.load(saved)
    assert cut.value.kind == gone.value.kind == "integrity" and name in str(gone.value)


def test_tensors_exchanged_along_with_their_files_hash_are_found_by_the_tensors_own_hash(saved):
    """Someone who rewrites a file and its entry in the manifest still does not have the tensors
    that were saved.
    """
    import xxhash
    from safetensors.torch import save

    tensors = load_file(saved / "optimizer.safetensors")
    tensors["exp_avg/norm.weight"] = tensors["exp_avg/norm.weight"] * 2
    data = save(tensors)
    (saved / "optimizer.safetensors").write_bytes(data)
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["files"]["optimizer.safetensors"] = {
        "bytes": len(data),
        "hash": xxhash.xxh3_128_hexdigest(data),
    }
    (saved / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    with pytest.raises(ForensicsError, match=r"exp_avg/norm\.weight"):
        checkpoint.load(saved)


def test_a_half_written_folder_is_no_checkpoint(saved):
    folder = saved.parent
    assert checkpoint.saved_steps(folder) == [3]
    (folder / "step-000009").mkdir()
    (folder / "step-000009" / "model.safetensors").write_bytes(b"x")
    (folder / ".step-000010.1.tmp").mkdir()
    (folder / ".step-000010.1.tmp" / "manifest.json").write_text("{}")
    assert checkpoint.saved_steps(folder) == [3]
    with pytest.raises(ForensicsError) as e:
        checkpoint.load(folder / "step-000009")
    assert e.value.kind == "missing"


def test_what_a_killed_process_left_behind_is_cleared_away(saved, trained):
    folder = saved.parent
    (folder / ".step-000003.999999.tmp").mkdir()
    (folder / ".step-000003.999999.tmp" / "model.safetensors").write_bytes(b"x")
    checkpoint.save(folder, *trained, None, 60)
    assert [f.name for f in folder.iterdir()] == ["step-000003"]


@pytest.mark.parametrize("after", range(8))
def test_a_full_disk_is_a_storage_error_and_the_earlier_checkpoint_stays(
    after, saved, trained, monkeypatch
):
    """The disk fills up at each of the files in turn; also when the same step is saved again."""
    state, shape = trained
    real, count = os.fsync, iter(range(100))

    def full(descriptor):
        if next(count) >= after:  # each file syncs itself, the last one its folder too
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    before = {f.name: f.read_bytes() for f in saved.iterdir()}
    tokenizer = saved / "tokenizer.json"
    monkeypatch.setattr(writer.os, "fsync", full)
    for again in (False, True):
        if not again:
            state.counters = type(state.counters)(4, 4, 4)
        else:
            state.counters = type(state.counters)(3, 3, 3)
        with pytest.raises(ForensicsError) as e:
            checkpoint.save(saved.parent, state, shape, tokenizer, 60)
        assert (
            e.value.kind == "storage"
            and "No space left" in str(e.value)
            and str(saved.parent) not in str(e.value)
        )
        assert checkpoint.saved_steps(saved.parent) == [3]
        assert {f.name: f.read_bytes() for f in saved.iterdir()} == before
        assert [f.name for f in saved.parent.iterdir()] == [saved.name], (
            "what was half written is in the way of the next"
        )
    monkeypatch.undo()
    assert checkpoint.load(saved)[0].counters.step == 3


def test_saving_the_same_step_again_replaces_it(saved, trained):
    state, shape = trained
    state.params["norm.weight"][0] = 7.0
    checkpoint.save(saved.parent, state, shape, None, 60)
    assert checkpoint.load(saved)[0].params["norm.weight"][0] == 7.0
    assert [f.name for f in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "olmo2"])
@pytest.mark.parametrize("says", [None, True, False])
@pytest.mark.parametrize("prefixed", [True, False])
def test_tokens_and_scan_read_the_same_two_matrices_of_a_folder(
    family, says, prefixed, make_shape, random_params, tmp_path
):
    """`forensics tokens` reads two matrices, `replay scan` a whole model: one folder, one answer,
    whether its configuration says that they are tied and whether its names have the class's prefix.
    """
    from forensics.formats.huggingface_folder import read_config, read_weights

    shape = make_shape(family, tied=FAMILIES[family].knobs["tied"] if says is None else says)
    tensors = hugging_face.to_hf_tensors(random_params(shape), shape)
    config = hugging_face.to_hf_config(shape, 60)
    if says is None:
        del config["tie_word_embeddings"]  # the family's own default counts
    if not prefixed:
        prefix = re.compile(r"^(transformer|model|gpt_neox)\.")
        tensors = {prefix.sub("", name): tensor for name, tensor in tensors.items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    params, read, _ = checkpoint.load_hf_folder(tmp_path)
    weights = read_weights(tmp_path, read_config(tmp_path))
    assert weights.tied == read.tied == shape.tied
    assert torch.equal(weights.embedding, params["embed.weight"])
    assert torch.equal(weights.unembedding, params.get("unembed.weight", params["embed.weight"]))
