"""What `forensics import` brought in: the record that the command prints and notebooks read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from forensics.model.compare_transformers import LogitComparison
from forensics.result_records import ResultRecord
from forensics.train.origin import Stage


@dataclass(frozen=True)
class ImportedCheckpoint:
    """One state that was brought in."""

    step: int  # updates made
    stage: str
    tokens: int | None  # read until then
    moments: bool  # whether the optimizer's moments are known


@dataclass(frozen=True)
class ImportedLog:
    """What a run's log holds."""

    steps: int  # distinct ones
    metrics: int
    repeated: int  # steps that stood there more than once; the later row was taken
    nonfinite: int  # values that are NaN or infinite
    first: int | None = None  # as ours count
    last: int | None = None


@dataclass(frozen=True)
class ImportedRun(ResultRecord):
    """A run made elsewhere, as it stands among ours now."""

    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "import"
    AGAIN: ClassVar[str] = "import the run again"

    run: str
    format: str
    source: str
    parameters: int
    checkpoints: tuple[ImportedCheckpoint, ...]
    order: Literal["known", "unknown"]
    batch: int | None  # sequences a step; None: not known
    sequence_length: int | None  # T; None: not known
    log: ImportedLog | None
    unplaced: tuple[str, ...]  # stored names that have no place in our decoder
    steps: int  # at which it ends
    linked: bool
    stage: str
    stages: tuple[Stage, ...]
    order_why: str  # why the order is unknown, and what is known all the same
    data: tuple[str, ...]
    tokens: int | None  # of its data, in all; None: it has none here
    logits: LogitComparison  # beside transformers' of the same weights
    notes: tuple[str, ...]
    seconds: float
