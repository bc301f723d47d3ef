"""Checkpoints: seconds to save and to load one, and what the loop waits for meanwhile.

python -m benchmarks.saving [--rounds 5] [--json benchmarks/results/saving-cpu.json]

The stall is how much longer a step takes that hands a state over, and the steps beside which it is
written, over the median step; on a CPU both share the cores.
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
from benchmarks.step import DEVICE, Ours, synchronous
from forensics import identity
from forensics.train import checkpoint
from forensics.train.background_checkpoint import Saver


def whole(ours: Ours, rounds: int, place: Path) -> dict[str, Any]:
    """Time saving and loading in the loop's own thread, nothing beside it."""
    saves, loads, size = [], [], 0
    for _ in range(rounds):
        started = time.perf_counter()
        path, _, size = checkpoint.save(place, ours.state, ours.model.decoder.shape, None, 0)
        saves.append(time.perf_counter() - started)
        started = time.perf_counter()
        checkpoint.load(path, DEVICE)
        loads.append(time.perf_counter() - started)
    save, load = statistics.median(saves), statistics.median(loads)
    return {
        "megabytes": round(size / 1e6, 1),
        "save_seconds": round(save, 4),
        "load_seconds": round(load, 4),
        "save_megabytes_per_second": round(size / 1e6 / save),
        "load_megabytes_per_second": round(size / 1e6 / load),
    }


def stalls(ours: Ours, rounds: int, place: Path) -> dict[str, Any]:
    """Time steps while saves are written beside them.

    The first save, which takes its memory, is not counted.
    """
    step, saver = synchronous(ours), Saver(place, ours.model.decoder.shape, None, 0)
    handing, beside, quiet = [], [], []
    saver.save(ours.state, "first")
    saver.saved(wait=True)
    for _ in range(rounds):
        for _ in range(4):
            started = time.perf_counter()
            step()
            quiet.append(time.perf_counter() - started)
        started = time.perf_counter()
        saver.save(ours.state, "every")
        handing.append(time.perf_counter() - started)
        while not saver.saved():
            started = time.perf_counter()
            step()
            beside.append(time.perf_counter() - started)
    saver.close()
    middle = statistics.median(quiet)
    extra = sum(seconds - middle for seconds in beside) / rounds
    return {
        "step_seconds": round(middle, 4),
        "hand_over_seconds": round(statistics.median(handing), 4),
        "steps_written_beside": round(len(beside) / rounds, 1),
        "slower_beside_seconds": round(extra, 4),
        "stall_in_steps": round(statistics.median(handing) / middle, 3),
        "whole_price_in_steps": round((statistics.median(handing) + extra) / middle, 3),
    }


def measure(z: Sizes, rounds: int) -> dict[str, Any]:
    """Measure saving alone, and behind the run."""
    identity.enable_determinism(identity.thread_count(0))
    ours = Ours(z, "gpt2", compiled=DEVICE == "cuda")
    for _ in range(3):
        ours()
    with tempfile.TemporaryDirectory() as name:
        return {
            "shapes": vars(z),
            "parameters": ours.parameters,
            **whole(ours, rounds, Path(name) / "whole"),
            "behind_the_run": stalls(ours, rounds, Path(name) / "behind"),
        }


def main() -> None:
    """Read the arguments, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--dry", action="store_true", help="tiny shapes: whether it runs, not how fast"
    )
    options = parser.parse_args()
    z = DRY if options.dry else GPU if torch.cuda.is_available() else CPU
    report("saving", measure(z, options.rounds), options.json)


if __name__ == "__main__":
    main()
