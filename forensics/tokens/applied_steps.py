"""The steps of a run whose gradient the optimizer took, ancestors' first, and their batches.

for window in moves(run, 300):      # one for the run, one for each ancestor
    batches_of(window.run, window.steps[:8]).tokens     # (8·B, T + 1)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from forensics.data.order import Order
from forensics.errors import ForensicsError
from forensics.step.batch import Batch
from forensics.step.state import Counters
from forensics.train.run import Run

LATER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Moves:
    """What a run did at the steps of a window whose gradient the optimizer took; one entry a step,
    in order.
    """

    run: Run
    steps: np.ndarray  # (n,) int64
    applied: np.ndarray  # (n,) bool: the parameters moved; else only the moments
    counters: tuple[Counters, ...]  # before each step


def moves(run: Run, step: int) -> list[Moves]:
    """Those of a run up to state `step`, ancestors first, each over its own window. Errors:
    missing, integrity.
    """
    assert run.header.parent is None or run.parent is not None, (
        "a fork is opened by replay.lineage.open_trajectory"
    )
    windows = [] if run.parent is None else moves(run.parent, min(step, run.header.first_step))
    first = run.header.first_step
    if step <= first:
        return windows
    table = run.table("steps", ["step", "update", "schedule", "updates"])
    at, schedule, updates = (table[name].to_numpy() for name in ("step", "schedule", "updates"))
    action = np.array(table["update"].to_pylist(), dtype=object)
    order = np.argsort(at, kind="stable")
    order = order[(at[order] >= first) & (at[order] < step)]
    if not np.array_equal(at[order], np.arange(first, step)):
        raise ForensicsError(
            "integrity",
            f"wanted a row of `steps` for each of {run.name}'s steps {first}:{step}, "
            f"found {len(order)}",
            "`forensics doctor RUN` tells what is damaged",
        )
    order = order[(action[order] == "apply") | (action[order] == "hold")]
    counters = tuple(
        Counters(*map(int, each)) for each in zip(at[order], schedule[order], updates[order])
    )
    return [*windows, Moves(run, at[order].astype(np.int64), action[order] == "apply", counters)]


def batches_of(run: Run, steps: np.ndarray) -> Batch:
    """Return the batches of these steps as one: (n·B) rows."""
    if (
        run.parent is None
    ):  # its own stream: rows are pure functions of their ids, whatever batch they stand in
        return run.batches.make(sequence_ids(run.batches.order, steps))
    import torch

    parts = [run.stream(int(step)) for step in steps]
    tokens, weight, sequence = (
        torch.cat([getattr(p, name) for p in parts]) for name in ("tokens", "weight", "sequence")
    )
    return Batch(tokens, weight, 0.0, sequence)


def sequence_ids(order: Order, steps: np.ndarray) -> np.ndarray:
    """Return the ids of these batches, one after the other: (n·B,).

    Within a phase the order is one list of ids, cut into batches: with 2^j times the batch it gives
    2^j of them at once.
    """
    chunks = []
    starts = [0] if order.file is not None else [stretch.start for stretch in order.stretches]
    i = 0
    while i < len(steps):
        step, start = int(steps[i]), max(s for s in starts if s <= steps[i])
        n = 1
        while (step - start) % (2 * n) == 0 and i + 2 * n <= len(steps):
            n *= 2
        last = min([s for s in starts if s > step], default=LATER)
        while (
            steps[i + n - 1] != step + n - 1 or step + n > last
        ):  # a step in between took no gradient, or a phase ends
            n //= 2
        wide = dataclasses.replace(order, batch=n * order.batch)
        chunks.append(wide.sequence_ids(start + (step - start) // n))
        i += n
    return np.concatenate(chunks)
