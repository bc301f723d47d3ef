"""List the spikes of a run or fork, with their kind, the spike score and the trend.

spikes = spikes_of(runs, "demo")                    # a SpikeList
spikes_of(runs, "demo", detector="monitor", sigma=4.0, window=30)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from forensics.detect import alarms
from forensics.detect.band import LATEST
from forensics.detect.spikes import restarts_of, robust, spike_score
from forensics.detect.trend import Trend, trend
from forensics.errors import ForensicsError
from forensics.logs.log_table import spacing
from forensics.result_records import ResultRecord
from replay.lineage import open_trajectory
from replay.verify import recorded_steps

Metric = Literal["loss", "grad_norm"]
Detector = Literal["robust", "monitor", "skip-step"]
METRICS: tuple[Metric, ...] = ("loss", "grad_norm")
SIGMA, WINDOW = 6.0, 128  # of every detector, where none is given
FEWEST = {"robust": LATEST + 1, "monitor": 2, "skip-step": 2}  # values that it can judge by


@dataclass(frozen=True)
class SpikeRow:
    """One spike; of the monitor and of SkipStep, one step at which they ring."""

    step: int  # the peak
    onset: int
    metric: Metric
    value: float
    baseline: float | None  # None: the detector has none
    sigma: float | None
    kind: Literal["batch", "fast", "slow"] | None  # None: not told by the detector, or the rows
    recovered_at: int | None


@dataclass(frozen=True)
class SpikeScore:
    """OLMo 2's spike score: percentage of the n steps judged; None where none could be."""

    loss: float | None
    grad_norm: float | None
    n: int


@dataclass(frozen=True)
class SpikeList(ResultRecord):
    """The spikes of a run's own steps, in order."""

    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "list of spikes"
    AGAIN: ClassVar[str] = "run `forensics spikes` again"

    run: str
    detector: Detector
    threshold: float  # σ above the baseline that make a spike
    window: int  # values before a step that it is judged by
    fewest: int  # of them below which nothing but NaN and inf is a spike
    steps: int  # own steps that were computed
    judged: int  # of them, those with `fewest` values before them since the window last restarted
    every: int  # steps from one recorded step to the next, mostly: above 1, all windows count rows
    spike_score: SpikeScore
    trend: Trend
    spikes: tuple[SpikeRow, ...]


class _Recorded(NamedTuple):
    """What a run recorded along its trajectory: a fork's steps are judged by its ancestors' too."""

    steps: list[int]
    columns: dict[Metric, list[Any]]  # metric → value, None where nothing was computed
    restarts: list[int]
    first: int  # the run's first own step
    warmup: int  # steps

    @property
    def every(self) -> int:
        """Tell how many steps lie from one recorded step to the next, mostly."""
        return spacing(self.steps)


class _Setting(NamedTuple):
    """How far, of how many values, is a spike."""

    sigma: float
    window: int
    fewest: int


def spikes_of(
    runs: Path,
    name: str,
    metric: Metric | None = None,
    detector: Detector = "robust",
    sigma: float = SIGMA,
    window: int = WINDOW,
) -> SpikeList:
    """Find the spikes by one detector; it judges from half a window on.

    Errors: missing; usage, for a window that is too short.
    """
    setting = _Setting(sigma, window, max(window // 2, FEWEST[detector]))
    if not sigma > 0 or setting.fewest > window:
        raise ForensicsError(
            "usage",
            f"wanted σ above 0 and a window of at least {FEWEST[detector]} steps, found {sigma:g}"
            f" and {window}",
            f"the defaults are {SIGMA:g} and {WINDOW}",
        )
    recorded = _recorded(runs, name)
    metrics = METRICS if metric is None else (metric,)
    rows = [
        row for row in _rows(recorded, metrics, detector, setting) if row.step >= recorded.first
    ]
    after_start = [i for i, step in enumerate(recorded.steps) if step >= recorded.first]
    loss, grad_norm = (spike_score([recorded.columns[m][i] for i in after_start]) for m in METRICS)
    computed = [i for i in after_start if recorded.columns["loss"][i] is not None]
    return SpikeList(
        run=name,
        detector=detector,
        threshold=sigma,
        window=window,
        fewest=setting.fewest,
        steps=len(computed),
        judged=_judged(recorded, setting.fewest, detector == "robust"),
        every=recorded.every,
        spike_score=SpikeScore(
            loss[0] if loss[1] else None, grad_norm[0] if grad_norm[1] else None, loss[1]
        ),
        trend=_trend(recorded, after_start),
        spikes=tuple(sorted(rows, key=lambda row: (row.step, row.metric))),
    )


def _recorded(runs: Path, name: str) -> _Recorded:
    run = open_trajectory(runs, name)
    rows = recorded_steps(run, 0, run.header.steps)
    steps = sorted(rows)
    if not steps or steps[-1] < run.header.first_step:
        raise ForensicsError(
            "missing", f"{name} has no recorded step yet", "`forensics show` tells its status"
        )
    columns: dict[Metric, list[Any]] = {m: [rows[step][m] for step in steps] for m in METRICS}
    return _Recorded(
        steps, columns, restarts_of(run.recipe), run.header.first_step, run.recipe.train.warmup
    )


def _rows(
    recorded: _Recorded, metrics: Sequence[Metric], detector: Detector, setting: _Setting
) -> list[SpikeRow]:
    steps, columns = recorded.steps, recorded.columns
    sigma, window, fewest = setting
    if detector == "robust":
        return [
            SpikeRow(
                s.step,
                s.onset,
                m,
                s.value,
                s.baseline,
                s.sigma,
                # of a sampled log nobody knows how the steps between two rows went
                s.kind if recorded.every == 1 else None,
                s.recovered_at,
            )
            for m in metrics
            for s in robust(
                columns[m],
                metric=m,
                steps=steps,
                restarts=recorded.restarts,
                window=window,
                minimum=fewest,
                k=sigma,
            )
        ]
    rung = {
        m: alarms.monitor(columns[m], sigmas=sigma, window=window, minimum=fewest) for m in METRICS
    }
    if detector == "skip-step":  # either of them holds the step
        rung = {metrics[0]: rung["loss"] | rung["grad_norm"]}
    return [
        SpikeRow(steps[i], steps[i], m, columns[m][i], None, None, None, None)
        for m in metrics
        for i in np.flatnonzero(rung.get(m, ()))
    ]


def _judged(recorded: _Recorded, fewest: int, restarts: bool) -> int:
    """Count the own steps whose loss had enough finite losses before it."""
    count = before = 0
    due = list(recorded.restarts) if restarts else []
    for step, loss in zip(recorded.steps, recorded.columns["loss"]):
        while due and step >= due[0]:
            due.pop(0)
            before = 0
        if loss is None:
            continue
        count += before >= fewest and step >= recorded.first
        before += bool(np.isfinite(loss))
    return count


def _trend(recorded: _Recorded, own: list[int]) -> Trend:
    """Return the trend of the own steps after the warm-up."""
    norms = recorded.columns["grad_norm"]
    settled = [i for i in own if recorded.steps[i] >= recorded.warmup and norms[i] is not None]
    onsets = [
        spike.onset
        for spike in robust(
            recorded.columns["loss"], steps=recorded.steps, restarts=recorded.restarts
        )
    ]
    steps = [recorded.steps[i] for i in settled]
    return trend(steps, [norms[i] for i in settled], onsets)
