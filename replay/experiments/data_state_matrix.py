"""Is it the data or the state? Each batch of a window from each of several states.

matrix(runs, "demo", 398, 406, [200, 390, 401])
windows(runs, "demo", 398, 406, [200, 390])      PaLM's test: the whole window from each state

A cell (s, b): state s takes one step on batch b, by the policy that the run has at s. J is the loss
on the probe set after it, less the median over 8 placebo batches that were drawn after the run's
end; L and the gradient norm are those of b at θ_s, before the step. Each is then μ + α_b (data) +
σ_s (state) + γ_bs (interaction). The document is `matrix-<hash>.json` in the run's folder, for the
app.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback, silent
from forensics.step.batch import Batch
from forensics.step.state import TrainState
from forensics.store.resumable import Kept
from forensics.train.advance import advance
from forensics.train.run import Run
from replay.compare.medians import median_of_present, spread_of_present
from replay.compare.probe_sequences import Probe
from replay.experiments.results import (
    BatchEffect,
    JointEffect,
    MatrixCell,
    MatrixEffects,
    MatrixResult,
    PartSizes,
    StateEffect,
    WindowFromState,
    WindowsResult,
)
from replay.forks.lockstep import require_steps
from replay.lineage import open_trajectory, require_intact
from replay.result_files import keep_result

PLACEBOS = 8  # batches
SIGMAS = 6.0  # of the robust spike detector
SHORTEST = 16  # placebo steps that a median and a MAD are taken of
MEASURES = ("jump", "loss", "grad_norm")


def matrix(
    runs: Path,
    name: str,
    first: int,
    last: int,
    states: Sequence[int],
    progress: ProgressCallback = silent,
) -> MatrixResult:
    """Run each batch from each state; finished cells are kept.

    A jump is None where the run holds nothing out. Errors: usage, missing, integrity.
    """
    run, states = _opened(runs, name, first, last, states)
    finished = Kept(run.folder / "matrix", _identity(run))
    batches = [("placebo", run.header.steps + i) for i in range(PLACEBOS)] + [
        ("batch", batch_step) for batch_step in range(first, last)
    ]
    total, computed = len(states) * len(batches), 0
    probe = Probe(run)
    for state_step in states:
        missing = [
            batch_step for _, batch_step in batches if f"{state_step} {batch_step}" not in finished
        ]
        state = run.state_at(state_step) if missing else None
        computed += len(batches) - len(missing)
        for batch_step in missing:
            assert state is not None
            finished.put(
                f"{state_step} {batch_step}", _cell(run, state, _batch(run, batch_step), probe)
            )
            computed += 1
            progress(computed, total, f"state {state_step}")
    cells, scales = [], []
    for state_step in states:
        placebos = [
            finished.get(f"{state_step} {batch_step}")
            for kind, batch_step in batches
            if kind == "placebo"
        ]
        median = {
            m: median_of_present([p[m] for p in placebos]) for m in ("after", "loss", "grad_norm")
        }
        scales.append({m: spread_of_present([p[m] for p in placebos]) for m in median})
        for batch_step in range(first, last):
            cell = finished.get(f"{state_step} {batch_step}")
            jump = (
                None
                if cell["after"] is None or median["after"] is None
                else cell["after"] - median["after"]
            )
            cells.append(
                MatrixCell(
                    state=state_step,
                    step=batch_step,
                    jump=jump,
                    loss=cell["loss"],
                    grad_norm=cell["grad_norm"],
                    consumed=batch_step < state_step,
                    loss_placebo=median["loss"],
                    grad_norm_placebo=median["grad_norm"],
                )
            )
    effects = {}
    for measure in MEASURES:
        table = np.array(
            [np.nan if getattr(c, measure) is None else getattr(c, measure) for c in cells],
            np.float64,
        )
        scale = [scale_of["after" if measure == "jump" else measure] for scale_of in scales]
        effects[measure] = effects_of(
            table.reshape(len(states), last - first), states, first, median_of_present(scale)
        )
    result = MatrixResult(
        run=name,
        batches=(first, last),
        states=tuple(states),
        placebos=PLACEBOS,
        probe_sequences=probe.sequences,
        consumed=sum(cell.consumed for cell in cells),
        cells=tuple(cells),
        effects=effects,
    )
    keep_result(run.folder, "matrix", f"{_identity(run)} {first}:{last} {states}", result)
    return result


def effects_of(
    table: np.ndarray, states: Sequence[int], first: int, scale: float | None
) -> MatrixEffects | None:
    """Decompose (states, batches) into mean, data α_b, state σ_s, interaction γ_bs.

    Each part sums to 0.

    `size` is the root mean square of each part, `over_placebo` that over the scale (1.4826·MAD) of
    the placebo batches. None where a cell is missing or not finite: the parts would mean nothing.
    """
    if not np.isfinite(table).all():
        return None
    mean = float(table.mean())
    state, data = table.mean(1) - mean, table.mean(0) - mean
    joint = table - mean - state[:, None] - data[None, :]
    sizes = (_rms(data), _rms(state), _rms(joint))
    return MatrixEffects(
        mean=mean,
        data=tuple(BatchEffect(first + i, float(x)) for i, x in enumerate(data)),
        state=tuple(StateEffect(s, float(x)) for s, x in zip(states, state)),
        interaction=tuple(
            JointEffect(s, first + i, float(x))
            for s, row in zip(states, joint)
            for i, x in enumerate(row)
        ),
        size=PartSizes(*sizes),
        placebo_scale=scale,
        over_placebo=PartSizes(*(size / scale if scale else None for size in sizes)),
    )


def windows(
    runs: Path,
    name: str,
    first: int,
    last: int,
    states: Sequence[int],
    progress: ProgressCallback = silent,
) -> WindowsResult:
    """Run the whole window of batches from each state, beside as many placebo batches.

    Per state: the losses on the way, `sigma` of their highest against the placebos' (median and
    1.4826·MAD of at least 16 steps), `spiked` where that is above 6 or not finite, and `jump`, the
    loss on the probe set after the window less that after as many placebo batches: the part that
    stays in the state. Errors: usage, missing, integrity.
    """
    run, states = _opened(runs, name, first, last, states)
    finished = Kept(run.folder / "matrix", f"window {first}:{last} {_identity(run)}")
    probe, length = Probe(run), last - first
    control = max(length, SHORTEST)
    total = len(states) * (length + control)
    judged = []
    for i, s in enumerate(states):
        row = finished.get(str(s))
        if row is None:
            state = run.state_at(s)
            computed = i * (length + control)
            end = run.header.steps
            placebo, after_placebo = _run_over(
                run, state, range(end, end + control), length, probe, computed, total, progress
            )
            losses, after = _run_over(
                run, state, range(first, last), length, probe, computed + control, total, progress
            )
            row = {
                "losses": losses,
                "placebo": placebo,
                "after": after,
                "after_placebo": after_placebo,
            }
            finished.put(str(s), row)
        progress((i + 1) * (length + control), total, f"state {s}")
        judged.append(_judged(s, first < s, row))
    result = WindowsResult(
        run=name,
        batches=(first, last),
        states=tuple(states),
        probe_sequences=probe.sequences,
        windows=tuple(judged),
    )
    identity = f"{_identity(run)} window {first}:{last} {states}"
    keep_result(run.folder, "windows", identity, result)
    return result


def _judged(state: int, consumed: bool, row: dict[str, Any]) -> WindowFromState:
    losses, placebo = row["losses"], row["placebo"]
    median, scale = median_of_present(placebo), spread_of_present(placebo)
    finite = all(math.isfinite(x) for x in losses)
    peak = max(losses) if finite else math.inf
    sigma = (peak - median) / scale if finite and median is not None and scale else None
    jump = None if row["after"] is None else row["after"] - row["after_placebo"]
    return WindowFromState(
        state=state,
        consumed=consumed,
        losses=tuple(losses),
        peak=peak,
        placebo_median=median,
        sigma=sigma,
        spiked=not finite or (sigma is not None and sigma > SIGMAS),
        jump=jump,
    )


def _run_over(
    run: Run,
    start: TrainState,
    batches: range,
    length: int,
    probe: Probe,
    done: int,
    total: int,
    progress: ProgressCallback,
) -> tuple[list[float], float | None]:
    """Losses along these batches from a copy of `start`, and the probe loss after `length` of
    them.
    """
    state, losses, after = start.clone(), [], None
    for i, b in enumerate(batches):
        result = advance(state, _batch(run, b), _applied(run, state), run.model)
        assert result.loss is not None
        losses.append(result.loss)
        if i + 1 == length:
            after = _probed(state, probe)
        progress(done + i + 1, total, f"state {start.counters.step}")
    return losses, after


def _cell(run: Run, state: TrainState, batch: Batch, probe: Probe) -> dict[str, float | None]:
    moved = state.clone()
    result = advance(moved, batch, _applied(run, state), run.model)
    return {"loss": result.loss, "grad_norm": result.grad_norm, "after": _probed(moved, probe)}


def _applied(run: Run, state: TrainState) -> Any:
    """Return the run's policy at this state, applied even where a fork leaves its own step out.

    The batch is to act.
    """
    return dataclasses.replace(run.policy(state.counters), update="apply")


def _probed(state: TrainState, probe: Probe) -> float | None:
    return probe.read(state.params, {})["control"].loss if probe.sequences else None


def _batch(run: Run, step: int) -> Batch:
    try:
        return run.stream(step)
    except ForensicsError as e:
        if step < run.header.steps:
            raise
        raise ForensicsError(
            e.kind,
            f"wanted placebo batches after the end of {run.name}, found: {e.message}",
            "its order file ends with the run: a longer one is needed",
        ) from None


def _opened(
    runs: Path, name: str, first: int, last: int, states: Sequence[int]
) -> tuple[Run, list[int]]:
    run = open_trajectory(runs, name)
    if not 0 <= first < last <= run.header.steps:
        raise ForensicsError(
            "missing",
            f"wanted batches of {name}, found {first}:{last}",
            f"it has batches 0:{run.header.steps}",
        )
    require_steps(run, states, "--states", lineage=True)
    require_intact(run)
    return run, sorted(set(states))


def _identity(run: Run) -> str:
    """Tell what a cell depends on beside its state and batch."""
    return (
        f"{run.name} {run.header.order} {run.header.created} {run.header.interventions} {PLACEBOS}"
    )


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))
