"""What every head does on one sequence before, at and after a step; what each layer would predict.

    study = attention(runs, "demo", 400)     # the worst sequence of batch 400, at three states

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
from typing import Any, NamedTuple

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
from replay.lineage import holder_of, is_recorded, open_trajectory, require_intact
from replay.step import artifacts
from replay.step.result import AttentionStudy, HeadAttention
from replay.step.states_along import states_along

AROUND = 16  # steps from the step to the states before and after it
# what the file of arrays says of them
ABOUT = (
    "run",
    "step",
    "slot",
    "sequence",
    "tokens",
    "states",
    "exact",
    "block",
    "lens",
    "why",
)


class LensReading(NamedTuple):
    """What the embedding and each layer would predict, (L+1, T)."""

    loss: np.ndarray  # of the target, nats
    top: np.ndarray  # the likeliest token
    top_p: np.ndarray  # its probability


def attention(
    runs: Path,
    name: str,
    step: int,
    slot: int | None = None,
    states: Sequence[int] | None = None,
    lens: bool = True,
    progress: ProgressCallback = silent,
) -> AttentionStudy:
    """Study one sequence of batch `step` (that of the highest recorded loss) at three states.

    `states` are those before, at and after the step, 16 steps apart, as far as the run goes.
    Errors: usage, missing, integrity, storage.
    """
    started = time.perf_counter()
    run = open_trajectory(runs, name)
    batch = run.batch_at(step)
    row = _worst(run, step) if slot is None else slot
    if not 0 <= row < len(batch.tokens):
        raise ForensicsError(
            "usage",
            f"wanted a slot of batch {step}, found {row}",
            f"it has slots 0 to {len(batch.tokens) - 1}",
        )
    steps = _states(run, step, states)
    require_intact(run)
    tokens = batch.tokens[row]
    by_state: list[Patterns] = []
    lenses: list[LensReading] = []
    exact: list[bool | None] = []
    why_no_lens = None
    for state in _states_at(run, steps, progress):
        exact.append(is_recorded(run, state))
        by_state.append(_patterns(run, state, batch, row))
        if lens and why_no_lens is None:
            try:
                lenses.append(_read_lens(run, state, tokens))
            except ForensicsError as e:
                why_no_lens = f"{e.message}; {e.hint}"
    read = bool(lenses) and why_no_lens is None
    path = artifacts.attention_of(run.folder, step, row)
    study = AttentionStudy(
        run=name,
        step=step,
        slot=row,
        sequence=int(batch.sequence[row]),
        tokens=tuple(tokens.tolist()),
        states=tuple(steps),
        exact=tuple(exact),
        block=by_state[0].block,
        lens=read,
        why=why_no_lens,
        heads=_by_head(by_state),
        lens_loss=_mean_lens(lenses) if read else None,
        file=str(path.relative_to(runs)),
        seconds=time.perf_counter() - started,
    )
    arrays = {
        "scores": torch.stack([patterns.scores for patterns in by_state]).numpy(),
        "weights": torch.stack([patterns.weights for patterns in by_state]).numpy(),
    }
    if read:
        for key in LensReading._fields:
            by_state_lens = [getattr(reading, key) for reading in lenses]
            arrays[f"lens_{key}"] = np.stack(by_state_lens)
    artifacts.write(path, arrays, {key: getattr(study, key) for key in ABOUT})
    return study


def states_around(run: Run, step: int) -> list[int]:
    """List the states before, at and after a step, as far as the run goes."""
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
    """Return the last state that the run has reached."""
    steps = run.table("steps", ["step"])["step"]
    return max(run.last_step(), steps[-1].as_py() + 1 if len(steps) else 0)


def _worst(run: Run, step: int) -> int:
    """Return the slot of the highest recorded loss; 0 where none was recorded."""
    import pyarrow.compute as pc

    table = holder_of(run, step).table("sequences", ["step", "slot", "loss"])
    rows = table.filter(pc.equal(table["step"], step)).to_pylist()

    def badness(row: dict[str, Any]) -> tuple[bool, bool, float]:
        """Rank a loss that is not finite above all others."""
        return row["loss"] is not None, not math.isfinite(row["loss"] or 0.0), row["loss"]

    return int(max(rows, key=badness)["slot"]) if rows else 0


def _states_at(run: Run, steps: Sequence[int], progress: ProgressCallback) -> Iterator[TrainState]:
    """Yield the exact states in order, and tell how far it is."""
    progress(0, len(steps), f"state {steps[0]}")
    for i, state in enumerate(states_along(run, steps), 1):
        yield state
        progress(i, len(steps), f"state {steps[i]}" if i < len(steps) else "")


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
def _read_lens(run: Run, state: TrainState, tokens_T1: Tensor) -> LensReading:
    """Read the stream after the embedding and each layer out through the unembedding."""
    inputs, targets = tokens_T1[None, :-1], tokens_T1[1:]
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that library's own
        lens = bridge(state.params, run.shape, None, run.header.eot)
        _, cache = lens.run_with_cache(inputs)
        streams = [
            cache["blocks.0.hook_resid_pre"],
            *(cache[f"blocks.{i}.hook_resid_post"] for i in range(run.shape.layers)),
        ]
        losses, tops, top_ps = [], [], []
        for stream in streams:
            normed = lens.ln_final(stream)
            loss, top, top_p = [], [], []
            for rows in chunks(len(targets)):
                log_p = lens.unembed(normed[:, rows])[0].float().log_softmax(-1)
                best = log_p.max(-1)
                loss.append(-log_p.gather(1, targets[rows, None])[:, 0])
                top.append(best.indices.int())
                top_p.append(best.values.exp())
            losses.append(torch.cat(loss))
            tops.append(torch.cat(top))
            top_ps.append(torch.cat(top_p))
    return LensReading(*(torch.stack(rows).numpy() for rows in (losses, tops, top_ps)))


def _by_head(by_state: list[Patterns]) -> tuple[HeadAttention, ...]:
    """Find each head's largest logit at each state, and how far its weights moved.

    That is half the mean of Σ|Δ| by query, against the first state.
    """
    first = by_state[0]
    L, H = first.scores.shape[:2]
    largest = [patterns.scores.amax((2, 3)) for patterns in by_state]
    moved = [(p.weights - first.weights).abs().sum(-1).mean(-1) / 2 for p in by_state]
    return tuple(
        HeadAttention(
            layer,
            head,
            tuple(float(logits[layer, head]) for logits in largest),
            tuple(float(shares[layer, head]) for shares in moved),
        )
        for layer in range(L)
        for head in range(H)
    )


def _mean_lens(lenses: list[LensReading]) -> tuple[tuple[float, ...], ...]:
    """Average by state the loss read out of the embedding and after each layer, nats/token."""
    means = (reading.loss.mean(1, dtype=np.float64) for reading in lenses)
    return tuple(tuple(float(loss) for loss in by_layer) for by_layer in means)
