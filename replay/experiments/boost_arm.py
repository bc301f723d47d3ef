"""One arm of a boost, run to the end of the window and measured: the task of a worker."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forensics.model.vocabulary_matrices import Weights
from forensics.result_records import part_to_document
from forensics.step.batch import Batch
from forensics.step.state import TrainState
from forensics.tokens.indicators import measure
from forensics.train.advance import fold, token_losses
from forensics.train.run import Run
from replay.compare.probe_sequences import Probe
from replay.executors.local import Task
from replay.experiments.boost_result import BoostArm, BoostControl, TokenReading
from replay.forks.lockstep import arm_from
from replay.interventions.registry import from_dict
from replay.lineage import open_trajectory
from replay.verify import Witness


def arm_of(task: Task) -> dict[str, Any]:
    """One arm run to the end of the window and measured: the task of a worker. Errors: missing,
    integrity.
    """
    run, first, last = open_trajectory(Path(task["runs"]), task["run"]), task["first"], task["last"]
    model = run.model  # settles the run's own number of threads
    if task["threads"]:
        torch.set_num_threads(task["threads"])
    start = run.state_at(first)
    interventions = (from_dict(task["intervention"]),) if task["intervention"] else ()
    arm = arm_from(start, run, interventions)
    witness = Witness(run, first, last) if not interventions else None
    before = _measured(run, start, task) if witness else None
    del start
    fold(arm.state, arm.stream, arm.policy, last, model, after=witness.see if witness else None)
    control = None
    if witness is not None:
        report = witness.report()
        control = BoostControl(report.level, report.bitwise, report.sentence())
    reading = _measured(run, arm.state, task)
    return part_to_document(
        BoostArm(
            **{field.name: getattr(reading, field.name) for field in fields(reading)},
            arm=task["arm"],
            times=task["times"],
            seed=task["seed"],
            other=task["other"],
            control=control,
            before=before,
        )
    )


def _measured(run: Run, state: TrainState, task: Task) -> TokenReading:
    """Return the token's indicator and its rank, its loss and P in the contexts, and the held-out
    loss by sequence.
    """
    token = task["token"]
    name = "cosine" if run.shape.tied else "input-norm"
    indicators = measure(_weights(run, state), np.array(task["reference"], np.int64)).get(name)
    value = None if indicators is None else float(indicators[token])
    lower = None if indicators is None else float((indicators < indicators[token]).mean())
    loss, p, positions, held_out = None, None, 0, None
    if task["contexts"]:
        batch = run.batches.make(np.array(task["contexts"]))
        is_token = batch.tokens[:, 1:] == token
        losses = _losses(run, state, batch)[is_token]
        loss, p = float(losses.mean()), float((-losses).exp().mean())
        positions = int(is_token.sum())
    probe = Probe(run)
    if probe.batch is not None:
        counts = (probe.batch.tokens[:, 1:] != token).double()
        losses = _losses(run, state, probe.batch)
        held_out = tuple(((losses * counts).sum(1) / counts.sum(1).clamp(min=1)).tolist())
    return TokenReading(name, value, lower, loss, p, positions, held_out)


def _losses(run: Run, state: TrainState, batch: Batch) -> torch.Tensor:
    """(B, T) float64 on the CPU."""
    return token_losses(state.params, batch, run.model, run.header.precision).double().cpu()


def _weights(run: Run, state: TrainState) -> Weights:
    from forensics.model.decoder import unembedding

    E = state.params["embed.weight"].float().cpu()
    return Weights(
        E, E if run.shape.tied else unembedding(state.params).float().cpu(), None, run.shape.tied
    )
