"""What a reader of another trainer's run gives: checkpoints, recipe, data, order, logs.

Nothing is loaded before it is asked for: a tensor is a place in a file until `read` is called.
State s is the state after s updates, as everywhere here; a reader turns the steps that the other
trainer counts into these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forensics.data.made_elsewhere import ForeignOrder, TokenFileKind, TokenFiles

if TYPE_CHECKING:
    from torch import Tensor
__all__ = [
    "ForeignCheckpoint",
    "ForeignOrder",
    "ForeignRun",
    "LazyTensor",
    "TokenFileKind",
    "TokenFiles",
]


@dataclass(frozen=True)
class LazyTensor:
    """One stored tensor: where it lies, and how to read it. `read` gives it as it is stored."""

    stored_name: str  # as the file names it
    shape: tuple[int, ...]
    dtype: str  # float32, bfloat16, …
    file: Path
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class ForeignCheckpoint:
    """One saved state of a run made elsewhere, its tensors under our names."""

    step: int  # updates made; state s
    path: Path
    params: Mapping[str, LazyTensor]
    # both None where the optimizer's moments were not saved
    exp_avg: Mapping[str, LazyTensor] | None = None
    exp_avg_sq: Mapping[str, LazyTensor] | None = None
    updates: int | None = None  # Adam's own count, where it is saved; None: `step`
    stage: str = ""  # stage1, stage2-ingredient1, …
    tokens: int | None = None  # read so far, where its name or its trainer's state says it exactly
    # of its epoch's order read so far, where its trainer's state says it
    sequences: int | None = None
    epoch: int | None = None  # as its trainer counts, where its state says it


@dataclass(frozen=True)
class ForeignRun:
    """A run that another trainer made, read but not yet brought in.

    `recipe` holds sections and keys of our recipes ([data], [model], [train]); what the run's own
    configuration does not say is left out of it.
    """

    format: str  # the reader's `kind`
    checkpoints: tuple[ForeignCheckpoint, ...]  # by stage, then step
    recipe: dict[str, dict[str, Any]]
    tokens: TokenFiles | None = None
    order: ForeignOrder | None = None
    logs: tuple[Path, ...] = ()  # found beside the checkpoints
    tokenizer: Path | None = None  # a tokenizer.json
    tokenizer_text: str = ""  # of a tokenizer.json, where it is no file of its own
    unplaced: tuple[str, ...] = ()  # stored names that have no place in our decoder
    notes: tuple[str, ...] = ()  # what was assumed, a sentence each
    unparsed: tuple[str, ...] = ()  # names of states that tell no step, left where they are
    configuration: Mapping[str, Any] = field(default_factory=dict)  # its own, as it was read
