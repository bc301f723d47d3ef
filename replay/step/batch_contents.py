"""Read a batch of a run or fork: its text, its documents, the loss of its sequences and tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback, silent
from replay.lineage import holder_of, is_recorded, open_trajectory, require_intact
from replay.step import artifacts
from replay.step.result import BatchContents, DocumentPlace, SequenceContents


def batch_at(runs: Path, name: str, step: int) -> BatchContents:
    """Return what a run's or fork's stream yields at `step`, highest recorded loss first.

    Errors: missing.
    """
    import pyarrow.compute as pc

    run = open_trajectory(runs, name)
    batch = run.batch_at(step)
    table = holder_of(run, step).table("sequences", ["step", "slot", "loss"])
    rows = table.filter(pc.equal(table["step"], step))
    losses = dict(zip(rows["slot"].to_pylist(), rows["loss"].to_pylist()))
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
    return BatchContents(name, step, batch.origin, interventions, tuple(sequences))


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
