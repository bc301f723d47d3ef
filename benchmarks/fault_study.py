"""`make fault-study`: how far from a planted fault is the first bad step that is found?

    python -m benchmarks.fault_study --json benchmarks/results/studies/faults.json

Six kinds of faults, each planted at step AT of small runs of several seeds, and the same runs
without one. Shuffled text comes in by the run's phases, the others by a fork of the healthy run. A
finished part is kept, so an interrupted study goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.study_tasks import run_tasks
from forensics import config
from forensics.json_documents import dumps

AT, STEPS, LAST = 160, 220, 180  # the fault's step; of a healthy run; of a fork
WINDOW = f"{AT}:{LAST}"
FAULTS: dict[str, list[dict[str, Any]]] = {  # by an intervention
    "learning rate × 10": [{"kind": "lr-scale", "factor": 10.0, "window": WINDOW}],
    "β₂ = 0.5": [{"kind": "betas", "betas": [0.9, 0.5], "window": WINDOW}],
    "moments lost": [{"kind": "reset-moments"}],
    "weights damaged (noise of 5 %)": [{"kind": "noise", "sigma": 0.05}],
    "a layer frozen": [{"kind": "freeze", "tensors": ["layers.1.mlp*"], "window": WINDOW}],
}
SHUFFLED = "shuffled text in half of 2 batches"
HEALTHY = "none"
SEEDS = 3
HEALTHY_SEEDS = 6  # of runs without a fault, for how often one is found all the same
SEED = 7100  # the first; the rule's constants were set by the runs below
VERSION = 1  # of what a task does


def recipe(seed: int, shuffled: bool) -> config.Recipe:
    """Return a small healthy run, or one with shuffled text from step AT."""
    phases: list[dict[str, Any]] = [{"mix": {"clean": 1.0}}]
    if shuffled:
        phases = [
            {"until": AT, "mix": {"clean": 1.0}},
            {"until": AT + 2, "mix": {"clean": 0.5, "planted": 0.5}},
            {"mix": {"clean": 1.0}},
        ]
    return config.from_dict(
        {
            "data": {
                "sources": {"clean": "stdlib/asyncio", "planted": "shuffled:stdlib/email"},
                "phases": phases,
                "tokenizer": "bytes",
                "sequence_length": 64,
                "held_out": 4,
            },
            "model": {"layers": 2, "width": 32, "heads": 2},
            "train": {
                "steps": STEPS,
                "batch": 8,
                "seed": seed,
                "learning_rate": 5e-3,
                "warmup": 20,
                "threads": 1,
                "device": "cpu",
                "held_out_every": 0,
            },
            "checkpoint": {"every": 40},
        }
    )


def study(task: dict[str, Any]) -> dict[str, Any]:
    """Make one run, or a fork of the healthy one, and find its first bad step."""
    from forensics.train.loop import train
    from replay.first_bad_step import first_bad_step_of
    from replay.forks import spec as specs
    from replay.forks.run import fork
    from replay.lineage import open_trajectory

    runs, fault, seed = Path(task["runs"]), task["fault"], task["seed"]
    shuffled = fault == SHUFFLED
    name = f"{'shuffled' if shuffled else 'healthy'}-{seed}"
    train(
        recipe(seed, shuffled),
        name=name,
        recipe_name="study",
        runs=runs,
        resume=(runs / name).exists(),
    )
    if fault in FAULTS:
        kind = FAULTS[fault][0]["kind"]
        document = {
            "parent": name,
            "from": AT,
            "to": LAST,
            "placebos": 0,
            "name": f"{kind}-{seed}",
            "record": "light",
            "intervention": FAULTS[fault],
        }
        fork(specs.build(runs, open_trajectory(runs, name), document), runs)
        name = f"{kind}-{seed}"
    result = first_bad_step_of(runs, name)
    found = result.found
    return {
        "fault": fault,
        "seed": seed,
        "true": None if fault == HEALTHY else AT,
        "found": found.step if found else None,
        "out": found.out if found else 0,
        "series": result.series,
        "steps": result.last - result.first,
        "first": found.moved[0].name if found and found.moved else None,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study and print its table."""
    from benchmarks.fault_study import study as one_study  # by name: workers import it
    from docs.studies import fault_table
    from forensics.cli.console import say

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fault_study", description="Is the first bad step the fault's?"
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "fault-study")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args(arguments)
    kinds = [(HEALTHY, HEALTHY_SEEDS), *((fault, SEEDS) for fault in (SHUFFLED, *FAULTS))]
    tasks: dict[str, dict[str, Any]] = {
        f"{fault} {seed}": {"fault": fault, "seed": seed, "runs": str(options.runs)}
        for fault, count in kinds
        for seed in range(SEED, SEED + count)
    }
    results = run_tasks(
        one_study, tasks, options.runs, f"fault study {VERSION}", workers=options.workers
    )
    rows = list(results.values())
    document = {"study": "faults", "at": AT, "rows": rows}
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(dumps(document) + "\n", encoding="utf-8")
    say("\n".join(fault_table(json.loads(dumps(document)))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
