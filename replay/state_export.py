"""Export the exact state of any step as a checkpoint folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback, silent
from forensics.train import checkpoint
from replay.lineage import is_recorded, open_trajectory


def export_state(
    runs: Path, name: str, step: int | None, dest: Path, progress: ProgressCallback = silent
) -> dict[str, Any]:
    """Write the state at any step as a checkpoint folder that transformers opens.

    `exact`: it is the recorded state bit for bit; None where no digest was recorded. Errors:
    missing, usage, storage.
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
            run.tokenizer_file,
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
        "exact": is_recorded(run, state),
        "opens_in_transformers": (dest / "config.json").is_file(),
    }
