"""Examine a run's integrity, hash by hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback, silent
from forensics.store import reader
from forensics.train import checkpoint
from replay.lineage import open_trajectory


def examine(runs: Path, name: str | None, progress: ProgressCallback = silent) -> dict[str, Any]:
    """Return the machine's fingerprint.

    With a run, every hash of its data, tables and checkpoints. Errors: usage, missing.
    """
    from forensics import identity

    if name is None:
        device = identity.device_for("auto")
        threads = identity.thread_count(0)
        identity.enable_determinism(threads)
        here = identity.fingerprint(
            device=device,
            threads=threads,
            compiled=False,
            optimizer="fused",
            precision=identity.precision_for("auto", device),
        )
        return {"fingerprint": here, "problems": [], "checked": 0}
    run = open_trajectory(runs, name)
    here = run.fingerprint()
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
    differs = identity.fingerprint_difference(here, run.header.fingerprint)
    return {
        "fingerprint": here,
        "differs_from_run": differs,
        "problems": problems,
        "checked": len(saved) + 3,
    }
