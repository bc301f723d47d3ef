"""What blame finds: the records that commands, pages, notebooks and `blame-<step>.json` share.

docs/formulas.md, "Blame", defines the numbers; docs/blame.md says when each verdict is given.
S is the step that is blamed, A the first step of the window, P the probe sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from forensics.result_records import ResultRecord, json_key
from replay.blame.rules import AWAY, RULES, Rule
from replay.compare.null_test import Finding
from replay.forks.result import ControlResult
from replay.interventions.rows import Slot
from replay.step.result import LayerBlame, LinePoint

Method = Literal["metagradient", "leave-one-out", "bisect"]
Verdict = Literal[
    "data",
    "data and state",
    "data and policy",
    "data or policy",
    "policy",
    "state or policy",
    "before the window",
    "numerics",
    "cannot tell",
]
Reason = Literal[
    # data: beyond windows without a spike and random removals; other data do not spike
    "removal takes it away",
    "removal takes it away, no other state could be tried",
    "removal and fresh moments take it away",  # data and state
    "no other state spikes",  # data and state: the same batches need this state
    "both are needed",  # data and policy: without either it does not spike
    "either is enough",  # data or policy: only without both it does not spike
    "the policy as before takes it away",  # policy: and other data spike too
    "any data spike, at a height of chance",  # policy: the same, and random removals move it as far
    "other data spike too",  # state or policy: every time; cannot tell: half of the times
    "worse before the window",  # before the window: P's loss stood high at its first state
    "an earlier start takes it away",  # before the window: with other data from there on
    "control does not spike",  # numerics
    "no spike",  # the rest: cannot tell
    "interrupted",
    "no removal takes it away",
    "not beyond windows without a spike",
    "too few windows without a spike",
    "random removals take it away too",
    "random removals differ by more",  # among each other than the set leads them
]
SuspectKind = Literal["document", "documents", "source", "attribute", "strongest", "bisection"]
Conditioning = Literal["agrees", "ill-conditioned", "not smooth", "not finite", "nothing moves it"]
# by which a removal is beyond windows without a spike: its p, or a factor where p cannot reach far
NullRule = Literal["rank", "factor", "none"]
PolicyField = Literal[
    "learning_rate",
    "betas",
    "eps",
    "weight_decay",
    "clip",
    "clip_eps",
    "update_rule",
    "momentum",
    "z_loss",
    "frozen",
    "precision",
    "update",
    "skip_step",
]


@dataclass(frozen=True)
class BlamedStep:
    """The step S that is blamed, and how it stands in the recorded losses."""

    step: int
    value: float  # its recorded loss, nats/token
    baseline: float | None  # recorded loss before it; None where too little was recorded
    scale: float | None  # 1.4826·MAD of the losses before it, nats
    kind: str | None  # of the spike: batch | fast | slow
    onset: int | None  # the spike's first step
    recovered_at: int | None  # first step back in the band
    is_spike: bool = json_key("spike")  # whether the detector calls it (part of) a spike
    remark: str = json_key("words")  # what is particular about the choice; empty where nothing is
    sigma: float | None = field(init=False)  # (value − baseline) / scale

    def __post_init__(self) -> None:
        comparable = self.baseline is not None and self.scale
        sigma = (self.value - (self.baseline or 0.0)) / (self.scale or 1.0) if comparable else None
        object.__setattr__(self, "sigma", sigma)


@dataclass(frozen=True)
class Excess:
    """By how much batch S stands above an ordinary batch, in nats: `data` + `state` is `total`."""

    data: float  # [ℓ(b_S; θ_S) − ℓ(P; θ_S)] − usual gap: batch S is odd
    state: float  # ℓ(P; θ_S) − ℓ(P; θ_A): the model had become worse
    loss: float  # ℓ(b_S; θ_S) of the control
    usual_gap: float  # median of ℓ(b_k; θ_k) − ℓ(P; θ_k) before the window
    probe_before: float  # ℓ(P; θ_A)
    probe_at: float  # ℓ(P; θ_S)
    scale: float  # 1.4826·MAD of the gaps before S: how odd batches usually are
    total: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", self.data + self.state)


@dataclass(frozen=True)
class CurvePoint:
    """One point of the deletion curve, in nats."""

    removed: int  # sequences, the most influential first
    data: float  # what is left of the data part
    state: float  # what is left of the state part
    random: float | None  # what goes with as many random sequences; None: too few others
    excess_removed: float = json_key("taken")  # what goes


@dataclass(frozen=True)
class NullWindow:
    """A window without a spike, searched as the spike's own."""

    step: int  # its last batch, which stands for S
    excess_removed: float = json_key("taken")  # nats, the most that a set of it takes away
    complete: bool = True  # whether every set was tried; else the search ended above the spike's


@dataclass(frozen=True)
class NullWindows:
    """The spike's removal among the most that the same search takes away without a spike."""

    windows: tuple[NullWindow, ...]
    depth: int  # batches before its last that are searched in each
    p: float | None  # (1 + #{windows that take as much}) / (N + 1), over all sets tried
    least_p: float  # the least that N windows can show
    rule: NullRule  # that is met
    finding: Finding

    @property
    def largest(self) -> float | None:
        """Return the most that goes in any of them, nats."""
        return max((window.excess_removed for window in self.windows), default=None)


@dataclass(frozen=True)
class Proof:
    """A set of targets, what its removal takes away, and what chance takes away."""

    who: str  # the set in words
    kind: SuspectKind
    name: str | None  # the document's path or the source that it is named after
    source: str | None  # of that document
    removal: tuple[Slot, ...]
    share: float  # of the excess
    data: float  # nats, what is left of the data part
    state: float  # nats, what is left of the state part
    random: tuple[float, ...]  # nats that go, one for each random removal
    beyond_random: bool  # whether it takes half of the excess more than these, and leads them
    null: NullWindows | None = None  # None: windows without a spike were not searched
    excess_removed: float = json_key("taken", default=0.0)  # nats
    sequences: int = field(init=False)  # that the removal touches
    away: bool = field(init=False)  # whether the spike goes with it
    p: float | None = field(init=False)  # of `null`
    causal: bool = field(init=False)  # beyond both: causal words may be used

    def __post_init__(self) -> None:
        null = self.null
        object.__setattr__(self, "sequences", len({(s.step, s.slot) for s in self.removal}))
        object.__setattr__(self, "away", self.share >= AWAY)
        object.__setattr__(self, "p", null.p if null is not None else None)
        beyond = null is not None and null.finding == "beyond"
        object.__setattr__(self, "causal", beyond and self.beyond_random)


@dataclass(frozen=True)
class DocumentSpan:
    """Where a candidate holds text of a document."""

    document: int
    source: str
    path: str
    first: int  # its first target in the sequence
    targets: int


@dataclass(frozen=True)
class Candidate:
    """One sequence of the window."""

    step: int
    slot: int
    sequence: int  # its id in the corpus; −1: made by an intervention
    document: int | None  # that holds most of its targets; None: made by an intervention
    source: str | None
    path: str | None
    documents: tuple[DocumentSpan, ...]
    part: Literal["data", "state"]  # of the excess that it can have raised
    influence: float | None  # nats that go with it, to first order; None: not looked at
    replayed_effect: float | None  # nats that really go with it; None: not replayed by itself
    text: str  # its beginning
    tokens: tuple[int, ...] | None = None  # T + 1 ids, where tokens are asked for
    token_influence: tuple[float | None, ...] | None = None  # nats; the first token is no target


@dataclass(frozen=True)
class DocumentInfluence:
    """Influence summed over a document's targets in the window."""

    document: int | None  # None: sequences that an intervention made
    source: str | None
    path: str | None
    influence: float | None  # nats; None: no method looked at it
    sequences: int
    targets: int


@dataclass(frozen=True)
class SourceInfluence:
    """Influence summed over a source's documents."""

    source: str | None
    influence: float | None  # nats
    documents: int
    targets: int


@dataclass(frozen=True)
class GroupInfluence:
    """Influence summed over the documents that have one value of an attribute."""

    attribute: str
    value: str
    influence: float | None  # nats
    documents: int
    targets: int
    members: tuple[int, ...]  # the documents' ids


@dataclass(frozen=True)
class Bisection:
    """What delta debugging ends with, level by level."""

    steps: tuple[int, ...]
    sequences: tuple[tuple[int, int], ...]  # step, slot
    documents: tuple[int, ...]
    removal: tuple[Slot, ...]  # the spans of targets that are left
    replaced: bool  # others in their place take the spike away; weight 0 does not
    complete: bool  # whether the budget of replays sufficed
    excess_removed: float = json_key("taken")  # nats that go with `removal`


@dataclass(frozen=True)
class Trial:
    """One altered replay, and whether at least half of the excess is still there."""

    what: str
    left: float  # nats of the excess
    spikes: bool
    start: int  # the state that it starts from


@dataclass(frozen=True)
class PolicyChange:
    """A setting of the update that is otherwise in the window than before it, and its replay."""

    field: PolicyField
    first: int  # the first step with it
    before: str
    inside: str  # at the step that is furthest from before
    trial: Trial  # the window with this setting as before


@dataclass(frozen=True)
class Trials:
    """The replays that tell data, state and policy apart; empty or None where not tried."""

    other_data: tuple[Trial, ...] = ()  # other batches, the same states
    other_states: tuple[Trial, ...] = ()  # the same batches, other states
    up_to_date: Trial | None = None  # second moments with a short memory
    policy: tuple[PolicyChange, ...] = ()  # every setting that changed in the window
    policy_as_before: Trial | None = None  # all of them as before; None: none changed
    neither: Trial | None = None  # other data, and the policy as before
    earlier: tuple[Trial, ...] = ()  # the same from states before the window


@dataclass(frozen=True)
class StaleTensor:
    """A tensor's second moment at its most out of date within the window."""

    tensor: str
    step: int
    staleness: float
    rms_t: float | None
    usual: float  # its median before the window
    times: float | None  # staleness over that median; None where it is 0


@dataclass(frozen=True)
class UpdateBlame(LayerBlame):
    """The update of the window after which P's loss rose most, tensor by tensor."""

    update: int  # the step that made it
    stale: tuple[StaleTensor, ...]  # most out of date first
    line: tuple[LinePoint, ...]
    batch: int  # the step whose batch is measured: S


@dataclass(frozen=True)
class Condition:
    """The influences against two replays: all weights moved by ±epsilon along random signs."""

    epsilon: float
    predicted: float  # change of the target per unit of epsilon, by the influences
    measured: float  # by the replays
    relative_error: float  # |measured − predicted| / |predicted|
    ok: bool
    finding: Conditioning
    sentence: str


@dataclass(frozen=True)
class ProbeLoss:
    """ℓ(P; θ) at one state."""

    state: int
    loss: float  # nats/token


@dataclass(frozen=True)
class BlameResult(ResultRecord):
    """Which step, sequence, document, token and tensor caused a spike, and what proves it."""

    VERSION: ClassVar[int] = 2
    KIND: ClassVar[str] = "blame result"
    AGAIN: ClassVar[str] = "blame the step again: `replay blame RUN --spike S`"

    run: str
    spike: BlamedStep
    height: float | None  # of the recorded spike above the calm losses before it, nats
    calm: int  # the last state before S at which the recorded loss was calm
    window: tuple[int, int]  # causes are looked for in batches first … S
    before: int  # A, the state that the excess is measured from
    method: Method
    control: ControlResult
    probes: str  # what P is, in words
    excess: Excess
    verdict: Verdict
    reason: Reason
    sentence: str  # the reason with its numbers
    look_from: int | None  # the step from which a cause before the window is to be looked for
    p: float | None  # of the proof
    proof: Proof | None  # None: no removal was proved
    candidates: tuple[Candidate, ...]  # those of a proved set first, then by influence
    documents: tuple[DocumentInfluence, ...]  # in the same order
    sources: tuple[SourceInfluence, ...]  # most influential first
    smallest: int | None  # fewest of the most influential sequences that take the spike away
    deletion_curve: tuple[CurvePoint, ...]
    bisection: Bisection | None
    trials: Trials
    tensors: UpdateBlame | None  # None where the state part is small
    condition: Condition | None  # None: no derivative was taken
    notes: tuple[str, ...]  # what was done otherwise than asked, and why
    probe_losses: tuple[ProbeLoss, ...]
    replays: int  # the control is one
    steps_replayed: int
    interrupted: bool
    seconds: float
    created: str
    rules: tuple[Rule, ...] = RULES  # every number by which this was judged
    groups: tuple[GroupInfluence, ...] = ()  # by the attribute that was asked for
