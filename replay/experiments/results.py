"""What scans, matrices, sweeps and noise found: the records that commands, pages and JSON share.

docs/formulas.md, "Forks", defines the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from forensics.result_records import ResultRecord, json_key
from replay.compare.null_test import Finding
from replay.experiments.ablation_result import AblationResult
from replay.experiments.boost_result import BoostResult
from replay.verify import Level


@dataclass(frozen=True)
class ScanRow:
    """One batch, or one sequence of it, held against a frozen state."""

    step: int
    slot: int | None  # None: the whole batch
    loss: float  # nats/token
    grad_norm: float  # before clipping


@dataclass(frozen=True)
class ScanResult(ResultRecord):
    """A scan, the largest gradient norm first, what is not finite before all."""

    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "scan"
    AGAIN: ClassVar[str] = "run `replay scan` again"

    state: str
    batches: tuple[ScanRow, ...]


TESTS = 6  # p values that a matrix's conclusion may rest on: three parts, of the loss and the jump
Part = Literal["data", "state", "interaction"]
MatrixVerdict = Literal["data", "state", "interaction", "several", "cannot tell"]
MatrixReason = Literal[
    "shown",
    "no p is small enough",
    "too few to show",  # placebos or states, or uneven ones: a part could not have been shown
    "not finite",  # a cell that takes part, or no state beside the judged one
]
Comparison = Literal[
    "agree",
    "one cannot tell",
    "the state was made before it",  # blame: earlier batches or policy; the matrix: what they left
    "blame tries more",  # other moments and policies, which a loss before the update does not feel
    "they differ",
]


@dataclass(frozen=True)
class MatrixCell:
    """One batch from one state; jump and loss in nats."""

    state: int
    step: int  # the batch
    jump: float | None  # of the probe loss after the step, less the placebo batches' median
    loss: float | None  # of the batch at the state
    grad_norm: float | None  # None, as the jump, where no step was taken from the state
    consumed: bool  # the state has been trained on the batch
    loss_placebo: float | None  # median over the placebo batches
    grad_norm_placebo: float | None


@dataclass(frozen=True)
class BatchEffect:
    """What a batch adds at the states beside the judged one."""

    step: int
    effect: float


@dataclass(frozen=True)
class StateEffect:
    """What a state adds to the placebo batches, over the states beside the judged one."""

    state: int
    effect: float


@dataclass(frozen=True)
class JointEffect:
    """What is left: this batch from this state."""

    state: int
    step: int
    effect: float


@dataclass(frozen=True)
class PartEffect:
    """A part of the rise at the judged state: how large, and how often ordinary ones are as large.

    None where no cell is left to measure it by.
    """

    part: Part
    mean_square: float | None  # per degree of freedom: alike for all parts on pure noise
    freedom: int  # degrees of freedom: batches, or 1 for the state
    over_noise: float | None  # mean square over that of what the placebos leave unexplained
    rise: float | None  # of the strongest batch; of the state, since the state before it
    step: int | None  # that batch; None: the state's part
    p: float | None  # of the strongest, corrected over the batches
    p_at_best: float | None  # the least that so many placebos and states can show
    scales: float | None  # rise over 1.4826·MAD of its null
    present: bool  # p is small enough to say that the part is there


@dataclass(frozen=True)
class MatrixEffects:
    """One measure taken apart: mean + data + state + interaction, by cells that were not
    consumed.
    """

    judged: int  # the state that is judged: the latest
    mean: float  # of the placebos at the other states
    data: tuple[BatchEffect, ...]
    state: tuple[StateEffect, ...]
    interaction: tuple[JointEffect, ...]
    parts: tuple[PartEffect, ...]  # data, state, interaction
    noise: float  # mean square of what neither state nor batch explains of the placebos
    placebo_scale: float | None  # 1.4826·MAD over the placebo batches, median over the states


@dataclass(frozen=True)
class MatrixConclusion:
    """What the rise at the judged state is made of."""

    verdict: MatrixVerdict
    measure: Literal["loss", "jump"]  # that it rests on
    parts: tuple[Part, ...]  # that are named, the largest first
    reason: MatrixReason


@dataclass(frozen=True)
class BesideBlame:
    """What `blame` said of a spike in the window, and how the two stand to each other."""

    step: int  # the spike's
    verdict: str  # blame's
    data: float  # nats of the excess by blame
    state: float
    comparison: Comparison


@dataclass(frozen=True)
class MatrixResult(ResultRecord):
    """Each batch of a window from each of several states."""

    VERSION: ClassVar[int] = 2
    KIND: ClassVar[str] = "matrix"
    AGAIN: ClassVar[str] = "run `replay matrix` again: finished cells are kept"

    run: str
    batches: tuple[int, int]  # half-open
    states: tuple[int, ...]
    jump_states: tuple[int, ...]  # those of them that took a step, for jump and gradient norm
    placebos: int  # batches
    probe_sequences: int
    consumed: int  # cells whose state has been trained on their batch: left out
    cells: tuple[MatrixCell, ...]
    effects: dict[str, MatrixEffects | None]  # by measure; None: a cell is missing or not finite
    conclusion: MatrixConclusion
    blame: BesideBlame | None  # None: no spike of the window was blamed


@dataclass(frozen=True)
class WindowFromState:
    """The whole window run from one state; losses in nats."""

    state: int
    consumed: bool  # the state has been trained on some of it
    losses: tuple[float, ...]
    peak: float  # the highest
    placebo_median: float | None
    sigma: float | None  # of the peak against the placebos
    spiked: bool  # sigma above 6, or a loss that is not finite
    jump: float | None  # probe loss after the window, less that after as many placebo batches


@dataclass(frozen=True)
class WindowsResult(ResultRecord):
    """A window of batches, run from each of several states."""

    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "matrix of whole windows"
    AGAIN: ClassVar[str] = "run `replay matrix --window` again: finished windows are kept"

    run: str
    batches: tuple[int, int]
    states: tuple[int, ...]
    probe_sequences: int
    windows: tuple[WindowFromState, ...]


@dataclass(frozen=True)
class PointControl:
    """How a point's control stands to the recorded run."""

    level: Level
    bitwise: bool
    compared: int  # steps
    what: str  # what was compared


@dataclass(frozen=True)
class SweepPoint:
    """One fork from one step: distances at the end of its horizon."""

    step: int  # the state it starts from
    arm: Literal["own", "equal"]  # by the run's own learning rate, or by one rate throughout
    seed: int
    learning_rate: float
    control: PointControl
    l2: float
    moved: float  # L2 that the control moved from the start
    l2_over_moved: float | None
    logit_kl: float | None  # nats
    loss_gap: float | None  # nats/token
    over_placebos: float | None  # L2 over the placebos' median
    p: float | None
    placebos: int
    finding: Finding
    verdict: str  # the finding in words
    logit_kl_over_placebos: float | None
    logit_kl_p: float | None
    placebo_l2: tuple[float, ...]
    chaos_l2: tuple[float, ...]
    measure: Literal["logit_kl", "l2"]  # of time_to_reconverge
    time_to_reconverge: int | None  # steps
    censored: str | None  # "> steps" where it did not come back


@dataclass(frozen=True)
class SweepRow:
    """All seeds of one step and arm together."""

    step: int
    arm: Literal["own", "equal"]
    seeds: int
    learning_rate: float
    l2: float  # median
    l2_range: tuple[float, float]
    l2_over_moved: float | None
    placebo_range: tuple[float, float] | None
    over_placebos: float | None
    p: float | None  # against all seeds' placebos together
    placebos: int
    finding: Finding
    verdict: str
    time_to_reconverge: float | None  # median, steps
    censored: int | None  # seeds that did not come back
    bitwise: bool  # every control


@dataclass(frozen=True)
class SweepResult(ResultRecord):
    """The same intervention from many steps."""

    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "sweep"
    AGAIN: ClassVar[str] = "run `replay sweep` again"

    run: str
    does: str
    first: int = json_key("from")  # the step that the fork file was written for
    steps: tuple[int, ...] = ()
    horizon: int = 0  # steps of each fork
    seeds: int = 1
    equal_learning_rate: float = 0.0
    placebos: int = 0
    points: tuple[SweepPoint, ...] = ()
    summary: tuple[SweepRow, ...] = ()


@dataclass(frozen=True)
class NoiseControl:
    """How a point's control stands to the recorded run."""

    level: Level
    bitwise: bool
    compared: int  # steps


@dataclass(frozen=True)
class NoisePoint:
    """Chaos forks from one state; distances in L2 of all parameters from the control."""

    step: int
    divergence_exponent: float | None  # per step, median over seeds; None: no seed has one
    exponents: tuple[float | None, ...]  # by seed
    fitted_steps: tuple[int, ...]  # by seed: steps that its exponent rests on
    start: float  # median over seeds, before the first step
    l2: tuple[float, ...]  # after each step, median over seeds
    placebo: tuple[float, ...]  # after each step, of the fork with one other sequence
    control: NoiseControl
    # in bf16 training, before and after each step: weights of the layers' matrices that the cast
    # makes another number of, median over seeds; where it is 0 the noise dies in the cast
    cast_weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class NoiseResult(ResultRecord):
    """How fast the smallest noise grows from each of several states."""

    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "measurement of noise"
    AGAIN: ClassVar[str] = "run `replay noise` again"

    run: str
    window: int  # steps
    seeds: int
    points: tuple[NoisePoint, ...]


# the record of each kind of file `<kind>-<hash>.json` in a run's folder
KEPT: dict[str, type[ResultRecord]] = {
    "sweep": SweepResult,
    "matrix": MatrixResult,
    "windows": WindowsResult,
    "boost": BoostResult,
    "ablation": AblationResult,
}
