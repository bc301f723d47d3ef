"""Where two runs part: a fork from its control, or any two runs that share steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from forensics.errors import ForensicsError
from forensics.train.run import Run
from replay.compare import distances
from replay.forks.result import RESULT_FILE, ForkResult
from replay.lineage import open_trajectory
from replay.verify import COMPARED, recorded_steps


def between(runs: Path, name: str, other: str) -> dict[str, Any]:
    """`first_difference`, `divergence` by step and `time_to_reconverge`. Errors: missing, usage."""
    a, b = open_trajectory(runs, name), open_trajectory(runs, other)
    if b.header.parent == name:
        path = b.folder / RESULT_FILE
        if not path.is_file():
            raise ForensicsError(
                "missing", f"{other} was not finished", "run `replay fork` again: it starts anew"
            )
        document = ForkResult.read(path).to_document()
        return {"run": name, "fork": other} | {
            key: document[key]
            for key in (
                "control",
                "first_difference",
                "divergence",
                "time_to_reconverge",
                "censored",
                "final",
            )
        }
    return _recorded(a, b)


def _recorded(a: Run, b: Run) -> dict[str, Any]:
    """Two runs by what was recorded of them: losses by step, parameters where both saved a
    state.
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
        column = next(
            (k for k in (*COMPARED, "state_digest") if x[k] != y[k] and None not in (x[k], y[k])),
            None,
        )
        l2 = None
        if step + 1 in states:
            params = [run.load(step + 1).params for run in (a, b)]
            l2 = distances.distance(params[0], params[1], params[1]).l2[""]
        if column is not None and first is None:
            first = {"step": step, "what": column, "tensor": None, "layer": None}
        gap = y["loss"] - x["loss"] if None not in (x["loss"], y["loss"]) else None
        divergence.append({"step": step, "loss_gap": gap, "logit_kl": None, "l2": l2})
    return {
        "run": a.name,
        "fork": b.name,
        "first_difference": first,
        "divergence": divergence,
        "time_to_reconverge": None,
    }
