"""How chaotic is the run at a step? Forks whose start is moved by the smallest noise there is.

noise(runs, "demo", [50, 200, 400]).points[0].divergence_exponent

Per step: a control, chaos forks of several seeds, and one placebo fork that replaces one random
sequence of the window's first batch, all in lock-step. The exponent is the slope of log ‖θ_chaos −
θ_control‖₂ per step, least squares, only over the steps where 10·d₀ < d < 0.1·d_placebo: above the
rounding, below what one other sequence does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback, silent
from forensics.result_records import part_to_document, read_part
from forensics.store.resumable import Kept
from forensics.train.run import Run
from replay.compare import distances
from replay.experiments.results import NoiseControl, NoisePoint, NoiseResult
from replay.forks.lockstep import arm_from, march, require_steps
from replay.interventions.removal import RemoveSequences
from replay.interventions.state import UnitInLastPlace, cast_differences
from replay.lineage import identity_text, open_trajectory, require_intact
from replay.verify import Witness

WINDOW = 32  # steps
SEEDS = 3
POINTS = 3  # that a slope needs


def noise(
    runs: Path,
    name: str,
    at: Sequence[int],
    window: int = WINDOW,
    seeds: int = SEEDS,
    progress: ProgressCallback = silent,
) -> NoiseResult:
    """Measure how fast the smallest noise grows from each state; finished points are kept.

    The window may go past the run's end, on its own stream; only its recorded steps are then held
    against the parent. Errors: usage, missing, integrity.
    """
    run = open_trajectory(runs, name)
    require_steps(run, at, "--at")
    if window < POINTS or seeds < 1:
        raise ForensicsError(
            "usage",
            f"wanted a window of at least {POINTS} steps and a seed, found {window} and {seeds}",
            "e.g. --window 32 --seeds 3",
        )
    require_intact(run)
    steps = sorted(set(at))
    finished = Kept(
        run.folder / "noise", f"{identity_text(run)} {window} {seeds} {NoiseResult.VERSION}"
    )
    points = []
    for i, step in enumerate(steps):
        if str(step) not in finished:
            measured = _point(run, step, window, seeds, i, len(steps), progress)
            finished.put(str(step), part_to_document(measured))
        progress((i + 1) * window, len(steps) * window, f"state {step}")
        points.append(read_part(NoisePoint, finished.get(str(step))))
    return NoiseResult(run=name, window=window, seeds=seeds, points=tuple(points))


def _point(
    run: Run, step: int, window: int, seeds: int, done: int, of: int, progress: ProgressCallback
) -> NoisePoint:
    start = run.state_at(step)
    slot = int(np.random.default_rng(step).integers(run.recipe.train.batch))
    placebo = RemoveSequences(
        step, step + 1, ((step, slot, 0, run.recipe.data.cut.targets),), "replace"
    )
    names = [f"chaos-{seed}" for seed in range(seeds)]
    arms = {"control": arm_from(start, run), "placebo": arm_from(start, run, (placebo,))}
    arms |= {
        name: arm_from(start, run, (UnitInLastPlace(seed),)) for seed, name in enumerate(names)
    }

    def away(name: str) -> float:
        return distances.distance(
            arms[name].state.params, arms["control"].state.params, start.params
        ).l2[""]

    def cast() -> float:
        """Count the weights that are another number after the cast, median over seeds."""
        masters = arms["control"].state.params
        counts = [cast_differences(masters, arms[name].state.params) for name in names]
        return float(np.median(counts))

    half = run.header.precision == "bf16"
    at_start = {name: away(name) for name in names}
    reached = [cast()] if half else []
    far: dict[str, list[float]] = {name: [] for name in arms if name != "control"}
    witness = Witness(run, step, min(step + window, run.header.steps))
    for state, results in march(arms, step, step + window):
        if state <= witness.last:
            witness.see(arms["control"].state, results["control"])
        for name, series in far.items():
            series.append(away(name))
        if half:
            reached.append(cast())
        progress(done * window + state - step, of * window, f"state {step}")
    report = witness.report()
    fits = [exponent(far[name], at_start[name], far["placebo"]) for name in names]
    slopes = [fit.slope for fit in fits if fit.slope is not None]
    return NoisePoint(
        step=step,
        divergence_exponent=float(np.median(slopes)) if slopes else None,
        exponents=tuple(fit.slope for fit in fits),
        fitted_steps=tuple(fit.steps for fit in fits),
        start=float(np.median(list(at_start.values()))),
        l2=tuple(float(np.median([far[name][k] for name in names])) for k in range(window)),
        placebo=tuple(far["placebo"]),
        cast_weights=tuple(reached),
        control=NoiseControl(report.level, report.bitwise, report.compared),
    )


class Fit(NamedTuple):
    """The slope of log distance per step, and the number of steps that it rests on."""

    slope: float | None
    steps: int


def exponent(d: Sequence[float], start: float, placebo: Sequence[float]) -> Fit:
    """Fit the slope of log d per step where 10·start < d < 0.1·placebo; None below three steps."""
    inside = [
        (k, math.log(x))
        for k, (x, p) in enumerate(zip(d, placebo))
        if math.isfinite(x) and 10 * start < x < 0.1 * p
    ]
    if len(inside) < POINTS:
        return Fit(None, len(inside))
    k, log_d = np.array(inside).T
    return Fit(float(np.polyfit(k, log_d, 1)[0]), len(inside))
