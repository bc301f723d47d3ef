"""`make detector-study`: which detector foretells a spike, how early, and how often for nothing?

    python -m benchmarks.detector_study --json benchmarks/results/studies/detectors.json

Small runs with everything recorded: some learn 16 sequences by heart, all of them in every batch,
at a high learning rate under a slow second moment (their spikes can come from the state alone: the
case of arXiv 2506.04805), some with shuffled text in a few batches (nothing could foretell that),
some healthy. The query `detectors` scores every rule over all of them. At every EVERY-th step two
probes are scored likewise: the curvature along the gradient and the largest one against 2/η, and a
fall of a head's spectral entropy below the least of its past. A finished part is kept, so an
interrupted study goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study_tasks import run_tasks
from forensics import config
from forensics.json_documents import dumps

STEPS = 300
EVERY = 50  # steps between two states that are probed
HORIZON = 20  # steps before an onset in which an alarm foretells it
PLANTED_AT = 200
COUNTS = {"learning by heart": 5, "shuffled text": 2, "healthy": 4}  # runs of each kind
FALL = 0.05  # of a head's spectral entropy, below the least of its past: an alarm
PAST = 3  # probed states that a past has at least
SEED = 5000
VERSION = 2  # of what a task does


def recipe(kind: str, seed: int, runs: Path) -> config.Recipe:
    """Return a small run of a kind."""
    if kind == "learning by heart":
        return _by_heart(seed, runs)
    phases: list[dict[str, Any]] = [{"mix": {"clean": 1.0}}]
    if kind == "shuffled text":
        phases = [
            {"until": PLANTED_AT, "mix": {"clean": 1.0}},
            {"until": PLANTED_AT + 2, "mix": {"clean": 0.25, "planted": 0.75}},
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
            "model": {
                "layers": 2,
                "width": 32,
                "heads": 2,
                "qk_norm": "head",
            },
            "train": {
                "steps": STEPS,
                "batch": 8,
                "seed": seed,
                "learning_rate": 8e-3,
                "schedule": "constant",
                "weight_decay": 0.0,
                "warmup": 20,
                "betas": [0.9, 0.95],
                "clip": 1.0,
                "threads": 1,
                "device": "cpu",
                "held_out_every": 0,
            },
            "checkpoint": {"every": EVERY},
        }
    )


def _by_heart(seed: int, runs: Path) -> config.Recipe:
    """Return a run whose every batch is the whole of its text: no batch is odd."""
    text = runs / f"text-{seed}.txt"
    letters = random.Random(seed).choices("abcdefgh ", k=16 * 32 + 40)
    text.write_text("".join(letters), encoding="utf-8")
    return config.from_dict(
        {
            "data": {
                "source": str(text),
                "tokenizer": "bytes",
                "sequence_length": 32,
                "held_out": 0,
            },
            "model": {"layers": 2, "width": 32, "heads": 2},
            "train": {
                "steps": STEPS,
                "batch": 16,
                "seed": seed,
                "learning_rate": 2e-2,
                "schedule": "constant",
                "weight_decay": 0.0,
                "warmup": 10,
                "betas": [0.9, 0.999],
                "clip": 0.0,
                "threads": 1,
                "device": "cpu",
                "held_out_every": 0,
            },
            "checkpoint": {"every": EVERY},
        }
    )


@dataclass(frozen=True)
class Task:
    """One run of the study."""

    kind: str
    seed: int

    @property
    def name(self) -> str:
        """The run's name."""
        return f"{self.kind.replace(' ', '-')}-{self.seed}"


def tasks() -> list[Task]:
    """List the runs of the study."""
    return [
        Task(kind, seed) for kind, count in COUNTS.items() for seed in range(SEED, SEED + count)
    ]


def study(task: dict[str, Any]) -> dict[str, Any]:
    """Train one run and probe its states; return the onsets of its loss spikes and the values."""
    from forensics.json_documents import plain
    from forensics.probes.runner import probe
    from forensics.train.loop import train
    from replay.spike_list import spikes_of

    runs, mine = Path(task["runs"]), Task(task["kind"], task["seed"])
    about = recipe(mine.kind, mine.seed, runs)
    train(about, name=mine.name, recipe_name="study", runs=runs, resume=(runs / mine.name).exists())
    spikes = spikes_of(runs, mine.name, "loss").spikes
    values = {name: probe(runs, mine.name, name)["points"] for name in ("curvature", "qk-entropy")}
    return plain({"onsets": [spike.onset for spike in spikes], **values})


@dataclass(frozen=True)
class Score:
    """How well a rule foretells the spikes of the loss."""

    detector: str
    runs: int
    read: int  # steps, or states, at which it could ring
    spikes: int
    hits: int
    random_hits: float | None  # expected of as many alarms on random steps
    median_lead: float | None  # steps
    false_alarms: int
    false_per_1000: float  # of what it read


def probed(results: dict[Task, dict[str, Any]]) -> Iterator[Score]:
    """Score the probes: an alarm at a state foretells a spike within EVERY steps after it."""
    rules = {
        "curvature: largest > 2/η": lambda points: _above(points, "largest_over_bears"),
        "curvature: along the gradient > 2/η": lambda points: _above(
            points, "along_gradient_over_bears"
        ),
        f"qk-entropy: a head falls by {FALL:g}": _falls,
    }
    for name, rule in rules.items():
        probe_name = "curvature" if name.startswith("curvature") else "qk-entropy"
        read, leads, false, chance, spikes = 0, [], 0, 0.0, 0
        for result in results.values():
            rung = rule(result[probe_name])
            onsets = result["onsets"]
            read += len(rung)
            spikes += len(onsets)
            rate = float(np.mean(list(rung.values()))) if rung else 0.0
            for onset in onsets:
                near = [s for s in rung if onset - EVERY <= s < onset]
                alarms = [s for s in near if rung[s]]
                leads += [onset - min(alarms)] if alarms else []
                chance += 1 - (1 - rate) ** len(near)
            false += sum(
                ring and not any(0 < onset - s <= EVERY for onset in onsets)
                for s, ring in rung.items()
            )
        lead = float(np.median(leads)) if leads else None
        rate_false = 1000 * false / read if read else 0.0
        yield Score(name, len(results), read, spikes, len(leads), chance, lead, false, rate_false)


def _above(points: Sequence[dict[str, Any]], key: str) -> dict[int, bool]:
    return {p["step"]: p["value"][key] > 1 for p in points if p["value"] is not None}


def _falls(points: Sequence[dict[str, Any]]) -> dict[int, bool]:
    """Whether any head's spectral entropy is FALL below the least of its past."""
    rung = {}
    for index, point in enumerate(points):
        if index >= PAST:
            heads = [key for key in point["value"] if key.startswith("layers.")]
            rung[point["step"]] = any(
                point["value"][head] < min(p["value"][head] for p in points[:index]) - FALL
                for head in heads
            )
    return rung


def recorded(runs: Path, names: Sequence[str]) -> Iterator[Score]:
    """Score the rules of the query `detectors`."""
    import queries

    parameters = {"runs": ",".join(names), "horizon": HORIZON}
    for row in queries.run(runs, "detectors", parameters).to_pylist():
        read = row["steps_read"]
        yield Score(
            row["detector"],
            row["runs"],
            read,
            row["spikes"],
            row["hits"],
            row["random_hits"],
            row["median_lead"],
            row["false_alarms"],
            1000 * row["false_alarms"] / read if read else 0.0,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study and print its table."""
    from benchmarks.detector_study import study as one_study  # by name: workers import it
    from docs.studies import detector_table
    from forensics.cli.console import say

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.detector_study", description="Which detector foretells a spike?"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "detector-study")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args(arguments)
    every = tasks()
    results = run_tasks(
        one_study,
        {task.name: asdict(task) | {"runs": str(options.runs)} for task in every},
        options.runs,
        f"detector study {VERSION}",
        workers=options.workers,
    )
    by_task = {task: results[task.name] for task in every}
    scores = [*recorded(options.runs, [task.name for task in every]), *probed(by_task)]
    document = {
        "study": "detectors",
        "runs": COUNTS,
        "steps": STEPS,
        "every": EVERY,
        "horizon": HORIZON,
        "spikes": {
            kind: sum(len(by_task[task]["onsets"]) for task in every if task.kind == kind)
            for kind in COUNTS
        },
        "scores": [asdict(score) for score in scores],
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(dumps(document) + "\n", encoding="utf-8")
    say("\n".join(detector_table(json.loads(dumps(document)))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
