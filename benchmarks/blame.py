"""The metagradient against plain leave-one-out on windows of 16 × 32 sequences: the same sequences,
at what cost?

    python -m benchmarks.blame [--rounds 3] [--window damaged] [--json
    benchmarks/results/blame.json]

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
from forensics.train.advance import advance
from forensics.train.loop import train
from forensics.train.run import Run, open_run
from replay.blame import window_memory
from replay.blame.metagradient import Target, influence, probe_target

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
    """The run's stream with one sequence's weight 0, the denominator kept."""

    def stream(s: int) -> Batch:
        batch = run.stream(s)
        if s != step:
            return batch
        weight = batch.weight.clone()
        weight[slot] = 0.0
        return replace(batch, weight=weight)

    return stream


def leave_one_out(run: Run, first: int, target: Target) -> tuple[np.ndarray, int]:
    """Change of the target for each sequence left out (K, B), and how many steps that took."""
    steps = 0

    def walk(state: Any, stream: BatchStream, stop: int) -> Any:
        nonlocal steps
        while state.counters.step < stop:
            advance(state, stream(state.counters.step), run.policy(state.counters), run.model)
            steps += 1
        return state

    state, kept = run.state_at(first), []
    for step in range(first, first + K):
        kept.append(state.clone())
        walk(state, run.stream, step + 1)
    with torch.no_grad():
        whole = float(target(state.params))
        changes = [
            [
                float(target(walk(at.clone(), without(run, first + k, i), first + K).params))
                - whole
                for i in range(B)
            ]
            for k, at in enumerate(kept)
        ]
    return np.array(changes), steps


def window(run: Run, first: int, rounds: int) -> dict[str, Any]:
    """Both methods on batches first … first+15."""
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
    found, condition = checked[0], checked[0].condition
    assert condition is not None
    with torch.no_grad():
        before = float(target(start.params))
    ranks = [x.ravel().argsort().argsort() for x in (-found.by_sequence, replayed)]
    # what raised the target: a positive influence, a fall of the target when it is left out
    ours, theirs = (
        [_slot(first, i) for i in x.ravel().argsort()[:TOP]] for x in (-found.by_sequence, replayed)
    )
    own = {
        name: statistics.median(f.seconds for f in each)
        for name, each in (("plain", plain), ("checked", checked))
    }
    return {
        "window": [first, first + K],
        "target_moved_nats": found.value - before,
        "effect_of_all_nats": float(np.abs(replayed).sum()),
        "largest_single_effect_nats": float(np.abs(replayed).max()),
        "top": ours,
        "top_leave_one_out": theirs,
        "top_shared": len({tuple(x) for x in ours} & {tuple(x) for x in theirs}),
        "spearman": float(np.corrcoef(ranks)[0, 1]),
        "relative_error": condition.relative_error,
        "seconds": own,
        "seconds_leave_one_out": seconds,
        "advances": {
            "plain": statistics.median(f.advances for f in plain),
            "checked": statistics.median(f.advances for f in checked),
        },
        "advances_leave_one_out": steps,
        "share_of_cost": {name: s / seconds for name, s in own.items()},
    }


def long_window(run: Run, steps: int = 64) -> dict[str, Any]:
    """Cost of a long window in steps of training, unchecked: every step kept, and every √K-th
    state.
    """
    target, start, held = (
        probe_target(run, run.batches.held_out()),
        run.state_at(20),
        window_memory.HOLD,
    )
    found = {}
    for name, hold in (("all kept", held), ("every root-K-th state", 0)):
        window_memory.HOLD = hold
        one = influence(run, 20, 20 + steps, target, start=start, check=False)
        found[name] = {
            "advances": one.advances,
            "per_step": one.advances / steps,
            "seconds": one.seconds,
        }
    window_memory.HOLD = held
    return {"steps": steps, **found}


def _slot(first: int, flat: int) -> list[int]:
    return [first + int(flat) // B, int(flat) % B]


def main() -> None:
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
                "damaged_slots": [[DAMAGED, i] for i in damaged],
                **windows,
                "long": long_window(run),
            },
            options.json,
        )


if __name__ == "__main__":
    main()
