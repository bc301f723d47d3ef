"""`make spike-study`: are the spikes found that are there, and how often is one found without?

    python -m benchmarks.spike_study --json benchmarks/results/studies/spikes.json

Two parts, both judged by the detector as it is and by the rule that it replaced (the median of the
window, and the MAD of its values):

real    small runs, clean or with shuffled text in the batches of some steps. How high a spike is
        says the clean run of the same seed, whose losses are the same up to that step
held    the losses of the clean runs, with a rise of a known height added

A height is in σ: 1.4826·MAD of the clean losses within 32 steps about their median over 17 steps,
both of which look ahead, as no detector can. A finished run is kept, so an interrupted study goes
on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study_tasks import run_tasks
from forensics import config
from forensics.detect.band import Band, Window
from forensics.detect.spikes import MINIMUM, RobustDetector, Spike
from forensics.detect.windows import MAD_TO_SIGMA, Floats, smallest_scale
from forensics.json_documents import dumps

STEPS = {"bytes": 300, "words": 300, "short": 140, "long": 1200}  # of each setting
PLANTS = {  # what is planted: (first step, steps, share of each batch)
    "early": (100, 2, 0.5),
    "small": (120, 2, 0.25),
    "long": (100, 24, 0.5),
    "late": (250, 2, 0.5),
}
CLEAN_SEEDS = {"bytes": 8, "words": 8, "short": 8, "long": 3}
PLANTED_SEEDS = 4
HEIGHTS = (4.0, 6.0, 8.0, 12.0, 20.0)  # σ
SHAPES = {"one step": 1, "4 steps": 4, "32 steps": 32}
LEVEL, NOISE = 8, 32  # steps on either side that a clean loss's level and its σ are taken of
SEEN = 10.0  # σ: from here on a rule of 6 should find it, whatever it takes σ to be
SEED = 4000  # the first; those below were used when the rule was made
VERSION = 1  # of what a task does: kept results of another version are not used


class MedianBand:
    """The band that the detector had before: median and MAD of the window's values."""

    def __init__(self, size: int) -> None:
        self._window = Window(size)
        self.push, self.clear = self._window.push, self._window.clear

    def __len__(self) -> int:
        return len(self._window)

    def expect(self) -> Band | None:
        """Return the band of the next value; None before the first."""
        if not len(self._window):
            return None
        centre = self._window.median()
        return Band(centre, max(MAD_TO_SIGMA * self._window.mad(centre), smallest_scale(centre)))


def spikes(values: Sequence[float], before: bool) -> list[Spike]:
    """Return the spikes of a column, by the rule as it is or as it was before."""
    detector = RobustDetector()
    if before:
        detector._band = MedianBand(128)  # type: ignore[assignment]
    settled = [detector.update(step, value) for step, value in enumerate(values)]
    return [spike for spike in (*settled, detector.finish()) if spike is not None]


# ---- the runs


def recipe(setting: str, plant: str, seed: int) -> config.Recipe:
    """Return a small run whose loss falls fast, with shuffled text planted or none."""
    phases: list[dict[str, Any]] = [{"mix": {"clean": 1.0}}]
    if plant != "clean":
        first, length, share = PLANTS[plant]
        phases = [
            {"until": first, "mix": {"clean": 1.0}},
            {"until": first + length, "mix": {"clean": 1.0 - share, "planted": share}},
            {"mix": {"clean": 1.0}},
        ]
    subwords: dict[str, Any] = {"tokenizer": "train", "vocabulary": 2048}
    light_tables = ("heads", "layers", "tensors", "sequences")
    return config.from_dict(
        {
            "data": {
                "sources": {"clean": "stdlib/asyncio", "planted": "shuffled:stdlib/email"},
                "phases": phases,
                "sequence_length": 64,
                "held_out": 4,
                **({"tokenizer": "bytes"} if setting == "bytes" else subwords),
            },
            "model": {"layers": 1, "width": 48, "heads": 2},
            "train": {
                "steps": STEPS[setting],
                "batch": 16,
                "seed": seed,
                "learning_rate": 1e-2 if setting == "bytes" else 6e-3,
                "schedule": "constant" if setting == "short" else "cosine",
                "warmup": 20,
                "threads": 1,
                "device": "cpu",
                "held_out_every": 0,
            },
            "checkpoint": {"every": 400},
            "record": {"every": dict.fromkeys(light_tables, 10_000)},
        }
    )


@dataclass(frozen=True)
class Task:
    """One run of the study."""

    setting: str
    plant: str
    seed: int

    @property
    def key(self) -> str:
        """Its name among the kept results."""
        return f"{self.setting} {self.plant} {self.seed}"


def tasks() -> Iterator[Task]:
    """List the runs of the study, the clean ones first."""
    for setting, seeds in CLEAN_SEEDS.items():
        for seed in range(SEED, SEED + seeds):
            yield Task(setting, "clean", seed)
    for setting, steps in STEPS.items():
        for plant, (first, length, _share) in PLANTS.items():
            if setting != "long" and first + length < steps:
                for seed in range(SEED, SEED + PLANTED_SEEDS):
                    yield Task(setting, plant, seed)


def study(task: dict[str, Any]) -> dict[str, Any]:
    """Train one run; return its losses and gradient norms."""
    from forensics.train.loop import train
    from forensics.train.run import open_run

    runs, name = Path(task["runs"]), f"{task['setting']}-{task['plant']}-{task['seed']}"
    about = recipe(task["setting"], task["plant"], task["seed"])
    resume = (runs / name).exists()
    train(about, name=name, recipe_name="study", runs=runs, resume=resume)
    columns = ["step", "loss", "grad_norm"]
    table = open_run(runs, name).table("steps", columns).sort_by("step").to_pydict()
    return {"loss": table["loss"], "grad_norm": table["grad_norm"]}


# ---- how high, and whether it is found


def level_and_sigma(clean: Floats, step: int) -> tuple[float, float]:
    """Return level and σ of a clean loss about a step, from both sides of it."""
    near = range(max(0, step - NOISE), min(len(clean), step + NOISE + 1))
    levels = {s: float(np.median(clean[max(0, s - LEVEL) : s + LEVEL + 1])) for s in near}
    off = np.array([clean[s] - levels[s] for s in near])
    return levels[step], float(MAD_TO_SIGMA * np.median(np.abs(off - np.median(off))))


@dataclass(frozen=True)
class Planted:
    """A planted rise, real or added, and whether it was found."""

    part: str  # real | held
    setting: str
    plant: str
    seed: int
    height: float  # σ
    found: bool
    found_before: bool  # by the rule as it was


@dataclass(frozen=True)
class Clean:
    """Spikes of a clean run."""

    setting: str
    seed: int
    judged: int  # steps
    loss: int  # spikes found
    loss_before: int
    grad_norm: int
    grad_norm_before: int


def real(series: dict[Task, dict[str, list[float]]]) -> Iterator[Planted]:
    """Judge the planted runs."""
    for task, columns in series.items():
        if task.plant == "clean":
            continue
        first, length, _share = PLANTS[task.plant]
        clean = np.array(series[Task(task.setting, "clean", task.seed)]["loss"])
        level, sigma = level_and_sigma(clean, first)
        height = (max(columns["loss"][first : first + length]) - level) / sigma
        found = [_finds(columns["loss"], first, length, before) for before in (False, True)]
        yield Planted("real", task.setting, task.plant, task.seed, height, *found)


def held(series: dict[Task, dict[str, list[float]]]) -> Iterator[Planted]:
    """Judge rises of known heights that are added to the clean runs, early, midway and late."""
    for task, columns in series.items():
        if task.plant != "clean":
            continue
        clean = np.array(columns["loss"])
        places = {"early": 80, "midway": len(clean) // 2, "late": len(clean) - 40}
        for place, first in places.items():
            _level, sigma = level_and_sigma(clean, first)
            for shape, length in SHAPES.items():
                for height in HEIGHTS:
                    raised = clean.copy()
                    raised[first : first + length] += height * sigma
                    found = [_finds(raised, first, length, before) for before in (False, True)]
                    plant = f"{place}, {shape}"
                    yield Planted("held", task.setting, plant, task.seed, height, *found)


def _finds(values: Sequence[float] | Floats, first: int, length: int, before: bool) -> bool:
    found = spikes([float(value) for value in values], before)
    return any(first <= spike.onset < first + length for spike in found)


def clean_runs(series: dict[Task, dict[str, list[float]]]) -> Iterator[Clean]:
    """Count the spikes of the clean runs."""
    for task, columns in series.items():
        if task.plant == "clean":
            counts = [
                len(spikes(columns[metric], before))
                for metric in ("loss", "grad_norm")
                for before in (False, True)
            ]
            yield Clean(task.setting, task.seed, len(columns["loss"]) - MINIMUM, *counts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study and print its tables; 1 where it does not hold."""
    from benchmarks.spike_study import study as one_study  # by name: workers import it
    from docs.studies import spike_tables
    from forensics.cli.console import say

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.spike_study", description="Are spikes found that are there?"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "spike-study")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args(arguments)
    every = list(tasks())
    results = run_tasks(
        one_study,
        {task.key: asdict(task) | {"runs": str(options.runs)} for task in every},
        options.runs,
        f"spike study {VERSION}",
        workers=options.workers,
    )
    series = {task: results[task.key] for task in every}
    document = {
        "study": "spikes",
        "runs": len(every),
        "seen": SEEN,
        "planted": [asdict(row) for row in (*real(series), *held(series))],
        "clean": [asdict(row) for row in clean_runs(series)],
    }
    plain_document = json.loads(dumps(document))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(dumps(document, indent=None) + "\n", encoding="utf-8")
    say("\n".join(spike_tables(plain_document)))
    return 0 if holds(plain_document) else 1


def holds(document: dict[str, Any]) -> bool:
    """Whether 19 of 20 high rises are found, and clean runs have no more spikes than before."""
    high = [row["found"] for row in document["planted"] if row["height"] >= document["seen"]]
    clean = document["clean"]
    return float(np.mean(high)) >= 0.95 and all(
        sum(row[metric] for row in clean) <= sum(row[f"{metric}_before"] for row in clean)
        for metric in ("loss", "grad_norm")
    )


if __name__ == "__main__":
    raise SystemExit(main())
