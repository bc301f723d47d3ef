"""List the spikes of a run or fork, with their kind, the spike score and the trend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from forensics.detect import alarms
from forensics.detect.spikes import phase_restarts, robust, spike_score
from forensics.detect.trend import trend
from forensics.errors import ForensicsError
from replay.lineage import open_trajectory


def spikes_of(runs: Path, name: str, metric: str | None, detector: str) -> dict[str, Any]:
    """Spikes of the recorded series by one detector, with spike score and trend. Errors:
    missing.
    """
    run = open_trajectory(runs, name)
    rows = run.table("steps", ["step", "loss", "grad_norm"]).sort_by("step").to_pydict()
    steps = rows["step"]
    if not steps:
        raise ForensicsError(
            "missing", f"{name} has no recorded step yet", "`forensics show` tells its status"
        )
    phases = [(phase.until, phase.mix) for phase in run.recipe.data.phases]
    restarts = phase_restarts(phases)
    every = {
        m: robust(rows[m], metric=m, steps=steps, restarts=restarts) for m in ("loss", "grad_norm")
    }
    metrics = [metric] if metric else ["loss", "grad_norm"]
    if detector == "robust":
        spikes = [_spike(s) for m in metrics for s in every[m]]
    else:
        fired = {m: alarms.monitor(rows[m]) for m in metrics}
        if detector == "skip-step":
            both = alarms.skip_step(rows["loss"], rows["grad_norm"])
            fired = {metrics[0]: both}
        spikes = [
            {
                "step": steps[i],
                "onset": steps[i],
                "metric": m,
                "value": rows[m][i],
                "baseline": None,
                "sigma": None,
                "kind": None,
                "recovered_at": None,
            }
            for m, rings in fired.items()
            for i in np.flatnonzero(rings)
        ]
    scores = {m: spike_score(rows[m]) for m in ("loss", "grad_norm")}
    warm = run.recipe.train.warmup
    settled = [(s, g) for s, g in zip(steps, rows["grad_norm"]) if s >= warm and g is not None]
    return {
        "run": name,
        "detector": detector,
        "spike_score": {m: score if n else None for m, (score, n) in scores.items()}
        | {"n": scores["loss"][1]},
        "trend": trend(
            [s for s, _ in settled], [g for _, g in settled], [s.onset for s in every["loss"]]
        ),
        "spikes": sorted(spikes, key=lambda s: (s["step"], s["metric"])),
    }


def _spike(spike: Any) -> dict[str, Any]:
    return {
        k: getattr(spike, k)
        for k in ("step", "onset", "metric", "value", "baseline", "sigma", "kind", "recovered_at")
    }
