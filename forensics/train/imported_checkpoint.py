"""A checkpoint that another trainer wrote, in a run's folder: converted, or linked.

    write(folder, foreign, shape, link=None)      native files, tensor by tensor
    write(folder, foreign, shape, link=Link(…))   the weights stay; state.json names their files
    params = open_params(folder / "step-000400")  each tensor is read when it is asked for

Converted, it is a checkpoint as any other, its tensors under our names and in float32. Moments that
were not saved are marked, `"moments": "none"`; `"zero"` stands for those of state 0, which has made
no update. A linked file that changed since is refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import xxhash
from torch import Tensor

from forensics.data import intact
from forensics.errors import ForensicsError
from forensics.formats import formats
from forensics.formats.foreign_run import ForeignCheckpoint, ForeignRun, LazyTensor
from forensics.model.shape import Shape, parameter_shapes
from forensics.result_records import part_to_document, read_part
from forensics.step.skip_step import SkipWindow
from forensics.step.state import Counters, Nonfinite, TrainState, as_bytes, header
from forensics.store.writer import write_atomic
from forensics.train import checkpoint as native

Moments = Literal["saved", "zero", "none"]
KINDS = ("exp_avg", "exp_avg_sq", "params")  # as a state's digest goes over them


@dataclass(frozen=True)
class Link:
    """Where a linked checkpoint's weights lie."""

    format: str  # of the reader
    path: str  # what the reader is given
    step: int
    stage: str
    files: dict[str, str]  # path → xxh3_128 of its bytes


@dataclass(frozen=True)
class WrittenImport:
    """A checkpoint of a run made elsewhere that was put in place."""

    path: Path
    digest: str | None  # None: linked, not read whole
    bytes: int  # on disk, in the run's folder
    nonfinite: int | None


def moments_of(foreign: ForeignCheckpoint, trained: bool = True) -> Moments:
    """Tell whether moments were saved, are zero since no update was made, or are not known."""
    if foreign.exp_avg is not None and foreign.exp_avg_sq is not None:
        return "saved"
    updates = foreign.step if foreign.updates is None else foreign.updates
    begins = updates == 0 and foreign.step == 0 and foreign.stage in ("", "stage1")
    return "zero" if begins or not trained else "none"


def as_float32(tensor: Tensor) -> Tensor:
    """Return a stored tensor as a state holds it."""
    return tensor.detach().to(torch.float32).contiguous()


class LazyParams(Mapping[str, Tensor]):
    """Parameters by our names, float32; each is read when it is asked for, and not kept."""

    def __init__(self, tensors: Mapping[str, LazyTensor], shape: Shape, device: str) -> None:
        self.tensors, self.names, self.device = tensors, list(parameter_shapes(shape)), device

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor. Errors: KeyError; data, where its file cannot be read."""
        if name not in self.names:
            raise KeyError(name)
        return as_float32(self.tensors[name].read()).to(self.device)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the order of the forward."""
        return iter(self.names)

    def __len__(self) -> int:
        """Count the tensors."""
        return len(self.names)


def write(
    folder: Path,
    foreign: ForeignCheckpoint,
    shape: Shape,
    moments: Moments,
    link: Link | None = None,
    progress: Callable[[int], object] = lambda numbers: None,
) -> WrittenImport:
    """Write a checkpoint of another trainer as `folder/step-NNNNNN`. Errors: storage, data.

    `progress` is told how many numbers each converted tensor had.
    """
    final = folder / native.name_of(foreign.step)
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    updates = foreign.step if foreign.updates is None else foreign.updates
    counters = Counters(foreign.step, foreign.step, updates)
    document = {
        "version": native.VERSION,
        "counters": dataclasses.asdict(counters),
        "window": dataclasses.asdict(SkipWindow()),
        "moments": moments,
        "shape": dataclasses.asdict(shape),
    }
    try:
        temporary.mkdir(parents=True)
        if link is None:
            entries, read = _converted(temporary, foreign, shape, moments, document, progress)
        else:
            entries, read = {}, {"link": part_to_document(link)}
        data = native.json_bytes(document | read)
        write_atomic(temporary / native.STATE, data, sync_folder=False)
        entries[native.STATE] = native.file_entry(data)
        write_atomic(temporary / "manifest.json", native.manifest_bytes(entries))
        native.put_in_place(temporary, final)
    except OSError as e:
        raise ForensicsError(
            "storage",
            f"could not write checkpoint {final.name}: {e.strerror or e}",
            "free some space, or --link leaves the weights where they are",
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    size = sum(entry["bytes"] for entry in entries.values())
    nonfinite = read["nonfinite"]["numbers"] if "nonfinite" in read else None
    return WrittenImport(final, read.get("digest"), size, nonfinite)


def _converted(
    temporary: Path,
    foreign: ForeignCheckpoint,
    shape: Shape,
    moments: Moments,
    document: dict[str, Any],
    progress: Callable[[int], object],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the tensors one by one; return the manifest's entries, and what state.json tells."""
    shapes = parameter_shapes(shape)
    digest, hashes, nonfinite = xxhash.xxh3_128(), dict[str, str](), Nonfinite(0, None)

    def seen(name: str, tensor: Tensor) -> Tensor:
        nonlocal nonfinite
        alone, head = xxhash.xxh3_128(), header(name, tensor)
        for hasher in (digest, alone):
            hasher.update(head)
            hasher.update(as_bytes(tensor))
        hashes[name] = alone.hexdigest()
        bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if bad:
            nonfinite = Nonfinite(nonfinite.numbers + bad, nonfinite.first or name)
        progress(tensor.numel())
        return tensor

    def read(kind_and_name: str) -> Tensor:
        kind, _, name = kind_and_name.partition("/")
        return seen(kind_and_name, as_float32(getattr(foreign, kind)[name].read()))

    entries: dict[str, Any] = {}
    # in the order of a state's digest: first moments, second moments, parameters
    if moments == "saved":
        of_moments = {f"{kind}/{name}": shapes[name] for kind in KINDS[:2] for name in shapes}
        entries[native.OPTIMIZER] = native.write_tensors_as_read(
            temporary / native.OPTIMIZER, of_moments, read
        )
    elif moments == "zero":
        for kind in KINDS[:2]:
            for name in sorted(shapes):
                seen(f"{kind}/{name}", torch.zeros(shapes[name]))
    entries[native.MODEL] = native.write_tensors_as_read(
        temporary / native.MODEL, shapes, lambda name: read(f"params/{name}"), {"format": "pt"}
    )
    rest = {"counters": document["counters"], "window": document["window"]}
    digest.update(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())
    return entries, {
        "digest": digest.hexdigest(),
        "nonfinite": nonfinite._asdict(),
        "layout": "own",
        "tensors": hashes,
    }


def link_to(foreign: ForeignCheckpoint, kind: str, source: Path) -> Link:
    """Return a link to a checkpoint, its files hashed. Errors: storage."""
    groups = (foreign.params, foreign.exp_avg or {}, foreign.exp_avg_sq or {})
    files = {tensor.file.absolute() for group in groups for tensor in group.values()}
    try:
        hashes = {str(file): intact.hash_file(file) for file in sorted(files)}
    except OSError as e:
        raise ForensicsError(
            "storage", f"{e.filename} cannot be read: {e.strerror or e}", "is it complete?"
        ) from None
    return Link(kind, str(source.absolute()), foreign.step, foreign.stage, hashes)


def linked(folder: Path) -> bool:
    """Whether a checkpoint's weights lie elsewhere."""
    return "link" in _state_document(folder)


def open_params(folder: Path, device: str = "cpu") -> LazyParams:
    """Open the parameters of a linked checkpoint, none of them read yet.

    Errors: missing, integrity, data.
    """
    document = _state_document(folder)
    foreign = _foreign(folder, read_part(Link, document["link"]))
    return LazyParams(foreign.params, Shape(**document["shape"]), device)


def load_linked(folder: Path, document: dict[str, Any], device: str) -> TrainState:
    """Read the state that a linked checkpoint names. Errors: missing, integrity, data."""
    foreign, shape = _foreign(folder, read_part(Link, document["link"])), Shape(**document["shape"])
    params = dict(LazyParams(foreign.params, shape, device))
    state = (
        TrainState.start(params) if document["moments"] == "zero" else TrainState(params, {}, {})
    )
    if document["moments"] == "saved":
        assert foreign.exp_avg is not None and foreign.exp_avg_sq is not None, "its link says so"
        state.exp_avg = dict(LazyParams(foreign.exp_avg, shape, device))
        state.exp_avg_sq = dict(LazyParams(foreign.exp_avg_sq, shape, device))
    state.counters, state.window = native.counters_of(document)
    return state


def nonfinite_of_linked(folder: Path) -> Nonfinite:
    """Count the numbers of a linked checkpoint's parameters that are NaN or infinite."""
    numbers, first = 0, None
    for name, tensor in open_params(folder).items():
        found = tensor.numel() - int(torch.isfinite(tensor).sum())
        numbers, first = numbers + found, first or (f"params/{name}" if found else None)
    return Nonfinite(numbers, first)


def _state_document(folder: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads((folder / native.STATE).read_bytes())
    except (OSError, ValueError):
        raise ForensicsError(
            "integrity",
            f"checkpoint {folder.name}: its state.json is missing or damaged",
            "import the run again",
        ) from None
    return document


def _foreign(folder: Path, link: Link) -> ForeignCheckpoint:
    """Open the checkpoint that a link names, if its files are as they were. Errors: integrity."""
    for file in link.files:
        if not Path(file).is_file():
            raise ForensicsError(
                "missing",
                f"checkpoint {folder.name} is linked to {file}, found no such file",
                "bring it back, or import the run again from where it lies now",
            )
    try:
        intact.require(folder, link.files)
    except ForensicsError as e:
        raise ForensicsError(
            "integrity",
            f"what checkpoint {folder.name} is linked to changed: {e.message.partition(': ')[2]}",
            "restore the file, or import the run again",
        ) from None
    run = read_with(link.format, Path(link.path))
    alike = [c for c in run.checkpoints if (c.step, c.stage) == (link.step, link.stage)]
    if not alike:
        raise ForensicsError(
            "missing",
            f"checkpoint {folder.name} is linked to step {link.step} in {link.path}, found none",
            "bring it back, or import the run again",
        )
    return alike[0]


def read_with(kind: str, path: Path) -> ForeignRun:
    """Read a run with the reader of this `kind`. Errors: usage, missing, data."""
    known = next((each for each in formats() if each.kind == kind and each.read_run), None)
    if known is None or known.read_run is None:
        names = ", ".join(each.kind for each in formats() if each.read_run)
        raise ForensicsError("usage", f"wanted a format, found {kind!r}", f"known: {names}")
    return known.read_run(path)
