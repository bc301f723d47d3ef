"""Looking at a run or fork: a batch's text, its spikes, its integrity, an export of any state."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from forensics.detect import alarms
from forensics.detect.spikes import phase_restarts, robust, spike_score
from forensics.detect.trend import trend
from forensics.errors import ForensicsError
from forensics.progress import Report, silent
from forensics.store import reader
from forensics.train import checkpoint
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


def token_losses_at(runs: Path, name: str, step: int, progress: Report = silent) -> dict[str, Any]:
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


def spikes_of(runs: Path, name: str, metric: str | None, detector: str) -> dict[str, Any]:
    """Spikes of the recorded series by one detector, with spike score and trend. Errors:
    missing.
    """
    run = open_trajectory(runs, name)
    rows = run.table("steps", ["step", "loss", "grad_norm"]).sort_by("step").to_pydict()
    steps = rows["step"]
    if not steps:
        raise ForensicsError(
            "missing", f"{name} has no recorded step yet", "`forensics show` tells its status"
        )
    phases = [(phase.until, phase.mix) for phase in run.recipe.data.phases]
    restarts = phase_restarts(phases)
    every = {
        m: robust(rows[m], metric=m, steps=steps, restarts=restarts) for m in ("loss", "grad_norm")
    }
    wanted = [metric] if metric else ["loss", "grad_norm"]
    if detector == "robust":
        found = [_spike(s) for m in wanted for s in every[m]]
    else:
        fired = {m: alarms.monitor(rows[m]) for m in wanted}
        if detector == "skip-step":
            both = alarms.skip_step(rows["loss"], rows["grad_norm"])
            fired = {wanted[0]: both}
        found = [
            {
                "step": steps[i],
                "onset": steps[i],
                "metric": m,
                "value": rows[m][i],
                "baseline": None,
                "sigma": None,
                "kind": None,
                "recovered_at": None,
            }
            for m, rings in fired.items()
            for i in np.flatnonzero(rings)
        ]
    scores = {m: spike_score(rows[m]) for m in ("loss", "grad_norm")}
    warm = run.recipe.train.warmup
    settled = [(s, g) for s, g in zip(steps, rows["grad_norm"]) if s >= warm and g is not None]
    return {
        "run": name,
        "detector": detector,
        "spike_score": {m: score if n else None for m, (score, n) in scores.items()}
        | {"n": scores["loss"][1]},
        "trend": trend(
            [s for s, _ in settled], [g for _, g in settled], [s.onset for s in every["loss"]]
        ),
        "spikes": sorted(found, key=lambda s: (s["step"], s["metric"])),
    }


def _spike(spike: Any) -> dict[str, Any]:
    return {
        k: getattr(spike, k)
        for k in ("step", "onset", "metric", "value", "baseline", "sigma", "kind", "recovered_at")
    }


def export_state(
    runs: Path, name: str, step: int | None, dest: Path, progress: Report = silent
) -> dict[str, Any]:
    """The exact state at any step as a checkpoint folder that transformers opens. Errors: missing,
    usage, storage.
    """
    run = open_trajectory(runs, name)
    at = run.last_step() if step is None else step
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise ForensicsError(
            "usage",
            f"wanted an empty place for the export, found {dest}",
            "give a path that does not exist",
        )
    start = run.checkpoint_before(at) if at >= run.header.first_step else 0
    state = run.state_at(at, lambda s, r: progress(s.counters.step - start, at - start, ""))
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        path, digest, _ = checkpoint.save(
            dest.parent / f".export-{os.getpid()}",
            state,
            run.shape,
            run.corpus.folder / "tokenizer.json",
            run.header.eot,
        )
        if dest.exists():
            dest.rmdir()
        os.rename(path, dest)
    except OSError as e:
        raise ForensicsError(
            "storage",
            f"could not write {dest}: {e.strerror or e}",
            "is there space, and may this user write there?",
        ) from None
    finally:
        shutil.rmtree(dest.parent / f".export-{os.getpid()}", ignore_errors=True)
    return {
        "path": str(dest),
        "step": at,
        "digest": digest,
        "opens_in_transformers": (dest / "config.json").is_file(),
    }


def examine(runs: Path, name: str | None, progress: Report = silent) -> dict[str, Any]:
    """The machine's fingerprint; with a run, every hash of its data, tables and checkpoints.
    Errors: usage, missing.
    """
    from forensics import identity

    if name is None:
        device = identity.device_for("auto")
        threads = identity.thread_count(0)
        identity.settle(threads)
        own = identity.fingerprint(
            device=device,
            threads=threads,
            compiled=False,
            optimizer="fused",
            precision=identity.precision_for("auto", device),
        )
        return {"fingerprint": own, "problems": [], "checked": 0}
    run = open_trajectory(runs, name)
    own = run.fingerprint()
    problems = [f"data: {problem}" for problem in run.corpus.verify()]
    try:
        run.batches  # noqa: B018  # makes the order and compares its fingerprint
    except ForensicsError as e:
        problems.append(f"order: {e.message}")
    problems += [f"tables: {problem}" for problem in reader.problems(run.folder)]
    saved = run.saved_steps()
    for i, step in enumerate(saved):
        problems += [
            f"checkpoints: {problem}"
            for problem in checkpoint.verify(run.folder / "checkpoints" / checkpoint.name_of(step))
        ]
        progress(i + 1, len(saved), "")
    differs = identity.fingerprint_difference(own, run.header.fingerprint)
    return {
        "fingerprint": own,
        "differs_from_run": differs,
        "problems": problems,
        "checked": len(saved) + 3,
    }
