"""A checkpoint is a folder of safetensors, with counters and hashes as JSON. No pickle, ever.

    model.safetensors      parameters, under Hugging Face's names where the architecture has any
    optimizer.safetensors  exp_avg/<name> and exp_avg_sq/<name>
    config.json            Hugging Face's, and the tokenizer beside it: the folder opens in
                           AutoModelForCausalLM
    state.json             counters, windows, the decoder's shape, a hash per tensor, the state's
                           digest
    manifest.json          every file's size and hash; written last

It is written under another name, synced and renamed. Loading checks every hash. A checkpoint that
came from elsewhere may lack moments, or leave its weights where they are
(`forensics.train.imported_checkpoint`).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from forensics.errors import ForensicsError
from forensics.model import hugging_face
from forensics.model.shape import Shape, parameter_shapes
from forensics.step.skip_step import SkipWindow
from forensics.step.state import Counters, Nonfinite, TrainState, as_bytes, header
from forensics.store.writer import write_atomic

VERSION = 1
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
NEEDED = {STATE}


class WrittenCheckpoint(NamedTuple):
    """A checkpoint that `save` put in place."""

    path: Path
    digest: str  # of the state
    bytes: int


class LoadedCheckpoint(NamedTuple):
    """A checkpoint that `load` read, every hash checked."""

    state: TrainState
    shape: Shape


class LoadedWeights(NamedTuple):
    """Parameters of a Hugging Face folder, under our names."""

    params: dict[str, Tensor]
    shape: Shape
    notes: tuple[str, ...] = ()  # what was assumed


def name_of(step: int) -> str:
    """Return the name of a step's folder."""
    return f"step-{step:06d}"


def saved_steps(folder: Path) -> list[int]:
    """List the steps whose checkpoints are complete; half-written ones bear other names."""
    names = [
        manifest.parent.name.removeprefix("step-")
        for manifest in folder.glob("step-*/manifest.json")
    ]
    return sorted(int(step) for step in names if step.isdecimal())


def save(
    folder: Path,
    state: TrainState,
    shape: Shape,
    tokenizer: Path | None,
    eot: int,
    before: Callable[[], object] = lambda: None,
) -> WrittenCheckpoint:
    """Write the state as `folder/step-NNNNNN`. Errors: storage.

    `before` is called when all is on disk under the temporary name; what it raises leaves no
    checkpoint.
    """
    final = folder / name_of(state.counters.step)
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    hf = hugging_face.exported_family(shape) is not None
    params = hugging_face.to_hf_tensors(state.params, shape) if hf else state.params
    moments = {
        f"{kind}/{tensor_name}": tensor
        for kind in ("exp_avg", "exp_avg_sq")
        for tensor_name, tensor in getattr(state, kind).items()
    }
    digest = state.digest()
    document = {
        "version": VERSION,
        **state.rest(),
        "digest": digest,
        "nonfinite": state.nonfinite()._asdict(),
        "layout": "huggingface" if hf else "own",
        **({} if state.has_moments else {"moments": "none"}),
        "shape": dataclasses.asdict(shape),
        "tensors": dict(tensor_hashes(state)),
    }
    try:
        for left_over in folder.glob(f".{final.name}.*"):  # of a process that was killed
            shutil.rmtree(left_over, ignore_errors=True)
        temporary.mkdir(parents=True)
        files = {"state.json": json_bytes(document)}
        if hf:
            files["config.json"] = json_bytes(hugging_face.to_hf_config(shape, eot))
        if tokenizer is not None:
            files["tokenizer.json"] = tokenizer.read_bytes()
            files["tokenizer_config.json"] = json_bytes(
                {"tokenizer_class": "PreTrainedTokenizerFast"}
            )
        entries = {
            "model.safetensors": write_tensors(
                temporary / "model.safetensors", params, {"format": "pt"}
            ),
            "optimizer.safetensors": write_tensors(temporary / "optimizer.safetensors", moments),
        }
        for name, data in files.items():
            write_atomic(temporary / name, data, sync_folder=False)
            entries[name] = file_entry(data)
        write_atomic(temporary / "manifest.json", manifest_bytes(entries))
        before()
        put_in_place(temporary, final)
    except (OSError, ForensicsError) as e:
        shutil.rmtree(temporary, ignore_errors=True)
        why = e.message.rpartition(": ")[2] if isinstance(e, ForensicsError) else e.strerror or e
        raise ForensicsError(
            "storage",
            f"could not write checkpoint {final.name}: {why}",
            "free some space and go on with --resume; earlier checkpoints are untouched",
        ) from None
    return WrittenCheckpoint(final, digest, sum(entry["bytes"] for entry in entries.values()))


def load(path: Path, device: str = "cpu") -> LoadedCheckpoint:
    """Read the state in a checkpoint folder, every hash checked. Errors: missing, integrity."""
    if not (path / "manifest.json").is_file():
        raise ForensicsError(
            "missing",
            f"wanted a checkpoint at {path.name}, found none that is complete",
            "`forensics show` lists them",
        )
    files = _checked(path)
    document = json.loads(files[STATE])
    shape = Shape(**document["shape"])
    if "link" in document:
        from forensics.train.imported_checkpoint import load_linked

        return LoadedCheckpoint(load_linked(path, document, device), shape)
    kept = document.get("moments", "saved")  # saved | zero (state 0) | none
    for name in (MODEL, OPTIMIZER) if kept == "saved" else (MODEL,):
        if name not in files:
            raise _damaged(path, f"its manifest does not name {name}")
    try:
        params = load_tensors(files.pop(MODEL))
        moments = load_tensors(files.pop(OPTIMIZER)) if kept == "saved" else {}
    except SafetensorError as e:
        raise ForensicsError(
            "integrity", f"checkpoint {path.name} cannot be read: {e}", "take an earlier checkpoint"
        ) from None
    if document["layout"] == "huggingface":
        params = hugging_face.from_hf_tensors(params, shape)
    names = list(parameter_shapes(shape))
    params = {name: params[name].to(device) for name in names}
    state = TrainState.start(params) if kept == "zero" else TrainState(params, {}, {})
    if kept == "saved":
        state.exp_avg, state.exp_avg_sq = (
            {name: moments[kind + name].to(device) for name in names}
            for kind in ("exp_avg/", "exp_avg_sq/")
        )
    state.counters, state.window = counters_of(document)
    for name, digest in tensor_hashes(state):
        if digest != document["tensors"][name]:
            raise ForensicsError(
                "integrity",
                f"checkpoint {path.name}: tensor {name} is not the one that was saved",
                "`forensics doctor RUN` checks all of them; take an earlier checkpoint",
            )
    return LoadedCheckpoint(state, shape)


def counters_of(document: dict[str, Any]) -> tuple[Counters, SkipWindow]:
    """Read the counters and SkipStep's window of a state.json."""
    window = SkipWindow(*map(tuple, document["window"].values()))
    return Counters(**document["counters"]), window


def tensor_hashes(state: TrainState) -> Iterator[tuple[str, str]]:
    """Yield (kind/name, xxh3_128) of every tensor of a state, in order of name."""
    for name, tensor in state.tensors():
        hasher = xxhash.xxh3_128(header(name, tensor))
        hasher.update(as_bytes(tensor))
        yield name, hasher.hexdigest()


def nonfinite(path: Path) -> Nonfinite:
    """Return how many numbers of a saved state are NaN or infinite, as was written beside it.

    A checkpoint of before that was written is loaded. Errors: missing, integrity.
    """
    try:
        written = json.loads((path / STATE).read_bytes()).get("nonfinite")
    except (OSError, ValueError, AttributeError):
        written = None
    return Nonfinite(**written) if written else load(path).state.nonfinite()


def verify(path: Path) -> list[str]:
    """List the problems of a checkpoint folder, hash by hash; empty when it is whole."""
    try:
        load(path)
    except ForensicsError as e:
        return [e.message]
    return []


def _checked(path: Path) -> dict[str, bytes]:
    """Every file of the manifest, if each holds the bytes that were written. Errors: integrity."""
    try:
        data = (path / "manifest.json").read_bytes()
        listed = {
            file_name: {key: entry[key] for key in ("bytes", "hash")}
            for file_name, entry in json.loads(data)["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise _damaged(path, "its manifest is damaged") from None
    if (
        manifest_bytes(listed) != data or not listed.keys() >= NEEDED
    ):  # to the byte: it has no hash of its own
        raise _damaged(path, "its manifest is damaged, or of another version")
    files = {}
    for name, written in listed.items():
        try:
            files[name] = (path / name).read_bytes()
        except (OSError, ValueError):
            raise _damaged(path, f"{name} is missing") from None
        if file_entry(files[name]) != written:
            raise _damaged(path, f"{name} has other bytes than were written")
    return files


def _damaged(path: Path, problem: str) -> ForensicsError:
    return ForensicsError(
        "integrity",
        f"checkpoint {path.name}: {problem}",
        "`forensics doctor RUN` checks all of them; take an earlier checkpoint",
    )


def put_in_place(temporary: Path, final: Path) -> None:
    """Rename a folder; one that stands there already (a step saved twice) gives way."""
    old = final.with_name(f".{final.name}.{os.getpid()}.old")
    if final.exists():
        os.rename(final, old)
    os.rename(temporary, final)
    shutil.rmtree(old, ignore_errors=True)
    descriptor = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> dict[str, Any]:
    """Write a safetensors file tensor by tensor, and return its entry in the manifest.

    The whole file is never held in memory. The bytes are those that `safetensors.torch.save` gives.
    Errors: OSError.
    """
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values()), "a state is fp32"
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return write_tensors_as_read(path, shapes, tensors.__getitem__, metadata)


def write_tensors_as_read(
    path: Path,
    shapes: Mapping[str, Sequence[int]],
    read: Callable[[str], Tensor],
    metadata: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Write what `read` gives, float32, by name; each is asked for once, in order of name.

    Errors: OSError.
    """
    names = sorted(shapes)
    head: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name in names:
        first, end = end, end + 4 * math.prod(shapes[name])
        head[name] = {
            "dtype": "F32",
            "shape": list(shapes[name]),
            "data_offsets": [first, end],
        }
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    hasher = xxhash.xxh3_128()
    with open(path, "xb") as file:
        parts: list[bytes | memoryview] = [struct.pack("<Q", len(text)) + text]
        for data in itertools.chain(parts, (as_bytes(read(name)) for name in names)):
            hasher.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": 8 + len(text) + end, "hash": hasher.hexdigest()}


def file_entry(data: bytes) -> dict[str, Any]:
    """Return a file's entry in the manifest."""
    return {"bytes": len(data), "hash": xxhash.xxh3_128_hexdigest(data)}


def manifest_bytes(listed: dict[str, dict[str, Any]]) -> bytes:
    """Return the manifest of these entries, as it is written."""
    return json_bytes({"version": VERSION, "files": listed})


def json_bytes(document: dict[str, Any]) -> bytes:
    """Return a document as a checkpoint's files hold it."""
    return (json.dumps(document, indent=1) + "\n").encode()


def load_hf_folder(path: Path, device: str = "cpu") -> LoadedWeights:
    """Read the parameters of a Hugging Face folder of a known family, tensor by tensor.

    Errors: missing, data, config.
    """
    from forensics.formats.huggingface_tensors import placed
    from forensics.formats.weights_folder import json_object, stored_tensors

    config = path / "config.json"
    if not config.is_file():
        raise ForensicsError(
            "missing",
            f"wanted a Hugging Face folder, found no config.json in {path}",
            "give the folder that holds the weights",
        )
    model = placed(stored_tensors(path), json_object(config))
    params = {
        name: tensor.read().to(torch.float32, copy=True).contiguous().to(device)
        for name, tensor in model.params.items()
    }
    return LoadedWeights(params, model.shape, model.notes)
