"""Whether the imported weights say what they said elsewhere: logits beside transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from forensics.formats.containers.safetensors_file import read_safetensors
from forensics.formats.foreign_run import ForeignCheckpoint
from forensics.model.compare_transformers import LogitComparison, compare_with_transformers
from forensics.train.checkpoint import MODEL, name_of
from forensics.train.imported_checkpoint import open_params
from forensics.train.run import Run

# parameters: the comparison holds the model twice in float32, 8 bytes for each of them
MOST_COMPARED = 1_500_000_000
BY_ITSELF = ("folder",)  # formats that transformers reads by itself; GGUF takes it too much memory


def compare_logits(
    run: Run, checkpoint: ForeignCheckpoint, format_name: str, config: dict[str, Any] | None
) -> LogitComparison:
    """Compare the logits of a saved state with transformers', on a few random tokens.

    Errors: data, where the state that was just written cannot be read.
    """
    if run.header.parameters > MOST_COMPARED:
        return LogitComparison(
            None,
            why_not=f"{run.header.parameters:,} parameters would be held twice in memory; at most"
            f" {MOST_COMPARED:,} are",
        )
    params = _written(run, checkpoint.step)
    source = _source(checkpoint.path) if format_name in BY_ITSELF else None
    return compare_with_transformers(params, run.shape, config, source)


def _written(run: Run, step: int) -> dict[str, Tensor]:
    """Map the parameters that were just written, or linked, without the moments of a state."""
    folder = run.folder / "checkpoints" / name_of(step)
    file = folder / MODEL
    if not file.is_file():
        return dict(open_params(folder))
    return {name: stored.read() for name, stored in read_safetensors(file).tensors.items()}


def _source(path: Path) -> Path | None:
    """Return what transformers can read of a checkpoint: its folder, or a file."""
    return path if path.exists() else None
