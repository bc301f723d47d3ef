"""What is known of a step that is not finite: the records of `replay blame` for NaN and infinity.

k is the first step of which anything is not finite, S ≥ k the step that was asked about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from forensics.result_records import ResultRecord
from replay.blame.result import DocumentSpan, Verdict
from replay.forks.result import ControlResult
from replay.interventions.rows import Slot

Stage = Literal["forward", "loss", "backward", "gradient", "update"]
NonFiniteReason = Literal[
    "replaced sequences make it finite",  # data
    "another state is finite",  # data and state: so does an earlier state on the same batch
    "other data are not finite either",  # state or policy
    "another policy is finite",  # policy: other data are not; data and policy: other data are too
    "the replay is finite",  # numerics
    "other sequences do as well",  # the rest: cannot tell
    "not all others were tried",
    "no finite state before it",
    "no other data",
    "interrupted",
]


@dataclass(frozen=True)
class Place:
    """The first number of a step, in the order of its computation, that is not finite."""

    step: int
    stage: Stage
    tensor: str  # layers.0.mlp_act, loss, unembed.weight gradient, unembed.weight update, …
    value: str  # nan | inf | -inf
    slot: int | None  # the sequence; None: of the whole batch
    position: int | None  # of the token in it
    token: int | None  # its id
    text: str | None
    document: DocumentSpan | None  # that the token comes from
    element: tuple[int, ...]  # index within the token's vector, or within the parameter


@dataclass(frozen=True)
class ReplacedTrial:
    """Sequences of batch k, or of steps before it, give way to others: is step k finite then?"""

    what: str
    finite: bool


@dataclass(frozen=True)
class NonFiniteProof:
    """A smallest set of sequences without which step k is finite, beside as many others."""

    removal: tuple[Slot, ...]
    documents: tuple[DocumentSpan, ...]
    again: int  # draws of other sequences in their place that are finite too
    draws: int
    others: int  # N, distinct other sets of this size that were replaced instead
    others_finite: int  # of them, those that make the step finite too
    exhaustive: bool  # whether these are all other sets of this size in their batches
    p: float | None  # (1 + others_finite) / (N + 1)


@dataclass(frozen=True)
class NonFiniteResult(ResultRecord):
    """Where a step stops being finite, and which sequences make it so."""

    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "non-finite result"
    AGAIN: ClassVar[str] = "blame the step again: `replay blame RUN --spike S`"

    run: str
    spike: int  # S
    of: Literal["loss", "grad_norm"]
    value: float  # recorded at S
    start: int  # the finite state that the replay starts from
    first_step: int | None  # k; None: the replay is finite up to S
    control: ControlResult
    place: Place | None
    sequences: tuple[Place, ...]  # the first place of each sequence that is not finite forward
    verdict: Verdict
    reason: NonFiniteReason
    sentence: str
    p: float | None  # of the proof
    proof: NonFiniteProof | None
    other_data: tuple[ReplacedTrial, ...]
    other_state: ReplacedTrial | None
    policy: ReplacedTrial | None  # the policy of the step before
    complete: bool  # whether the search for a smallest set was within its budget of replays
    interrupted: bool
    replays: int
    steps_replayed: int
    seconds: float
    created: str
