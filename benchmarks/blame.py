"""The metagradient against plain leave-one-out: are they the same sequences, and at what cost?

    python -m benchmarks.blame [--rounds 3] [--json benchmarks/results/blame.json]

A small run with a damaged document: in one step 5 of its 32 sequences are shuffled bytes. Two
windows of 16 steps, one that ends in that step and one of clean data. Leave-one-out is a real
replay for each of the 512 sequences, from the kept state before its step to the end of the window.
The target is the mean loss on 64 held-out sequences.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.rounds import report
from forensics import config
from forensics.step.batch import Batch, BatchStream
from forensics.step.result import StepResult
from forensics.step.state import TrainState
from forensics.train.advance import fold
from forensics.train.loop import train
from forensics.train.run import Run, open_run
from replay.blame import window_memory
from replay.blame.metagradient import influence
from replay.blame.probe_target import TargetFunction, probe_target

K, B, T, TOP = 16, 32, 16, 5
DAMAGED = 70  # the step
WINDOWS = {"damaged": DAMAGED + 1 - K, "clean": 40}  # first step of each
RECIPE = {
    "data": {
        "sequence_length": T,
        "tokenizer": "bytes",
        "held_out": 64,
        "sources": {"clean": "stdlib/json", "damaged": "shuffled:stdlib/wsgiref"},
        "phases": [
            {"until": DAMAGED, "mix": {"clean": 1.0}},
            {"until": DAMAGED + 1, "mix": {"clean": 27.0, "damaged": 5.0}},
            {"mix": {"clean": 1.0}},
        ],
    },
    "model": {"layers": 1, "width": 32, "heads": 2},
    "train": {
        "steps": 100,
        "batch": B,
        "learning_rate": 3e-3,
        "warmup": 5,
        "threads": 1,
        "device": "cpu",
    },
    "checkpoint": {"every": 0},
    "record": {"level": "off"},
}


def without(run: Run, step: int, slot: int) -> BatchStream:
    """Return the run's stream with one sequence's weight 0, the denominator kept."""

    def stream(s: int) -> Batch:
        batch = run.stream(s)
        if s != step:
            return batch
        weight = batch.weight.clone()
        weight[slot] = 0.0
        return replace(batch, weight=weight)

    return stream


def leave_one_out(run: Run, first: int, target: TargetFunction) -> tuple[np.ndarray, int]:
    """Leave each sequence out: the target's changes (K, B), and how many steps that took."""
    steps = 0

    def count(state: TrainState, result: StepResult) -> None:
        nonlocal steps
        steps += 1

    def walk(state: TrainState, stream: BatchStream, stop: int) -> TrainState:
        return fold(state, stream, run.policy, stop, run.model, after=count)

    state, states = run.state_at(first), []
    for step in range(first, first + K):
        states.append(state.clone())
        walk(state, run.stream, step + 1)
    with torch.no_grad():
        unaltered = float(target(state.params))

        def change(k: int, slot: int) -> float:
            stream = without(run, first + k, slot)
            return float(target(walk(states[k].clone(), stream, first + K).params)) - unaltered

        changes = [[change(k, slot) for slot in range(B)] for k in range(K)]
    return np.array(changes), steps


def window(run: Run, first: int, rounds: int) -> dict[str, Any]:
    """Measure both methods on batches first … first+15."""
    target = probe_target(run, run.batches.held_out())
    run.state_at(first + K)  # warm
    start = run.state_at(first)
    plain, checked = [], []
    for _ in range(rounds):
        plain.append(influence(run, first, first + K, target, start=start, check=False))
        checked.append(influence(run, first, first + K, target, start=start))
    began = time.perf_counter()
    replayed, steps = leave_one_out(run, first, target)
    seconds = time.perf_counter() - began
    influences, condition = checked[0], checked[0].condition
    assert condition is not None
    with torch.no_grad():
        before = float(target(start.params))
    ranks = [flat.ravel().argsort().argsort() for flat in (-influences.by_sequence, replayed)]
    # what raised the target: a positive influence, a fall of the target when it is left out
    ours, theirs = (
        [_slot(first, i) for i in flat.ravel().argsort()[:TOP]]
        for flat in (-influences.by_sequence, replayed)
    )
    seconds_of = {
        name: statistics.median(result.seconds for result in results)
        for name, results in (("plain", plain), ("checked", checked))
    }
    return {
        "window": [first, first + K],
        "target_moved_nats": influences.value - before,
        "effect_of_all_nats": float(np.abs(replayed).sum()),
        "largest_single_effect_nats": float(np.abs(replayed).max()),
        "top": ours,
        "top_leave_one_out": theirs,
        "top_shared": len({tuple(flat) for flat in ours} & {tuple(flat) for flat in theirs}),
        "spearman": float(np.corrcoef(ranks)[0, 1]),
        "relative_error": condition.relative_error,
        "seconds": seconds_of,
        "seconds_leave_one_out": seconds,
        "advances": {
            "plain": statistics.median(result.advances for result in plain),
            "checked": statistics.median(result.advances for result in checked),
        },
        "advances_leave_one_out": steps,
        "share_of_cost": {name: total / seconds for name, total in seconds_of.items()},
    }


def long_window(run: Run, steps: int = 64) -> dict[str, Any]:
    """Measure a long window's cost in steps of training: every step kept, or every √K-th state."""
    target, start, hold_before = (
        probe_target(run, run.batches.held_out()),
        run.state_at(20),
        window_memory.HOLD,
    )
    costs = {}
    for name, hold in (("all kept", hold_before), ("every root-K-th state", 0)):
        window_memory.HOLD = hold
        result = influence(run, 20, 20 + steps, target, start=start, check=False)
        costs[name] = {
            "advances": result.advances,
            "per_step": result.advances / steps,
            "seconds": result.seconds,
        }
    window_memory.HOLD = hold_before
    return {"steps": steps, **costs}


def _slot(first: int, flat: int) -> list[int]:
    return [first + int(flat) // B, int(flat) % B]


def main() -> None:
    """Train the run, measure its windows, and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--window", action="append", choices=list(WINDOWS), help="this one only; all where left out"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        train(config.from_dict(RECIPE), name="blamed", recipe_name="benchmark", runs=Path(name))
        run = open_run(Path(name), "blamed")
        clean = run.batches.corpus.layout(run.recipe.data.sequence_length).n_sequences[0]
        damaged = (run.stream(DAMAGED).sequence >= clean).nonzero().flatten().tolist()
        windows = {
            name: window(run, WINDOWS[name], options.rounds) for name in options.window or WINDOWS
        }
        report(
            "blame",
            {
                "shapes": {
                    "parameters": run.header.parameters,
                    "steps": K,
                    "batch": B,
                    "sequence_length": T,
                    "threads": 1,
                },
                "damaged_slots": [[DAMAGED, slot] for slot in damaged],
                **windows,
                "long": long_window(run),
            },
            options.json,
        )


if __name__ == "__main__":
    main()
