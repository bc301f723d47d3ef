"""Read a batch of a run or fork: its text, its documents, the loss of its sequences and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback, silent
from forensics.train.run import Run
from replay.lineage import open_trajectory, require_intact
from replay.step import artifacts


def batch_at(runs: Path, name: str, step: int) -> dict[str, Any]:
    """What a run's or fork's stream yields at `step`, highest recorded loss first. Errors:
    missing.
    """
    import pyarrow.compute as pc

    run = open_trajectory(runs, name)
    batch = run.batch_at(step)
    holder: Run = run
    while holder.parent is not None and step < holder.header.first_step:
        holder = holder.parent  # below the fork's start the rows are its ancestors'
    rows = holder.table("sequences", ["step", "slot", "loss"])
    rows = rows.filter(pc.equal(rows["step"], step))
    losses = dict(zip(rows["slot"].to_pylist(), rows["loss"].to_pylist()))
    sequences: list[dict[str, Any]] = []
    for slot, spans in enumerate(run.batches.provenance(batch)):
        tokens = batch.tokens[slot].tolist()
        sequences.append(
            {
                "slot": slot,
                "sequence": int(batch.sequence[slot]),
                "loss": losses.get(slot),
                "weight": float(batch.weight[slot].sum()),
                "text": run.corpus.decode(tokens),
                "tokens": tokens,
                "documents": [
                    {
                        "document": s.document,
                        "source": s.source,
                        "path": s.path,
                        "offset": s.offset,
                        "start": s.start,
                        "stop": s.stop,
                    }
                    for s in spans
                ],
            }
        )
    sequences.sort(key=lambda s: -(s["loss"] if s["loss"] is not None else -1.0))
    return {
        "run": name,
        "step": step,
        "origin": batch.origin,
        "interventions": run.header.interventions or [],
        "sequences": sequences,
    }


def token_losses_at(
    runs: Path, name: str, step: int, progress: ProgressCallback = silent
) -> dict[str, Any]:
    """`batch_at` with the loss of every target (`token_losses`, T each), from the exact state by
    replay.

    Kept in the run's folder as (B, T) float32 (`replay.step.artifacts`); `exact`: the state's digest is the
    recorded one, None where none was recorded. Errors: missing, integrity, storage.
    """
    from forensics.train.advance import token_losses
    from replay.step.attention import is_recorded, trained

    run = open_trajectory(runs, name)
    batch = run.batch_at(step)
    if trained(run) < step:
        raise ForensicsError(
            "missing",
            f"{name} has been trained to step {trained(run)}, not to {step}",
            "ask for an earlier batch",
        )
    require_intact(run)
    holder: Run = run
    while holder.parent is not None and step < holder.header.first_step:
        holder = holder.parent
    start = holder.checkpoint_before(step)
    state = run.state_at(step, lambda s, r: progress(s.counters.step - start, step - start + 1, ""))
    losses = (
        token_losses(state.params, batch, run.model, run.header.precision).float().cpu().numpy()
    )
    exact = is_recorded(run, state)
    artifacts.write(
        artifacts.token_losses_of(run.folder, step),
        {"losses": losses},
        {"run": name, "step": step, "exact": exact},
    )
    document = batch_at(runs, name, step)
    for sequence in document["sequences"]:
        sequence["token_losses"] = losses[sequence["slot"]].tolist()
    return document | {"exact": exact}
