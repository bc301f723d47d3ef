"""What happens beside a step: checkpoints written behind it, batches made ahead of it; and what it
says when it cannot go on.
"""

import errno
import os
import threading
import time
from concurrent.futures import Future

import pytest
import torch

from forensics import config
from forensics.errors import ForensicsError
from forensics.step.batch import Batch
from forensics.store import manifest
from forensics.train import checkpoint, loop
from forensics.train.advance import advance
from forensics.train.background_checkpoint import Saver
from forensics.train.prefetch import Prefetch
from forensics.train.run import open_run
from forensics.train.step_errors import translate_torch_errors


@pytest.fixture
def state(make_shape, start_state):
    return start_state(make_shape())


@pytest.fixture
def saver(tmp_path, make_shape):
    made = Saver(tmp_path / "checkpoints", make_shape(), None, 60)
    yield made
    made.close()


def test_the_state_may_change_as_soon_as_it_is_handed_over(saver, state):
    digest, gate = state.digest(), Future()
    saver.save(state, "every", after=[gate])
    for p in state.params.values():
        p.zero_()
    assert saver.saved() == [] and checkpoint.saved_steps(saver.folder) == [], (
        "in place before its rows are"
    )
    gate.set_result(None)
    (saved,) = saver.saved(wait=True)
    assert (saved.digest, saved.reason) == (digest, "every")
    assert checkpoint.load(saved.path)[0].digest() == digest
    assert saver.saved() == []


def test_rows_that_could_not_be_written_leave_no_checkpoint(saver, state):
    gate = Future()
    gate.set_exception(ForensicsError("storage", "could not write steps: No space left on device"))
    saver.save(state, "every", after=[gate])
    with pytest.raises(ForensicsError, match="No space left") as e:
        saver.saved(wait=True)
    assert e.value.kind == "storage" and list(saver.folder.iterdir()) == []
    saver.save(state, "every")  # told once; the next one may do better
    assert len(saver.saved(wait=True)) == 1


def test_a_full_disk_is_told_by_the_next_save(saver, state, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    saver.save(state, "every")
    with pytest.raises(ForensicsError, match=r"step-000000: No space left") as e:
        saver.save(state, "every")
    assert e.value.kind == "storage" and list(saver.folder.iterdir()) == []


def test_a_run_whose_disk_fills_up_behind_it_fails_with_one_line_and_goes_on_later(
    recipe_of, runs, monkeypatch
):
    real, place = os.fsync, runs / "filled" / "checkpoints"

    def full(descriptor):
        if threading.current_thread().name.startswith("checkpoint") and list(
            place.glob(".step-000010*")
        ):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(ForensicsError) as e:
        loop.train(recipe_of(), name="filled", recipe_name="tiny", runs=runs)
    assert e.value.kind == "storage" and open_run(runs, "filled").header.status == "failed"
    monkeypatch.undo()
    assert open_run(runs, "filled").saved_steps() == [0]
    loop.train(recipe_of(), name="filled", recipe_name="tiny", runs=runs, resume=True)
    assert open_run(runs, "filled").saved_steps() == [0, 10, 20, 30]


def test_the_loop_goes_on_while_a_slow_disk_writes(recipe_of, runs, monkeypatch):
    """And the rows up to a checkpoint are named before it is."""
    real, steps_done, at = checkpoint.put_in_place, [], {}
    writing = threading.Event()

    def slow(temporary, final):
        step = int(final.name.removeprefix("step-"))
        if step == 10:
            at["begun"] = len(steps_done)
            writing.set()
            deadline = time.monotonic() + 20
            while len(steps_done) < 15 and time.monotonic() < deadline:
                time.sleep(0.001)
            at["ended"] = len(steps_done)
            parts = manifest.load(runs / "slow", "steps", fresh=True).parts
            at["rows"] = sum(p.rows for p in parts if p.last < 10)
        real(temporary, final)

    def progress(done, total, note=""):
        if done == 13:  # on a busy machine the thread may begin late
            assert writing.wait(60)
        steps_done.append(done)

    monkeypatch.setattr(checkpoint, "put_in_place", slow)
    loop.train(recipe_of(), name="slow", recipe_name="tiny", runs=runs, progress=progress)
    assert at["begun"] < 15 <= at["ended"] and at["rows"] == 10
    run = open_run(runs, "slow")
    assert run.saved_steps() == [0, 10, 20, 30]
    assert [r["step"] for r in run.table("checkpoints").to_pylist()] == [0, 10, 20, 30]


def test_the_file_is_the_one_that_safetensors_writes(tmp_path):
    from safetensors.torch import save

    g = torch.Generator().manual_seed(0)
    tensors = {
        n: torch.randn(s, generator=g)
        for n, s in (("b.é", (3, 5)), ("a", (7,)), ("empty", (0, 2)), ("c", ()))
    }
    for i, metadata in enumerate((None, {"format": "pt"})):
        entry = checkpoint.write_tensors(tmp_path / str(i), tensors, metadata)
        data = (tmp_path / str(i)).read_bytes()
        assert data == save(tensors, metadata=metadata)
        assert entry == checkpoint.file_entry(data)


class Stream:
    """A stream that notes what it was asked for, and fails past step 6."""

    def __init__(self):
        self.asked = []

    def __call__(self, step):
        self.asked.append(step)
        if step > 6:
            raise ForensicsError("missing", f"no batch {step}")
        return Batch(torch.full((2, 5), step), torch.ones(2, 4), 8.0, torch.arange(2), step)


def test_batches_made_ahead_are_those_of_the_stream_whatever_is_asked():
    stream = Stream()
    ahead = Prefetch(stream, stop=20)
    for step in (0, 1, 2, 5, 6, 3, 3):
        assert ahead(step).origin == step and int(ahead(step).tokens[0, 0]) == step
    ahead(6)  # 7 is made ahead and fails: nobody asked for it
    assert ahead(1).origin == 1
    with pytest.raises(ForensicsError, match="no batch 7"):
        ahead(7)
    ahead.close()


def test_nothing_is_made_past_the_end():
    stream = Stream()
    ahead = Prefetch(stream, stop=3)
    for step in range(3):
        ahead(step)
    ahead.close()
    assert stream.asked == [0, 1, 2]


@pytest.mark.parametrize("compiled", [False])
def test_recomputed_activations_give_the_same_bits(
    compiled, make_shape, start_state, make_model, make_batch, make_policy
):
    for family in ("llama", "gpt2", "qwen3"):
        shape, found = make_shape(family), []
        for recompute in (False, True):
            state, model = (
                start_state(shape),
                make_model(shape, 2, compiled=compiled, recompute=recompute),
            )
            for step in range(2):
                advance(state, make_batch(seed=step), make_policy(), model)
            found.append(state.digest())
        assert found[0] == found[1], family


def test_recomputing_keeps_less(make_shape, start_state, make_model, make_batch):
    kept = {}
    for recompute in (False, True):
        shape, seen = make_shape(layers=6), []
        state, model = start_state(shape), make_model(shape, recompute=recompute)
        for p in state.params.values():
            p.requires_grad_(True)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, seen=seen: seen.append(x.numel()) or x, lambda x: x
        ):
            model.decoder.hidden(state.params, make_batch().tokens[:, :-1])
        kept[recompute] = sum(seen)
    assert kept[True] < kept[False] / 3


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"),
            "memory",
            "2.50 GiB",
        ),
        (
            RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."
            ),
            "memory",
            "99 bytes",
        ),
        (MemoryError(), "memory", "train.micro_batch=4"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
            "memory",
            "train.micro_batch=4",
        ),
        (RuntimeError("Triton Error [CUDA]: out of memory"), "memory", "checkpoint_activations"),
        (
            RuntimeError(
                "cumsum_cuda_kernel does not have a deterministic implementation, but you set"
            ),
            "device",
            "document_mask=false",
        ),
        (
            RuntimeError("put_ does not have a deterministic implementation, but you set"),
            "device",
            "train.device=cpu",
        ),
        (
            RuntimeError(
                "Deterministic behavior was enabled … set CUBLAS_WORKSPACE_CONFIG=:4096:8"
            ),
            "device",
            ":4096:8",
        ),
    ],
)
def test_a_step_that_cannot_be_computed_says_what_to_change(error, kind, words):
    with pytest.raises(ForensicsError) as e, translate_torch_errors(8, 8, False):
        raise error
    assert e.value.kind == kind and words in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("where", ["update", "held-out", "gradients"])
def test_memory_that_ends_anywhere_in_a_step_is_one_line(where, recipe_of, tmp_path, monkeypatch):
    """Not only in the forward and backward: beside the update, in the recorder, at the held-out
    loss.
    """

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has")

    from forensics.observe.recorder import Recorder
    from forensics.train import advance as module

    if where == "update":
        monkeypatch.setattr(module, "update", full)
    elif where == "gradients":
        monkeypatch.setattr(Recorder, "gradients", full)
    else:
        monkeypatch.setattr(loop, "token_losses", full)
    with pytest.raises(ForensicsError, match=r"2\.50 GiB") as e:
        loop.train(recipe_of(**{"train.steps": 10}), name="x", recipe_name="tiny", runs=tmp_path)
    assert e.value.kind == "memory" and "train.micro_batch=1" in str(e.value)


def test_what_to_lower_depends_on_what_is_left():
    with pytest.raises(ForensicsError) as e, translate_torch_errors(6, 12, True):
        raise MemoryError
    assert "train.micro_batch=4 (now 6)" in str(e.value) and "checkpoint_activations" not in str(
        e.value
    )
    with (
        pytest.raises(ForensicsError, match=r"lower data\.sequence_length") as e,
        translate_torch_errors(1, 12, True),
    ):
        raise MemoryError
    with pytest.raises(RuntimeError, match="something else"), translate_torch_errors(1, 1, False):
        raise RuntimeError("something else")


@pytest.mark.parametrize(
    ("name", "parameters"), [("gpt2-124m", 124_475_904), ("olmo2-190m", 190_550_784)]
)
def test_the_recipes_for_one_gpu_have_the_sizes_they_say(name, parameters):
    import math

    from forensics.model.knobs import shape_of
    from forensics.model.shape import parameter_shapes

    recipe = config.load(name, ["data.source=somewhere"])
    shape = shape_of(recipe.model, recipe.data.vocabulary, recipe.data.sequence_length)
    assert sum(math.prod(size) for size in parameter_shapes(shape).values()) == parameters
    assert recipe.train.batch * recipe.data.sequence_length == 524_288 and recipe.train.compile


@pytest.mark.parametrize("setting", ["train.device=cuda", "train.precision=bf16"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what is asked for")
def test_a_recipe_that_asks_for_what_is_not_there_says_so(setting, tmp_path):
    recipe = config.load("gpt2-124m", [setting, "train.compile=false"])
    with pytest.raises(ForensicsError) as e:
        loop.train(recipe, name="x", recipe_name="x", runs=tmp_path)
    assert e.value.kind == "device" and "--set" in str(e.value) and not list(tmp_path.iterdir())
