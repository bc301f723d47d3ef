"""What a look at one step leaves in the run's folder, so that nobody computes it again.

    write(token_losses_of(run.folder, 400), {"losses": losses_BT}, {"run": "demo", "exact": True})
    about, arrays = read(token_losses_of(run.folder, 400))
    arrays("losses", 11)         # the one row; of a large array only that is read

runs/<run>/looks/token-losses-<step>.safetensors · attention-<step>-<slot>.safetensors ·
trace-<step>.json
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from forensics.errors import ForensicsError
from forensics.result_records import ResultRecord
from forensics.store import result_cache

FOLDER = "looks"


class Artifact(NamedTuple):
    """What the arrays of a file are, and a function that reads one, or its part at indices."""

    about: dict[str, Any]
    array: Callable[..., np.ndarray]


def token_losses_of(run: Path, step: int) -> Path:
    """Return where the token losses of a batch lie in a run's folder."""
    return run / FOLDER / f"token-losses-{step}.safetensors"


def attention_of(run: Path, step: int, slot: int) -> Path:
    """Return where the attention of a sequence lies in a run's folder."""
    return run / FOLDER / f"attention-{step}-{slot}.safetensors"


def trace_of(run: Path, step: int) -> Path:
    """Return where the trace of a step lies in a run's folder."""
    return run / FOLDER / f"trace-{step}.json"


def write(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Write arrays and what they are, at once or not at all. Errors: storage."""
    from safetensors.numpy import save

    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    result_cache.write(path, save(contiguous, {"about": json.dumps(dict(about))}))


def write_record(path: Path, record: ResultRecord) -> None:
    """Write a record as a JSON document. Errors: storage."""
    result_cache.write(path, record.to_json())


def read(path: Path) -> Artifact:
    """Read what the arrays of a file are; the arrays themselves when asked. Errors: integrity."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            about = json.loads((file.metadata() or {})["about"])
    except (OSError, SafetensorError, ValueError, KeyError) as e:
        raise ForensicsError(
            "integrity", f"{path.name} is damaged: {e}", "delete it; it is made again"
        ) from None

    def array(name: str, *indices: int) -> np.ndarray:
        with safe_open(path, "np") as file:
            values = np.asarray(
                file.get_slice(name)[tuple(slice(i, i + 1) for i in indices)]
                if indices
                else file.get_tensor(name)
            )
        return values.reshape(values.shape[len(indices) :])

    return Artifact(about, array)
