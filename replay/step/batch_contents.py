"""Read a batch of a run or fork: its text, its documents, the loss of its sequences and tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback, silent
from forensics.step.batch import Batch
from forensics.train.run import Run
from replay.lineage import holder_of, is_recorded, open_trajectory, require_intact
from replay.step import artifacts
from replay.step.result import BatchContents, BatchWindow, DocumentPlace, SequenceContents


def batch_at(runs: Path, name: str, step: int) -> BatchContents:
    """Return what a run's or fork's stream yields at `step`, highest recorded loss first.

    Errors: missing.
    """
    return batches_at(runs, name, step, step + 1).batches[0]


def batches_at(
    runs: Path, name: str, first: int, last: int, progress: ProgressCallback = silent
) -> BatchWindow:
    """Return what a run's or fork's stream yields at steps first … last−1. Errors: missing."""
    run = open_trajectory(runs, name)
    batches, losses = [], dict[str, dict[int, dict[int, float | None]]]()
    for step in range(first, last):
        batch = run.batch_at(step)
        holder = holder_of(run, step)
        if holder.name not in losses:
            losses[holder.name] = _losses(holder, first, last)
        batches.append(_contents(run, step, batch, losses[holder.name].get(step, {})))
        progress(step + 1 - first, last - first, "")
    return BatchWindow(run.name, first, last, tuple(batches))


def _losses(run: Run, first: int, last: int) -> dict[int, dict[int, float | None]]:
    """Return the recorded loss of each sequence, by step and slot."""
    import pyarrow.compute as pc

    table = run.table("sequences", ["step", "slot", "loss"])
    inside = pc.and_(pc.greater_equal(table["step"], first), pc.less(table["step"], last))
    losses: dict[int, dict[int, float | None]] = {}
    for row in table.filter(inside).to_pylist():
        losses.setdefault(row["step"], {})[row["slot"]] = row["loss"]
    return losses


def _contents(run: Run, step: int, batch: Batch, losses: dict[int, float | None]) -> BatchContents:
    sequences = []
    for slot, spans in enumerate(run.batches.provenance(batch)):
        tokens = batch.tokens[slot].tolist()
        sequences.append(
            SequenceContents(
                slot=slot,
                sequence=int(batch.sequence[slot]),
                loss=losses.get(slot),
                weight=float(batch.weight[slot].sum()),
                text=run.corpus.decode(tokens),
                tokens=tuple(tokens),
                documents=tuple(
                    DocumentPlace(
                        span.document, span.source, span.path, span.offset, span.start, span.stop
                    )
                    for span in spans
                ),
            )
        )
    sequences.sort(key=lambda s: -(s.loss if s.loss is not None else -1.0))
    interventions = tuple(run.header.interventions or [])
    return BatchContents(run.name, step, batch.origin, interventions, tuple(sequences))


def token_losses_at(
    runs: Path, name: str, step: int, progress: ProgressCallback = silent
) -> BatchContents:
    """Return `batch_at` with the loss of every target of each sequence, by replay.

    Kept in the run's folder as (B, T) float32 (`replay.step.artifacts`). `exact`: the state's
    digest is the recorded one, None where none was recorded. Errors: missing, integrity, storage.
    """
    from forensics.train.advance import token_losses
    from replay.step.attention import trained

    run = open_trajectory(runs, name)
    batch = run.batch_at(step)
    if trained(run) < step:
        raise ForensicsError(
            "missing",
            f"{name} has been trained to step {trained(run)}, not to {step}",
            "ask for an earlier batch",
        )
    require_intact(run)
    start = holder_of(run, step).checkpoint_before(step)
    state = run.state_at(step, lambda s, r: progress(s.counters.step - start, step - start + 1, ""))
    precision = run.header.precision
    losses = token_losses(state.params, batch, run.model, precision).float().cpu().numpy()
    exact = is_recorded(run, state)
    artifacts.write(
        artifacts.token_losses_of(run.folder, step),
        {"losses": losses},
        {"run": name, "step": step, "exact": exact},
    )
    contents = batch_at(runs, name, step)
    sequences = tuple(
        replace(sequence, token_losses=tuple(losses[sequence.slot].tolist()))
        for sequence in contents.sequences
    )
    return replace(contents, sequences=sequences, exact=exact)
