"""Where two runs part: a fork from its control, or any two runs that share steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from forensics.errors import ForensicsError
from forensics.result_records import ResultRecord
from forensics.train.run import Run
from replay.compare import distances
from replay.forks.result import RESULT_FILE, ControlResult, ForkEnd, ForkResult
from replay.lineage import open_trajectory
from replay.verify import COMPARED, equal_values, recorded_steps


@dataclass(frozen=True)
class Parting:
    """The first step after which two runs differ, and in what."""

    step: int
    what: str  # loss | grad_norm | state_digest | parameters
    tensor: str | None = None
    layer: int | None = None
    element: int | None = None  # index in the flattened tensor


@dataclass(frozen=True)
class DiffRow:
    """Fork − run at one step; what was not measured or recorded there is None."""

    step: int
    loss_gap: float | None  # nats/token
    logit_kl: float | None  # nats
    l2: float | None  # of the parameters


@dataclass(frozen=True)
class RunDiff(ResultRecord):
    """How far two runs are apart, step by step."""

    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "diff"
    AGAIN: ClassVar[str] = "run `replay diff` again"

    run: str
    fork: str
    first_difference: Parting | None  # None: no difference was found
    divergence: tuple[DiffRow, ...]
    time_to_reconverge: int | None = None  # steps; of a fork with placebos
    censored: str | None = None  # "> steps" where it did not come back
    control: ControlResult | None = None  # of a fork, as is its end
    final: ForkEnd | None = None


def between(runs: Path, name: str, other: str) -> RunDiff:
    """Tell where two runs part and how far they are apart after. Errors: missing, usage."""
    a, b = open_trajectory(runs, name), open_trajectory(runs, other)
    return _from_its_control(b) if b.header.parent == name else _recorded(a, b)


def _from_its_control(fork: Run) -> RunDiff:
    path = fork.folder / RESULT_FILE
    if not path.is_file():
        raise ForensicsError(
            "missing", f"{fork.name} was not finished", "run `replay fork` again: it starts anew"
        )
    result = ForkResult.read(path)
    first, parting = result.first_difference, None
    if first is not None:
        parting = Parting(first.step, "parameters", first.tensor, first.layer, first.element)
    return RunDiff(
        run=result.parent,
        fork=fork.name,
        first_difference=parting,
        divergence=tuple(
            DiffRow(row.step, row.loss_gap, row.logit_kl, row.l2) for row in result.divergence
        ),
        time_to_reconverge=result.time_to_reconverge,
        censored=result.censored,
        control=result.control,
        final=result.final,
    )


def _recorded(a: Run, b: Run) -> RunDiff:
    """Two runs by what was recorded of them: losses by step, parameters where both saved a
    state. A NaN equals a NaN.
    """
    last = min(a.header.steps, b.header.steps)
    rows_a, rows_b = recorded_steps(a, 0, last), recorded_steps(b, 0, last)
    shared = sorted(rows_a.keys() & rows_b.keys())
    if not shared:
        raise ForensicsError(
            "usage",
            f"{a.name} and {b.name} share no recorded step",
            "give a run and its fork, or two runs of equal steps",
        )
    states = set(a.saved_steps()) & set(b.saved_steps()) if a.shape == b.shape else set()
    first, divergence = None, []
    for step in shared:
        x, y = rows_a[step], rows_b[step]
        if first is None and (column := _first_unequal(x, y)) is not None:
            first = Parting(step, column)
        l2 = None
        if step + 1 in states:
            params = [run.load(step + 1).params for run in (a, b)]
            l2 = distances.distance(params[0], params[1], params[1]).l2[""]
        gap = y["loss"] - x["loss"] if None not in (x["loss"], y["loss"]) else None
        divergence.append(DiffRow(step, gap, None, l2))
    return RunDiff(a.name, b.name, first, tuple(divergence))


def _first_unequal(x: dict[str, Any], y: dict[str, Any]) -> str | None:
    """Name the first recorded column that differs; a digest that was not recorded differs from
    none.
    """
    for column in COMPARED:  # NULL where nothing was computed: a step that one of them skipped
        if not equal_values(x[column], y[column]):
            return column
    digests = x["state_digest"], y["state_digest"]
    return "state_digest" if None not in digests and digests[0] != digests[1] else None
