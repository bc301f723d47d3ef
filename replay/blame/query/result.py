"""What is known of a text's loss and the data behind it: the records of `replay blame --query`.

docs/formulas.md, "Blame", defines the numbers. A, B are the window's bounds: batches A … B−1 are
examined; the loss is that of the text at state `at` ≥ B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from forensics.result_records import ResultRecord
from replay.blame.result import Condition, DocumentInfluence, DocumentSpan, SourceInfluence
from replay.forks.result import ControlResult
from replay.interventions.rows import Slot

Direction = Literal["lower", "raise"]  # what the sequences do to the loss, by their influence
RemovalFinding = Literal[
    "beyond",  # replay says so too, beyond random removals
    "not beyond random removals",
    "too few random removals",  # p cannot reach the level, whatever they show
    "not finite",
    "no influence",  # no sequence has any of this direction
    "interrupted",
]


@dataclass(frozen=True)
class QueryDescription:
    """The text that is asked about."""

    text: str  # its beginning
    file: str | None  # its name; None: the text was given
    texts: int
    windows: int  # that the model reads one by one
    tokens: int  # predicted


@dataclass(frozen=True)
class QuerySequence:
    """One sequence of the window and its influence; `influence` > 0: it raises the loss."""

    step: int
    slot: int
    sequence: int  # its id in the corpus; −1: made by an intervention
    document: int | None  # that holds most of its targets; None: made by an intervention
    source: str | None
    influence: float  # nats/token by which the loss falls, to first order, without it


@dataclass(frozen=True)
class QueryCandidate(QuerySequence):
    """A strong one, with its text."""

    path: str | None
    documents: tuple[DocumentSpan, ...]
    text: str  # its beginning
    tokens: tuple[int, ...] | None = None  # T + 1 ids, where tokens are asked for
    token_influence: tuple[float | None, ...] | None = None  # the first token is no target


@dataclass(frozen=True)
class StepInfluence:
    """Influence summed over a batch."""

    step: int
    influence: float  # nats/token


@dataclass(frozen=True)
class RemovalTest:
    """The strongest sequences of one direction left out by replay, beside as many random ones.

    Changes are of the loss, nats/token: positive where it rises without them.
    """

    direction: Direction
    removal: tuple[Slot, ...]
    predicted: float  # −Σ influence
    measured: float | None  # by replay; None: not run
    random: tuple[float, ...]  # one for each distinct random removal
    matched: Literal["steps", "window"]  # where random sequences come from
    p: float | None  # (1 + #{random at least as far in that direction}) / (N + 1)
    tests: int  # sets of this result that are tested, which p is multiplied by
    corrected_p: float | None
    finding: RemovalFinding
    sentence: str


@dataclass(frozen=True)
class SubsetChange:
    """One random subset left out, nats/token."""

    sequences: int
    predicted: float  # −Σ influence
    measured: float  # by replay


@dataclass(frozen=True)
class DatamodelScore:
    """Linear datamodeling score: Spearman of predicted and measured changes over subsets."""

    share: float  # of the window's sequences that each subset leaves out
    subsets: tuple[SubsetChange, ...]
    score: float | None  # None: one of the two does not vary
    low: float | None  # bootstrap over subsets
    high: float | None
    level: float  # of the interval
    p: float | None  # of a score as high by chance, by permutation
    slope: float | None  # least squares of measured on predicted, through 0: 1 is the right size
    sentence: str


@dataclass(frozen=True)
class InfluenceResult(ResultRecord):
    """Influence of every sequence of a window on the loss of a text at a state, with its proof."""

    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "influence result"
    AGAIN: ClassVar[str] = "ask again: `replay blame RUN --query TEXT`"

    run: str
    query: QueryDescription
    at: int  # the state whose loss is explained
    window: tuple[int, int]  # batches first … last−1
    loss: float  # of the text there, nats/token
    control: ControlResult
    precision: str  # of the metagradient
    sentence: str
    removals: tuple[RemovalTest, ...]  # of the sequences that lower the loss, and that raise it
    candidates: tuple[QueryCandidate, ...]  # strongest first, by size
    sequences: tuple[QuerySequence, ...]  # all of the window that weigh anything, in the same order
    steps: tuple[StepInfluence, ...]
    documents: tuple[DocumentInfluence, ...]  # strongest first, by size
    sources: tuple[SourceInfluence, ...]
    validation: DatamodelScore | None  # None: not asked for
    condition: Condition | None
    notes: tuple[str, ...]
    replays: int
    steps_replayed: int
    interrupted: bool
    seconds: float
    created: str
