"""What a look at one step finds: the records that commands, pages and JSON share.

`looks/trace-<step>.json` in a run's folder holds a StepTrace.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from forensics.result_records import ResultRecord, json_key

Phase = Literal["forward", "loss", "backward", "clip", "update", "next"]
Grain = Literal["sub-layer", "block"]
ClockKind = Literal["host", "device"]
TraceVerdict = Literal["update", "not the update", "no rise", "not finite"]
UpdatePart = Literal["gradient", "moments", "both"]


@dataclass(frozen=True)
class WorstToken:
    """A target of the batch with a high loss."""

    slot: int
    position: int  # of the target, 0 … T−1
    token: int
    loss: float  # nats


@dataclass(frozen=True)
class TraceEvent:
    """Something that happens inside the step, beside the same event of the step before."""

    name: str  # e.g. layers.3.attn forward
    phase: Phase
    start: float | None  # seconds since the step began; None: not measured
    seconds: float | None  # None: not measured by itself
    values: dict[str, float | None]  # in the units of docs/formulas.md
    layer: int | None = None
    detail: tuple[WorstToken, ...] = ()
    baseline: dict[str, float | None] = field(default_factory=dict)  # the values a step before
    ratio: dict[str, float | None] = field(default_factory=dict)  # value over baseline


@dataclass(frozen=True)
class LargestChange:
    """A number that moved against the step before."""

    event: str
    what: str
    value: float
    baseline: float | None
    ratio: float


@dataclass(frozen=True)
class TensorEffect:
    """By how much the loss changes with one tensor's part of an update, nats."""

    tensor: str
    layer: int | None
    alone_batch: float  # with this tensor's update alone
    alone_probe: float | None  # None: no probe sequences
    without_batch: float  # with all but it
    without_probe: float | None


@dataclass(frozen=True)
class LayerBlame:
    """By how much one update changes the loss on a batch and on the probe set, nats.

    memory: the part that the moments carried; data: the part that the step's gradient added.
    """

    rise_batch: float
    rise_probe: float | None  # None: no probe sequences
    memory_batch: float
    memory_probe: float | None
    data_batch: float
    data_probe: float | None
    tensors: tuple[TensorEffect, ...]


@dataclass(frozen=True)
class LinePoint:
    """Losses at θ + α·Δθ, nats/token."""

    alpha: float
    batch: float
    probe: float | None


@dataclass(frozen=True)
class TraceConclusion:
    """How much of the rise over the step before the update in between carries, in nats."""

    verdict: TraceVerdict
    rise: float | None  # loss of the step less that of the step before; None: not finite
    scale: float | None  # 1.4826·MAD of such differences before; None: too few
    by_update: float | None  # of it, what the update did to the loss of this batch
    part: UpdatePart | None = None  # of the update, that carries at least half of that
    part_carries: float | None = None
    tensor: str | None = None  # whose part alone brings half of it, and without which half goes
    tensor_alone: float | None = None
    tensor_without: float | None = None


@dataclass(frozen=True)
class StepTrace(ResultRecord):
    """One step, event by event, and the update before it taken apart."""

    VERSION: ClassVar[int] = 2
    KIND: ClassVar[str] = "trace"
    AGAIN: ClassVar[str] = "trace the step again: `replay trace RUN STEP`"

    run: str
    step: int
    baseline: int  # the step that it stands beside
    exact: bool | None  # the recorded step, bit for bit; None: no digest was recorded
    conclusion: TraceConclusion
    grain: Grain  # how fine the run's own step can be followed
    clock: ClockKind  # whose times they are
    compiled: bool  # as the run was
    recomputed: bool  # activations, as the run did
    events: tuple[TraceEvent, ...]  # in the order of the step
    largest: tuple[LargestChange, ...]  # largest ratio first
    layer_blame: LayerBlame  # of update step − 1, on batch `step`
    line_scan: tuple[LinePoint, ...]  # along that update
    saved: str | None = None  # the folder with the raw gradients and activations


@dataclass(frozen=True)
class HeadAttention:
    """One head on the sequence."""

    layer: int
    head: int
    logit_max: tuple[float, ...]  # largest attention logit at each state
    moved: tuple[float, ...]  # share of the attention that is elsewhere than at the first state


@dataclass(frozen=True)
class AttentionStudy(ResultRecord):
    """One sequence through every head at several states."""

    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "attention study"
    AGAIN: ClassVar[str] = "look again: `replay attention RUN STEP`"

    run: str
    step: int
    slot: int
    sequence: int  # its id in the corpus
    tokens: tuple[int, ...]  # T + 1 ids
    states: tuple[int, ...]
    exact: tuple[bool | None, ...]  # each state is the recorded one; None: no digest
    block: int  # positions that one stored cell of the patterns stands for
    lens: bool  # whether the logit lens was read
    why: str | None  # why it was not
    heads: tuple[HeadAttention, ...]
    lens_loss: tuple[tuple[float, ...], ...] | None  # by state and layer, nats/token
    file: str  # with the patterns, below the runs' folder
    seconds: float


@dataclass(frozen=True)
class DocumentPlace:
    """A document's stretch of a sequence."""

    document: int
    source: str
    path: str
    offset: int  # of its first token here, from the document's start
    start: int  # positions start … stop−1 of the sequence
    stop: int


@dataclass(frozen=True)
class SequenceContents:
    """One sequence of a batch."""

    slot: int
    sequence: int  # its id in the corpus; −1: made by an intervention
    loss: float | None  # recorded, nats/token
    weight: float  # sum over its targets
    text: str
    tokens: tuple[int, ...]  # T + 1 ids
    documents: tuple[DocumentPlace, ...]
    token_losses: tuple[float, ...] | None = None  # nats of each of the T targets, where asked for


@dataclass(frozen=True)
class BatchContents(ResultRecord):
    """What a run's or fork's stream yields at a step."""

    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "batch"
    AGAIN: ClassVar[str] = "read the batch again: `forensics batch RUN STEP`"

    run: str
    step: int
    origin: int | None  # the run's own batch in whose place it stands; None: made
    interventions: tuple[dict[str, Any], ...]  # of the fork
    sequences: tuple[SequenceContents, ...]  # highest recorded loss first
    exact: bool | None = None  # token losses are of the recorded state; None: not known


@dataclass(frozen=True)
class BatchWindow(ResultRecord):
    """What a run's or fork's stream yields at the steps of a window."""

    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "window of batches"
    AGAIN: ClassVar[str] = "read the batches again: `forensics batch RUN A:B`"

    run: str
    first: int = json_key("from")
    last: int = json_key("to")  # the window is half-open
    batches: tuple[BatchContents, ...] = ()
