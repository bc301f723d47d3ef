"""Replay speed over training speed: a recorded run against its verification, bit for bit.

    python -m benchmarks.replay [--rounds 3] [--json benchmarks/results/replay-cpu.json]

Each round trains a new run of the packaged sources with light recording, as `forensics train` does,
and verifies it from state 0 to its end, as `replay verify` does; both are timed from the first step
to the last. Also what it says.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.plain import CPU, DRY, GPU, Sizes
from benchmarks.rounds import report
from benchmarks.step import DEVICE
from forensics import config
from forensics.train.loop import train
from forensics.train.run import Run, open_run
from replay.verify import verify

WARM = 4  # steps that are not timed: compiling, first pages


def recipe(z: Sizes, steps: int, source: str) -> config.Recipe:
    """Return a run of these sizes."""
    return config.from_dict(
        {
            "data": {"source": source, "tokenizer": "bytes", "sequence_length": z.T, "held_out": 0},
            "model": {"family": "llama", "layers": z.L, "width": z.D, "heads": z.H},
            "train": {
                "steps": steps,
                "batch": z.B,
                "learning_rate": 3e-4,
                "warmup": 2,
                "compile": DEVICE == "cuda",
            },
            "checkpoint": {"every": 0},
        }
    )


class Clock:
    """A progress report that notes when each step was done."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def __call__(self, done: int, total: int | None, note: str = "") -> None:
        """Note the time."""
        self.at.append(time.perf_counter())

    @property
    def seconds_per_step(self) -> float:
        """Return the seconds of a step after the warm ones."""
        return (self.at[-1] - self.at[WARM - 1]) / (len(self.at) - WARM)


def measure(z: Sizes, rounds: int, steps: int, source: str) -> dict[str, Any]:
    """Train and verify in turns."""
    training, replaying, ratios, words = [], [], [], ""
    with tempfile.TemporaryDirectory() as name:
        runs = Path(name)
        for i in range(rounds):
            first, second = Clock(), Clock()
            train(
                recipe(z, steps, source),
                name=f"r{i}",
                recipe_name="benchmark",
                runs=runs,
                progress=first,
            )
            result = verify(runs, f"r{i}", 0, steps, progress=second)
            assert result.bitwise, result.sentence()
            words = result.sentence()
            training.append(first.seconds_per_step)
            replaying.append(second.seconds_per_step)
            ratios.append(training[-1] / replaying[-1])
        run: Run = open_run(runs, "r0")
    return {
        "shapes": vars(z) | {"V": run.shape.vocabulary},
        "rounds": rounds,
        "steps": steps,
        "said": words,
        "parameters": run.header.parameters,
        "compiled": run.recipe.train.compile,
        "training_seconds_per_step": round(statistics.median(training), 4),
        "replay_seconds_per_step": round(statistics.median(replaying), 4),
        "replay_over_training_speed": round(statistics.median(ratios), 3),
    }


def main() -> None:
    """Read the arguments, measure, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--dry", action="store_true", help="tiny shapes: whether it runs, not how fast"
    )
    options = parser.parse_args()
    z = DRY if options.dry else GPU if torch.cuda.is_available() else CPU
    source = "stdlib/json" if options.dry else "stdlib/email"
    report("replay", measure(z, options.rounds, options.steps, source), options.json)


if __name__ == "__main__":
    main()
