"""What a look at one step leaves in the run's folder, so that nobody computes it again: arrays, and
what they are.

write(token_losses_of(run.folder, 400), {"losses": losses_BT}, {"run": "demo", "step": 400, "exact":
True}) about, arrays = read(token_losses_of(run.folder, 400))
arrays("losses", 11)                 # the one row; of a large array only that is read

runs/<run>/looks/token-losses-<step>.safetensors · attention-<step>-<slot>.safetensors ·
trace-<step>.json
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from forensics.errors import ForensicsError
from forensics.json_documents import dumps
from forensics.store.writer import write_atomic

FOLDER = "looks"


def token_losses_of(run: Path, step: int) -> Path:
    return run / FOLDER / f"token-losses-{step}.safetensors"


def attention_of(run: Path, step: int, slot: int) -> Path:
    return run / FOLDER / f"attention-{step}-{slot}.safetensors"


def trace_of(run: Path, step: int) -> Path:
    return run / FOLDER / f"trace-{step}.json"


def write(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Arrays and what they are, at once or not at all. Errors: storage."""
    from safetensors.numpy import save

    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    _write(path, save(whole, {"about": json.dumps(dict(about))}))


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document. Errors: storage."""
    _write(path, (dumps(document) + "\n").encode())


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    except OSError as e:
        raise ForensicsError(
            "storage",
            f"could not write {path}: {e.strerror or e}",
            "is there space, and may this user write there?",
        ) from None


def read(path: Path) -> tuple[dict[str, Any], Callable[..., np.ndarray]]:
    """What the arrays are, and a function that reads one of them, or its part at leading indices.
    Errors: integrity.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            about = json.loads((file.metadata() or {})["about"])
    except (OSError, SafetensorError, ValueError, KeyError) as e:
        raise ForensicsError(
            "integrity", f"{path.name} is damaged: {e}", "delete it; it is made again"
        ) from None

    def array(name: str, *at: int) -> np.ndarray:
        with safe_open(path, "np") as file:
            found = (
                file.get_slice(name)[tuple(slice(i, i + 1) for i in at)]
                if at
                else file.get_tensor(name)
            )
        return np.asarray(found).reshape(np.asarray(found).shape[len(at) :])

    return about, array
