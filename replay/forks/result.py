"""What a fork found, and what one would do: the records that commands, pages and JSON share.

`runs/<fork>/fork.json` holds a ForkResult; docs/formulas.md, "Forks", defines the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from forensics.result_records import ResultRecord, json_key
from replay.compare.null_test import Change, Finding
from replay.compare.spike_outcomes import SpikeOutcome
from replay.verify import Level

RESULT_FILE = "fork.json"


@dataclass(frozen=True)
class ControlResult:
    """How the control stands to the parent that was recorded."""

    level: Level
    bitwise: bool  # every compared step was equal bit for bit
    sentence: str


@dataclass(frozen=True)
class LossGap:
    """Control and fork at the end, on one set of sequences; losses in nats/token."""

    loss_control: float | None = None  # None: the set is empty
    loss_fork: float | None = None
    loss_error: float | None = None  # standard error of their difference over the sequences
    placebo_loss_gaps: tuple[float, ...] = ()  # placebo − control

    @property
    def gap(self) -> float | None:
        """Return fork − control, nats/token."""
        if self.loss_fork is None or self.loss_control is None:
            return None
        return self.loss_fork - self.loss_control


@dataclass(frozen=True)
class UnseenGap(LossGap):
    """The same on sequences that the order draws next and that no arm has consumed."""

    sequences: int = 0


@dataclass(frozen=True)
class ChaosDistances:
    """How far forks ended whose start was moved by the smallest noise there is: what the fork may
    be set against where it has no placebo. No p follows from them, for they touch no data.
    """

    forks: int
    median: float  # ‖θ_chaos − θ_control‖₂: too small to be seen in a KL
    largest: float


@dataclass(frozen=True)
class ForkEnd(LossGap):
    """Fork − control at the end of the window."""

    probe_sequences: int = 0
    unseen: UnseenGap = UnseenGap()
    logit_kl: float | None = None  # mean KL(control ‖ fork) on the probe set, nats
    l2: float = 0.0  # ‖θ_fork − θ_control‖₂
    cosine: float = 0.0  # of the two displacements from the start
    measure: Literal["logit_kl", "l2"] = "logit_kl"  # what effect, p and verdict are of
    effect: float | None = None  # times the placebos' median
    p: float | None = None  # of the distance alone
    p_corrected: float | None = None  # of distance and change of the loss together
    least_p: float | None = None  # the smallest that this many placebos can show
    placebos: int = 0  # N, distinct ones
    causal: bool = False  # whether causal words may be used
    finding: Finding = "none run"
    verdict: str = ""  # the finding in words
    placebo_largest: float | None = None
    loss_change: Change | None = None  # of the loss beside the placebos'; None: no placebo
    chaos: ChaosDistances | None = None  # None: no chaos fork was run


@dataclass(frozen=True)
class FirstDifference:
    """Where fork and control part first."""

    step: int  # the step after which they differ
    tensor: str
    layer: int | None
    element: int  # index in the flattened tensor


@dataclass(frozen=True)
class BarrierHeight:
    """The height of the loss on the line from the control's state to an arm's."""

    step: int  # the state
    arm: str
    height: float  # nats
    alpha: float  # where on the line it is highest


@dataclass(frozen=True)
class DivergenceRow:
    """Fork − control at one state; what was not measured there is None."""

    step: int  # the state
    loss_gap: float | None  # nats/token, probe set
    unseen_gap: float | None  # nats/token, sequences that no arm has consumed
    logit_kl: float | None  # nats
    barrier: float | None  # nats
    l2: float


@dataclass(frozen=True)
class ForkResult(ResultRecord):
    """A finished fork, beside its control and its null forks."""

    VERSION: ClassVar[int] = 2  # 2: placebos have other data in the same places
    KIND: ClassVar[str] = "fork"
    AGAIN: ClassVar[str] = "run the fork again with --again"

    fork: str  # its name
    parent: str
    first: int = json_key("from")  # the state it starts from
    last: int = json_key("to")  # first step that was no longer run
    does: str = ""
    interventions: tuple[dict[str, Any], ...] = ()
    placebos: int = 0  # distinct ones that were run
    placebos_asked: int = 0
    chaos: int = 0
    control: ControlResult = ControlResult("absent", False, "")
    first_difference: FirstDifference | None = None  # None: no bit differs at the end
    spikes: tuple[SpikeOutcome, ...] = ()  # of the loss: the control's, and what the fork has
    final: ForkEnd = ForkEnd()
    time_to_reconverge: int | None = None  # steps; None: not within the window, or no placebo
    censored: str | None = None  # "> steps" where it did not come back
    time_to_reconverge_chaos: int | None = None  # the same among the chaos forks
    censored_chaos: str | None = None
    barriers: tuple[BarrierHeight, ...] = ()
    divergence: tuple[DivergenceRow, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class ForkPlan(ResultRecord):
    """What a fork would do, without a step of it."""

    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "plan"
    AGAIN: ClassVar[str] = "run `replay fork --dry-run` again"

    fork: str
    parent: str
    first: int = json_key("from")
    last: int = json_key("to")
    does: str = ""
    interventions: tuple[dict[str, Any], ...] = ()
    arms: int = 2  # control, fork and null forks, with the controls of placebos
    placebos: int = 0  # that can be drawn, of those asked for
    placebos_exist: bool = True  # whether these interventions have any
    sequences: int = 0  # that the interventions touch
    sequences_by_step: dict[int, int] = json_key("sequences_by_step", default_factory=dict)
    tokens: int = 0  # targets that they touch
    documents: tuple[int, ...] = ()  # that they name
    steps_to_compute: int = 0  # over all arms, and those that lead to the start
    probe_readings: int = 0  # states at which every arm is read on the probe sets
    hours: float = 0.0  # of steps and readings, at the parent's seconds a step
    memory_bytes: int = 0  # of the arms' states
