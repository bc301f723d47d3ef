"""Is it the data or the state? Each batch of a window from each of several states.

matrix(runs, "demo")                                    # of the largest spike, states chosen
matrix(runs, "demo", 398, 406, [200, 390, 401])

A cell (s, b) has L, the loss of batch b at θ_s. Where state s took a step on b, by the policy that
the run has at s, it has the gradient norm too, and the jump: the loss on the probe set after that
step, less the median over the placebo batches. The latest state is judged, the others are what it
is judged by (replay.experiments.matrix_parts). The document is `matrix-<hash>.json` in the run's
folder, for the app.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from forensics.progress import ProgressCallback, silent
from forensics.step.batch import Batch
from forensics.step.state import TrainState
from forensics.store.resumable import Kept
from forensics.train.advance import advance, token_losses
from forensics.train.run import Run
from replay.compare.medians import median_of_present
from replay.compare.probe_sequences import Probe
from replay.experiments.beside_blame import beside_blame
from replay.experiments.matrix_parts import Layout, conclude, parts_of
from replay.experiments.matrix_scope import (
    PLACEBOS,
    Scope,
    applied,
    batch_of,
    identity_of,
    placebos_of,
    probed,
    require,
    scope_of,
)
from replay.experiments.results import (
    MatrixCell,
    MatrixEffects,
    MatrixResult,
)
from replay.lineage import open_trajectory
from replay.result_files import keep_result
from replay.step.states_along import states_along

MEASURES = ("loss", "jump", "grad_norm")


@dataclass(frozen=True)
class _Cell:
    """One batch at one state; None where no step was taken, or there is no probe set."""

    loss: float  # nats/token
    sequences: list[float]  # each one's share of it times their number: their mean is the loss
    grad_norm: float | None = None
    after: float | None = None  # loss on the probe set after the step


def matrix(
    runs: Path,
    name: str,
    first: int | None = None,
    last: int | None = None,
    states: Sequence[int] | None = None,
    progress: ProgressCallback = silent,
    spike: int | None = None,
) -> MatrixResult:
    """Hold each batch against each state; what is not said is chosen around the spike.

    Finished cells are kept. A jump is None where the run holds nothing out. Errors: usage, missing,
    integrity.
    """
    run = open_trajectory(runs, name)
    scope = scope_of(run, first, last, states, spike)
    require(run, scope)
    cells = _measured(run, scope, progress)
    placebos = placebos_of(scope)
    steps = range(scope.first, scope.last)
    layouts = {
        "loss": _layout(cells, scope, scope.states, "loss"),
        "jump": _layout(cells, scope, scope.stepping, "after"),
        "grad_norm": _layout(cells, scope, scope.stepping, "grad_norm"),
    }
    effects: dict[str, MatrixEffects | None] = {
        measure: parts_of(layouts[measure]) for measure in MEASURES
    }
    conclusion = conclude(effects)
    described = [_described(cells, s, b, placebos, b < s) for s in scope.states for b in steps]
    window = (scope.first, scope.last)
    result = MatrixResult(
        run=name,
        batches=window,
        states=scope.states,
        jump_states=scope.stepping,
        placebos=PLACEBOS,
        probe_sequences=Probe(run).sequences,
        consumed=sum(cell.consumed for cell in described),
        cells=tuple(described),
        effects=effects,
        conclusion=conclusion,
        blame=beside_blame(run.folder, window, scope.states[-1], conclusion),
    )
    identity = f"{identity_of(run)} {scope.first}:{scope.last} {list(scope.states)}"
    keep_result(run.folder, "matrix", identity, result)
    return result


def _measured(run: Run, scope: Scope, progress: ProgressCallback) -> dict[tuple[int, int], _Cell]:
    """Measure every cell that is not kept, and return all by state and batch."""
    finished = Kept(run.folder / "matrix", f"{identity_of(run)} by sequence")
    steps = [*placebos_of(scope), *range(scope.first, scope.last)]
    names = {(s, b): f"{s} {b}" + "+" * (s in scope.stepping) for s in scope.states for b in steps}
    missing = {cell for cell, key in names.items() if key not in finished}
    total, probe = len(names), Probe(run)
    computed = total - len(missing)
    waiting = sorted({s for s, _ in missing})
    for state_step, state in zip(waiting, states_along(run, waiting)):
        for b in (b for b in steps if (state_step, b) in missing):
            batch = batch_of(run, b)
            if state_step in scope.stepping:
                cell = _stepped(run, state, batch, probe)
            else:
                cell = _looked_at(run, state, batch)
            finished.put(names[state_step, b], dataclasses.asdict(cell))
            computed += 1
            progress(computed, total, f"state {state_step}")
    return {cell: _Cell(**finished.get(key)) for cell, key in names.items()}


def _layout(
    cells: dict[tuple[int, int], _Cell], scope: Scope, states: Sequence[int], value: str
) -> Layout:
    """Lay one measure out by state and batch; the loss by sequence too."""

    def table(steps: Iterable[int], value: str, window: bool) -> np.ndarray:
        """(R, W), or (R, W, B) by sequence; NaN where the state was trained on the batch."""
        columns = list(steps)
        rows = [[getattr(cells[s, b], value) for b in columns] for s in states]
        values = np.array(rows, np.float64)
        consumed = np.array(states)[:, None] > np.array(columns)[None, :]
        values[consumed & window] = np.nan
        return values

    placebos, window = placebos_of(scope), range(scope.first, scope.last)
    by_sequence = value == "loss" and len({len(cell.sequences) for cell in cells.values()}) == 1
    return Layout(
        states,
        scope.first,
        table(window, value, True),
        table(placebos, value, False),
        table(window, "sequences", True) if by_sequence else None,
        table(placebos, "sequences", False) if by_sequence else None,
    )


def _described(
    cells: dict[tuple[int, int], _Cell], state: int, step: int, placebos: range, consumed: bool
) -> MatrixCell:
    cell, ordinary = cells[state, step], [cells[state, b] for b in placebos]
    after = median_of_present([placebo.after for placebo in ordinary])
    return MatrixCell(
        state=state,
        step=step,
        jump=None if cell.after is None or after is None else cell.after - after,
        loss=cell.loss,
        grad_norm=cell.grad_norm,
        consumed=consumed,
        loss_placebo=median_of_present([placebo.loss for placebo in ordinary]),
        grad_norm_placebo=median_of_present([placebo.grad_norm for placebo in ordinary]),
    )


def _stepped(run: Run, state: TrainState, batch: Batch, probe: Probe) -> _Cell:
    """Take one step on the batch from a copy of the state."""
    moved = state.clone()
    result = advance(moved, batch, applied(run, state), run.model)
    assert result.ce is not None and result.loss is not None
    return _Cell(
        result.loss, _by_sequence(result.ce, batch), result.grad_norm, probed(moved, probe)
    )


def _looked_at(run: Run, state: TrainState, batch: Batch) -> _Cell:
    """Measure the loss of the batch at the state, and take no step."""
    ce = token_losses(state.params, batch, run.model, run.header.precision)
    sequences = _by_sequence(ce, batch)
    return _Cell(math.fsum(sequences) / len(sequences), sequences)


def _by_sequence(ce: Tensor, batch: Batch) -> list[float]:
    """Return each sequence's share of the batch's loss, times their number."""
    shares = (ce.double().cpu() * batch.weight.double()).sum(1) / batch.denominator
    return (shares * len(shares)).tolist()
