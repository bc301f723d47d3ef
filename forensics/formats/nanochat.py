"""nanochat's checkpoints are recognised and refused: its model is of a family that is not built.

Source: karpathy/nanochat nanochat/checkpoint_manager.py, nanochat/gpt.py.
"""

from __future__ import annotations

from pathlib import Path

from forensics.errors import ForensicsError
from forensics.formats.foreign_run import ForeignRun
from forensics.formats.protocol import Format

LACKS = (
    "a norm without gains, QK-norm × 1.2 after RoPE, ReLU², value embeddings, scalars of each layer"
    " and smeared tokens"
)


def recognises(path: Path) -> bool:
    """Tell whether a folder holds model_NNNNNN.pt beside meta_NNNNNN.json of nanochat's model."""
    metas = sorted(path.glob("meta_*.json")) if path.is_dir() else []
    if not metas or not any(path.glob("model_*.pt")):
        return False
    text = metas[-1].read_bytes()
    return b'"model_config"' in text and b'"n_kv_head"' in text


def read_run(path: Path) -> ForeignRun:
    """Refuse it, saying what lacks. Errors: data, always."""
    raise ForensicsError(
        "data",
        f"{path.name} is a nanochat checkpoint, whose model is not built here: it has {LACKS}",
        "its log can be brought in alone",
    )


FORMAT = Format(
    "nanochat",
    "a nanochat checkpoint",
    recognises,
    read_run=read_run,
    looks_for="model_NNNNNN.pt beside meta_NNNNNN.json (recognised, and refused by name)",
)
