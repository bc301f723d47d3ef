"""What every head did on one sequence before, at and after a step; and what each layer would have
predicted.

    document = attention(runs, "demo", 400)          # the worst sequence of batch 400 at states 384, 400 and 416

The states are the run's own, by replay. Scores and weights are those of the very decoder that
trained; the logit lens goes through TransformerLens on a copy of each state. All of it is kept in
the run's folder (`replay.step.artifacts`).
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forensics.errors import ForensicsError
from forensics.model.loss import chunks
from forensics.model.transformer_lens_bridge import bridge
from forensics.observe.patterns import Patterns, patterns
from forensics.progress import ProgressCallback, silent
from forensics.step.batch import Batch
from forensics.step.state import TrainState
from forensics.train.advance import documents
from forensics.train.run import Run
from replay.lineage import open_trajectory, require_intact
from replay.step import artifacts

AROUND = 16  # steps from the step to the states before and after it


def attention(
    runs: Path,
    name: str,
    step: int,
    slot: int | None = None,
    states: Sequence[int] | None = None,
    lens: bool = True,
    progress: ProgressCallback = silent,
) -> dict[str, Any]:
    """One sequence of batch `step` (that of the highest recorded loss) through every head at three
    states.

    `states` are those before, at and after (16 steps apart, as far as the run goes). The document
    holds, by head, the largest logit at each state and how far the weights moved from the first
    state (half the mean of Σ|Δ| by query). Errors: usage, missing, integrity, storage.
    """
    began = time.perf_counter()
    run = open_trajectory(runs, name)
    batch = run.batch_at(step)
    row = _worst(run, step) if slot is None else slot
    if not 0 <= row < len(batch.tokens):
        raise ForensicsError(
            "usage",
            f"wanted a slot of batch {step}, found {row}",
            f"it has slots 0 to {len(batch.tokens) - 1}",
        )
    wanted = _states(run, step, states)
    require_intact(run)
    tokens = batch.tokens[row]
    seen: list[Patterns] = []
    lenses: list[dict[str, np.ndarray]] = []
    exact: list[bool | None] = []
    reason = None
    for state in _at(run, wanted, progress):
        exact.append(is_recorded(run, state))
        seen.append(_patterns(run, state, batch, row))
        if lens and reason is None:
            try:
                lenses.append(_lens(run, state, tokens))
            except ForensicsError as e:
                reason = f"{e.message}; {e.hint}"
    about = {
        "run": name,
        "step": step,
        "slot": row,
        "sequence": int(batch.sequence[row]),
        "tokens": tokens.tolist(),
        "states": wanted,
        "exact": exact,
        "block": seen[0].block,
        "lens": bool(lenses) and reason is None,
        "why": reason,
    }
    arrays = {
        "scores": torch.stack([s.scores for s in seen]).numpy(),
        "weights": torch.stack([s.weights for s in seen]).numpy(),
    }
    if about["lens"]:
        arrays |= {f"lens_{key}": np.stack([each[key] for each in lenses]) for key in lenses[0]}
    path = artifacts.attention_of(run.folder, step, row)
    artifacts.write(path, arrays, about)
    return {
        **about,
        "heads": _by_head(seen),
        "lens_loss": _mean_lens(lenses) if about["lens"] else None,
        "file": str(path.relative_to(runs)),
        "seconds": time.perf_counter() - began,
    }


def states_around(run: Run, step: int) -> list[int]:
    """The states before, at and after a step, as far as the run goes."""
    lowest = 0 if run.parent is not None else run.header.first_step
    return sorted({max(lowest, step - AROUND), step, min(max(trained(run), step), step + AROUND)})


def _states(run: Run, step: int, states: Sequence[int] | None) -> list[int]:
    if trained(run) < step:
        raise ForensicsError(
            "missing",
            f"{run.name} has been trained to step {trained(run)}, not to {step}",
            "look at an earlier step",
        )
    if states is None:
        return states_around(run, step)
    if not 1 <= len(states) <= 5:
        raise ForensicsError(
            "usage", f"wanted one to five states, found {len(states)}", f"--states {step}"
        )
    return sorted({*states})


def trained(run: Run) -> int:
    steps = run.table("steps", ["step"])["step"]
    return max(run.last_step(), steps[-1].as_py() + 1 if len(steps) else 0)


def _worst(run: Run, step: int) -> int:
    """The slot of the highest recorded loss; 0 where none was recorded."""
    import pyarrow.compute as pc

    holder = run
    while holder.parent is not None and step < holder.header.first_step:
        holder = holder.parent
    rows = holder.table("sequences", ["step", "slot", "loss"])
    rows = rows.filter(pc.equal(rows["step"], step)).to_pylist()
    return (
        max(
            rows,
            key=lambda r: (r["loss"] is not None, not math.isfinite(r["loss"] or 0.0), r["loss"]),
        )["slot"]
        if rows
        else 0
    )


def _at(run: Run, steps: Sequence[int], progress: ProgressCallback) -> Iterator[TrainState]:
    """The exact states in order, each going on from the one before where no checkpoint lies
    between.
    """
    state: TrainState | None = None
    for i, step in enumerate(steps):
        progress(i, len(steps), f"state {step}")
        onward = state is not None and state.counters.step >= run.header.first_step
        if onward and run.checkpoint_before(step) <= state.counters.step:  # type: ignore[union-attr]
            run.replay(state, step)  # type: ignore[arg-type]
        else:
            state = run.state_at(step)
        yield state  # type: ignore[misc]
    progress(len(steps), len(steps), "")


def is_recorded(run: Run, state: TrainState) -> bool | None:
    """Whether the state is the recorded one bit for bit; None where no digest was recorded."""
    import pyarrow.compute as pc

    step, holder = state.counters.step, run
    while holder.parent is not None and step < holder.header.first_step:
        holder = holder.parent
    rows = holder.table("steps", ["step", "state_digest"])
    rows = rows.filter(pc.equal(rows["step"], step - 1))
    digest = rows["state_digest"][0].as_py() if rows.num_rows else None
    return None if digest is None else bool(digest == state.digest())


def _patterns(run: Run, state: TrainState, batch: Batch, row: int) -> Patterns:
    inputs = batch.tokens[row : row + 1, :-1].to(run.model.device)
    inside = documents(inputs, run.model)
    half = run.header.precision == "bf16"
    cast = (
        torch.autocast(run.model.device, dtype=torch.bfloat16) if half else contextlib.nullcontext()
    )
    with cast:
        return patterns(
            run.model.decoder, state.params, inputs[0], None if inside is None else inside[0]
        )


@torch.no_grad()
def _lens(run: Run, state: TrainState, tokens_T1: Tensor) -> dict[str, np.ndarray]:
    """Of the embedding and each layer (L+1, T): loss of the target in nats, the likeliest token and
    its probability.
    """
    inputs, targets = tokens_T1[None, :-1], tokens_T1[1:]
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that library's own
        lens = bridge(state.params, run.shape, None, run.header.eot)
        _, cache = lens.run_with_cache(inputs)
        stream = [
            cache["blocks.0.hook_resid_pre"],
            *(cache[f"blocks.{i}.hook_resid_post"] for i in range(run.shape.layers)),
        ]
        found: dict[str, list[Tensor]] = {"loss": [], "top": [], "top_p": []}
        for x in stream:
            normed, parts = lens.ln_final(x), []
            for rows in chunks(len(targets)):
                log_p = lens.unembed(normed[:, rows])[0].float().log_softmax(-1)
                best = log_p.max(-1)
                parts.append(
                    (
                        -log_p.gather(1, targets[rows, None])[:, 0],
                        best.indices.int(),
                        best.values.exp(),
                    )
                )
            for key, column in zip(found, zip(*parts)):
                found[key].append(torch.cat(column))
    return {key: torch.stack(rows).numpy() for key, rows in found.items()}


def _by_head(seen: list[Patterns]) -> list[dict[str, Any]]:
    """Largest logit at each state, and how far the weights are from those of the first."""
    L, H = seen[0].scores.shape[:2]
    largest = [s.scores.amax((2, 3)) for s in seen]
    moved = [(s.weights - seen[0].weights).abs().sum(-1).mean(-1) / 2 for s in seen]
    return [
        {
            "layer": i,
            "head": h,
            "logit_max": [float(x[i, h]) for x in largest],
            "moved": [float(x[i, h]) for x in moved],
        }
        for i in range(L)
        for h in range(H)
    ]


def _mean_lens(lenses: list[dict[str, np.ndarray]]) -> list[list[float]]:
    """By state, the mean loss read out of the embedding and after each layer, nats/token."""
    return [[float(x) for x in each["loss"].mean(1, dtype=np.float64)] for each in lenses]
