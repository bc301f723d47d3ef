"""What is known of a spike of the gradient norm: the records of `replay blame --of grad_norm`.

S is the step, A the first state of its window; ordinary batches are drawn after the run's end (or,
where the order ends there, come from before the window).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from forensics.result_records import ResultRecord
from replay.blame.query.result import RemovalTest
from replay.blame.result import BlamedStep, DocumentInfluence, SourceInfluence, Verdict
from replay.forks.result import ControlResult
from replay.interventions.rows import Slot

NormReason = Literal[
    "removal takes it away",  # data
    "no other state spikes",  # data and state
    "removal before it takes it away",  # data: of batches before S
    "other data spike too",  # state or policy
    "control does not spike",  # numerics
    "no spike",  # the rest: cannot tell
    "interrupted",
    "no removal takes it away",
    "not beyond random removals",
    "not beyond ordinary batches",
]


@dataclass(frozen=True)
class NormExcess:
    """By how much the gradient norm of batch S stands above that of ordinary batches."""

    data: float  # ‖g(b_S; θ_S)‖ − median of ordinary batches at θ_S
    state: float  # median of ordinary batches at θ_S − the same at θ_A
    norm: float  # ‖g(b_S; θ_S)‖ of the control, before clipping
    ordinary_at: float  # median over ordinary batches at θ_S
    ordinary_before: float  # the same at θ_A
    scale: float  # 1.4826·MAD of ordinary batches at θ_S
    total: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", self.data + self.state)


@dataclass(frozen=True)
class NormCandidate:
    """One sequence of batch S."""

    slot: int
    sequence: int
    document: int | None
    source: str | None
    path: str | None
    influence: float  # ⟨g_i, g⟩/‖g‖: its share of the norm; they sum to the norm
    replayed_effect: float | None  # by how much the norm falls without it
    text: str


@dataclass(frozen=True)
class NormPoint:
    """The strongest sequences left out together."""

    removed: int
    norm: float  # what is left of the norm
    taken: float  # by how much it falls


@dataclass(frozen=True)
class NormProof:
    """A set of batch S, by how much the norm falls without it, and what that is held against."""

    who: str
    removal: tuple[Slot, ...]
    taken: float
    share: float  # of the excess
    random: tuple[float, ...]  # falls without as many random sequences of batch S, distinct sets
    p_random: float  # (1 + #{random ≥ taken}) / (N + 1)
    # falls by the same search on ordinary batches at θ_S: the most that up to as many take
    ordinary: tuple[float, ...]
    p_ordinary: float  # (1 + #{ordinary ≥ taken}) / (N + 1)


@dataclass(frozen=True)
class NormBlameResult(ResultRecord):
    """Which sequences made the gradient norm of a batch spike, and what proves it."""

    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "gradient-norm blame result"
    AGAIN: ClassVar[str] = "blame the step again: `replay blame RUN --spike S --of grad_norm`"

    run: str
    spike: BlamedStep  # its value and baseline are gradient norms
    window: tuple[int, int]  # batches A … S
    control: ControlResult
    excess: NormExcess
    verdict: Verdict
    reason: NormReason
    sentence: str
    p: float | None  # the larger of the proof's two
    proof: NormProof | None
    candidates: tuple[NormCandidate, ...]
    documents: tuple[DocumentInfluence, ...]
    sources: tuple[SourceInfluence, ...]
    curve: tuple[NormPoint, ...]
    other_data: tuple[float, ...]  # norms of ordinary batches at θ_S
    other_state: float | None  # ‖g(b_S; θ_A)‖ − ordinary there; None: A is S
    # the sequences before S whose influence raises the norm of batch S; None: no state part
    before: RemovalTest | None
    notes: tuple[str, ...]
    passes: int  # forward and backward passes of a batch
    replays: int
    interrupted: bool
    seconds: float
    created: str
