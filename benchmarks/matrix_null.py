"""Is every p of a matrix uniform where nothing is wrong? Ordinary windows of small clean runs.

    python -m benchmarks.matrix_null --json benchmarks/results/matrix-null.json

Each run is trained on clean text, by one of two recipes; from each, windows of four batches at
random steps are taken apart exactly as `replay matrix` does. By measure and part: the share of p at
or below 0.05, 0.1, 0.25 and 0.5, and how often a matrix concludes anything at all.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from forensics import config
from forensics.errors import ForensicsError
from forensics.train.loop import train
from replay.experiments.data_state_matrix import matrix
from replay.experiments.matrix_scope import BATCHES, OTHERS, STRIDE

LEVELS = (0.05, 0.1, 0.25, 0.5)
STEPS = 400
RECIPE: dict[str, Any] = {
    "data": {"source": "stdlib/email", "tokenizer": "bytes", "sequence_length": 64, "held_out": 8},
    "model": {"layers": 1, "width": 16, "heads": 2},
    "train": {"steps": STEPS, "batch": 8, "threads": 1, "warmup": 10},
    "checkpoint": {"every": 100},
    "record": {"level": "off"},
}
RATES = (3e-3, 1e-2)  # the two recipes: a steady one, and one that wanders


def ordinary(folder: Path, seed: int, windows: int) -> list[dict[str, Any]]:
    """Train a clean run and take windows of it apart: p by measure and part, and the verdict."""
    settings = RECIPE["train"] | {"seed": seed, "learning_rate": RATES[seed % len(RATES)]}
    train(config.from_dict(RECIPE | {"train": settings}), name="c", recipe_name="null", runs=folder)
    random, rows = np.random.default_rng(seed), []
    for first in random.integers(OTHERS * STRIDE + 10, STEPS - BATCHES, windows):
        try:
            found = matrix(folder, "c", int(first), int(first) + BATCHES)
        except ForensicsError as e:
            print(f"run {seed}, batch {first}: {e.message}")
            continue
        parts = {
            f"{measure}: {part.part}": part.p
            for measure, split in found.effects.items()
            for part in (split.parts if split else ())
        }
        rows.append(
            {"seed": seed, "first": int(first), "verdict": found.conclusion.verdict} | parts
        )
    return rows


def report(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table: by measure and part the share of p at or below each level."""
    lines = [f"{'':24}" + "".join(f"p ≤ {level:<6g}" for level in LEVELS)]
    for name in rows[0]:
        p = np.array([row[name] for row in rows if isinstance(row[name], float)])
        if ":" in name and len(p):
            lines.append(f"{name:24}" + "".join(f"{np.mean(p <= x):<10.3f}" for x in LEVELS))
    found = sum(row["verdict"] != "cannot tell" for row in rows)
    return [*lines, f"concluded anything: {found} of {len(rows)}"]


def main() -> None:
    """Run the study and print its table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(options.runs):
        started, folder = time.perf_counter(), Path(tempfile.mkdtemp())
        rows += ordinary(folder, seed, options.windows)
        shutil.rmtree(folder)
        print(
            f"run {seed + 1} of {options.runs}: {time.perf_counter() - started:.0f} s", flush=True
        )
    print("\n".join(report(rows)))
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
