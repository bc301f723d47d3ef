"""Which of a source's checkpoints become one run: a stage whose steps begin again is another.

choose(foreign, options).checkpoints
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from forensics.errors import ForensicsError, nearest
from forensics.foreign.options import ImportOptions
from forensics.formats import recognised
from forensics.formats.foreign_run import ForeignCheckpoint, ForeignRun
from forensics.train.origin import Stage

SHOWN = 12  # steps that a sentence lists


@dataclass(frozen=True)
class Chosen:
    """The checkpoints of one run, and what the source holds beside them."""

    checkpoints: tuple[ForeignCheckpoint, ...]
    stage: str
    stages: tuple[Stage, ...]
    notes: tuple[str, ...] = ()

    @staticmethod
    def place(checkpoint: ForeignCheckpoint) -> Path:
        """Return what a linked checkpoint's reader is given: its own folder, where that is one."""
        known = recognised(checkpoint.path)
        alone = known is not None and known.read_run is not None
        return checkpoint.path if alone else checkpoint.path.parent


def choose(foreign: ForeignRun, options: ImportOptions) -> Chosen:
    """Choose stage and checkpoints. Errors: usage, missing, where --stage or --steps name none."""
    if not foreign.checkpoints:
        return Chosen((), "", ())
    stages = tuple(_stage(name, of) for name, of in _by_stage(foreign).items())
    name, notes = _chosen_stage(stages, options.stage)
    of_stage = [c for c in foreign.checkpoints if name is None or c.stage == name]
    return Chosen(_steps(of_stage, options.steps), name or "", stages, notes)


def _by_stage(foreign: ForeignRun) -> dict[str, list[ForeignCheckpoint]]:
    stages: dict[str, list[ForeignCheckpoint]] = {}
    for checkpoint in foreign.checkpoints:
        stages.setdefault(checkpoint.stage, []).append(checkpoint)
    return stages


def _stage(name: str, checkpoints: Sequence[ForeignCheckpoint]) -> Stage:
    steps = [checkpoint.step for checkpoint in checkpoints]
    return Stage(name, min(steps), max(steps), len(steps))


def _chosen_stage(
    stages: tuple[Stage, ...], wanted: str | None
) -> tuple[str | None, tuple[str, ...]]:
    """Return the stage to bring in, None for all of them: their steps run on. Errors: usage."""
    names = [stage.name for stage in stages]
    if wanted is not None:
        if wanted not in names:
            raise ForensicsError(
                "usage", f"wanted stage {wanted!r}, found none of that name", nearest(wanted, names)
            )
        others = [name or "the one without a name" for name in names if name != wanted]
        note = f"left out: {', '.join(others)}; a run of its own each, with --stage"
        return wanted, (note,) if others else ()
    in_order = sorted(stages, key=lambda stage: stage.first)
    if all(later.first > earlier.last for earlier, later in itertools.pairwise(in_order)):
        return None, ()
    first = stages[0]
    others = [stage.name for stage in stages[1:]]
    note = (
        f"its stages' steps begin again, so this run is {first.name or 'the one without a name'}"
        f" alone; --stage brings in the others as runs of their own: {', '.join(others)}"
    )
    return first.name, (note,)


def _steps(
    checkpoints: list[ForeignCheckpoint], wanted: tuple[int, ...]
) -> tuple[ForeignCheckpoint, ...]:
    """Return the checkpoints of these steps, or all of them. Errors: missing."""
    by_step = {checkpoint.step: checkpoint for checkpoint in checkpoints}
    for step in wanted:
        if step not in by_step:
            steps = sorted(by_step)
            listed = ", ".join(map(str, steps[:SHOWN])) + ", …" * (len(steps) > SHOWN)
            raise ForensicsError(
                "missing",
                f"--steps: wanted a checkpoint at {step}, found none",
                f"there are {listed}",
            )
    return tuple(by_step[step] for step in sorted(wanted or by_step))
