"""Attention of one sequence as `replay attention` kept it at three states."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app import data, reading
from app.reading import Reading

if TYPE_CHECKING:
    import numpy as np

Kept = tuple[dict[str, Any], Any]  # what `replay.step.artifacts.read` gives


def slots_of(run: str, step: int) -> list[int]:
    """Slots of the batch whose attention is kept."""
    folder = data.runs_folder() / data.require(run) / "looks"
    slots = [
        path.stem.rpartition("-")[2] for path in folder.glob(f"attention-{step}-*.safetensors")
    ]
    return sorted(int(slot) for slot in slots if slot.isdecimal())


def attention_of(run: str, step: int, slot: int) -> Kept | None:
    """Return the attention that was saved of a sequence; None where none was."""
    from replay.step import artifacts as kept

    path = kept.attention_of(data.runs_folder() / data.require(run), step, slot)
    return _read(path, path.stat().st_mtime_ns) if path.is_file() else None


@functools.lru_cache(16)
def _read(path: Path, stamp: int) -> Kept:
    from replay.step import artifacts as kept

    return kept.read(path)


def of_head(kept: Kept, name: str, state: int, head: dict[str, Any]) -> np.ndarray:
    """Return one head's array at one of the states."""
    return kept[1](name, state, head["layer"], head["head"])  # type: ignore[no-any-return]


def broken_states(about: dict[str, Any], kept: Kept, head: dict[str, Any]) -> list[int]:
    """Return the states at which some weight of the head is NaN or infinite."""
    import numpy as np

    return [
        state
        for i, state in enumerate(about["states"])
        if not np.isfinite(of_head(kept, "weights", i, head)).all()
    ]


@functools.lru_cache(64)
def sequence_of(run: str, corpus: str | None, tokens: tuple[int, ...]) -> Reading:
    """Return the sequence by the tokens that were saved with its weights.

    Nothing is asked of the order of the data.
    """
    return reading.of_tokens(run, tokens)


def whens(states: Sequence[int], step: int) -> list[str]:
    """`before`, `at` or `after` of each state."""
    return ["before" if state < step else "at" if state == step else "after" for state in states]
