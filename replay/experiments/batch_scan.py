"""One frozen state, many batches: loss and gradient norm of each, worst first.

Load the model once and iterate through the batches to find the one that blows up. Nothing is
updated: each batch goes through the one `advance` under a policy that leaves the update out. Every
finished batch is kept in a file, so that an interrupted scan goes on where it was.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash

from forensics import identity
from forensics.data.token_files.scan import beyond_table
from forensics.data.token_files.token_file import open_token_file
from forensics.errors import ForensicsError
from forensics.model.decoder import Decoder
from forensics.model.step_model import StepModel
from forensics.progress import ProgressCallback, silent
from forensics.result_records import part_to_document, read_part
from forensics.step import sums
from forensics.step.batch import Batch, BatchStream
from forensics.step.policy import StepPolicy
from forensics.step.state import TrainState
from forensics.store.resumable import Kept
from forensics.train import checkpoint
from forensics.train.advance import advance
from forensics.train.run import enable_determinism_for
from replay.experiments.results import ScanRow
from replay.lineage import identity_text, open_trajectory, require_intact


@dataclass
class ScanTarget:
    """A state and the batches it is held against."""

    state: TrainState
    model: StepModel
    stream: BatchStream
    precision: str
    keep: Path | None  # where finished batches are kept
    identity: str
    notes: tuple[str, ...] = ()  # what was assumed of a folder's weights


def of_run(runs: Path, name: str, step: int | None) -> ScanTarget:
    """Return a run's state at any step, and its own stream. Errors: missing, integrity."""
    run = open_trajectory(runs, name)
    require_intact(run)
    at = run.last_step() if step is None else step
    state = run.state_at(at)
    return ScanTarget(
        state,
        run.model,
        run.stream,
        run.header.precision,
        run.folder / "scans",
        f"{identity_text(run)} {at} {state.digest()}",
    )


def of_folder(
    folder: Path,
    tokens: Path,
    sequence_length: int,
    batch: int,
    runs: Path,
    dtype: str | None = None,
) -> ScanTarget:
    """Any Hugging Face folder of a known family, and a flat file of token ids: a .npy, Megatron's,
    datatrove's, or a bare one of `dtype`.

    Batch s is the s-th stretch of `batch` sequences of T+1 tokens, neighbours sharing one. Errors:
    missing, data, usage.
    """
    enable_determinism_for(
        "cpu" if not torch.cuda.is_available() else "cuda", identity.thread_count(0)
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    params, shape, notes = checkpoint.load_hf_folder(folder, device)
    ids = _token_file(tokens, dtype, shape.vocabulary)
    T = sequence_length
    sequences = (len(ids) - 1) // T

    def stream(s: int) -> Batch:
        rows = np.arange(s * batch, (s + 1) * batch)
        if rows[-1] >= sequences:
            raise ForensicsError(
                "missing",
                f"wanted batch {s}, found {sequences // batch} in {tokens.name}",
                "windows are half-open",
            )
        cut = np.stack([ids[i * T : i * T + T + 1] for i in rows]).astype(np.int64)
        return Batch(
            torch.from_numpy(cut), torch.ones(batch, T), float(batch * T), torch.from_numpy(rows), s
        )

    state = TrainState.start(params)
    model = StepModel(Decoder(shape, device), batch, "fused", frozenset(), device, -1)
    key = f"{xxhash.xxh3_64_hexdigest(ids[: 1 << 20].tobytes())} {state.digest()} {T} {batch}"
    return ScanTarget(state, model, stream, "fp32", runs / "_scans", key, notes)


def _token_file(path: Path, dtype: str | None, vocabulary: int) -> np.ndarray:
    """Map a file's ids: (n,). Errors: missing, data, usage."""
    if not path.is_file():
        raise ForensicsError(
            "missing", f"wanted a file of token ids at {path}, found none", "--tokens FILE.npy"
        )
    ids = open_token_file(path, dtype).map()
    if len(ids) < 2:
        raise ForensicsError(
            "data", f"{path.name}: wanted at least 2 token ids, found {len(ids)}", "a longer one"
        )
    if int(ids.max()) >= vocabulary or int(ids.min()) < 0:
        raise beyond_table(path, ids, vocabulary)
    return ids


def scan(
    target: ScanTarget,
    first: int,
    last: int,
    per_sequence: bool = False,
    progress: ProgressCallback = silent,
) -> tuple[ScanRow, ...]:
    """Measure each batch, or each of its sequences, at the target's state. Errors: usage, missing.

    The largest gradient norm comes first, what is not finite before all.
    """
    if not 0 <= first < last:
        raise ForensicsError(
            "usage",
            f"wanted --batches A:B with A < B, found {first}:{last}",
            "windows are half-open",
        )
    finished = Kept(target.keep, f"{target.identity} {per_sequence}")
    rows: list[ScanRow] = []
    for step in range(first, last):
        documents = finished.get(str(step))
        if documents is None:
            documents = [part_to_document(row) for row in _measure(target, step, per_sequence)]
            finished.put(str(step), documents)
        measured = [read_part(ScanRow, document) for document in documents]
        rows += measured
        progress(step + 1 - first, last - first, f"loss {measured[0].loss:.3f}")

    def badness(row: ScanRow) -> tuple[bool, float, int, int]:
        finite = math.isfinite(row.grad_norm) and math.isfinite(row.loss)
        return finite, -row.grad_norm if finite else 0.0, row.step, row.slot or 0

    return tuple(sorted(rows, key=badness))


def _measure(target: ScanTarget, step: int, per_sequence: bool) -> Iterator[ScanRow]:
    batch = target.stream(step)
    if not per_sequence:
        loss, norm = _one(target, batch, target.model)
        yield ScanRow(step, None, loss, norm)
        return
    single = dataclasses.replace(target.model, micro_batch=1)
    for slot in range(len(batch.tokens)):
        cut = slice(slot, slot + 1)
        counted = float(sums.total(batch.weight[cut])) or 1.0
        row = Batch(
            batch.tokens[cut], batch.weight[cut], counted, batch.sequence[cut], batch.origin
        )
        loss, norm = _one(target, row, single)
        yield ScanRow(step, slot, loss, norm)


def _one(target: ScanTarget, batch: Batch, model: StepModel) -> tuple[float, float]:
    policy = StepPolicy(
        learning_rate=0.0,
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.0,
        clip=0.0,
        z_loss=0.0,
        frozen=frozenset(),
        precision=target.precision,
        update="zero",
        advance_schedule=False,
        skip_step=False,
    )
    counters = target.state.counters
    result = advance(target.state, batch, policy, model)
    target.state.counters = counters  # the one thing that a step without an update moves
    assert result.loss is not None and result.grad_norm is not None
    return result.loss, result.grad_norm
