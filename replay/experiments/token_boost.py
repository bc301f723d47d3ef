"""Fixing an under-trained token by replay: how often must it be seen, and what does that cost
elsewhere?

    boost(runs, "planted", 1234)     the window again, n sequences that hold it in others' place

Arms, all from one state: unmodified; *boosted* by n = 1, 3, 10, 30, 100 sequences; *placebo*, as
many sequences of another token that the corpus holds about as often. Each n has several seeds,
which draw sequences and places. What it takes is read off at the end of the window: the token's
indicator, and its loss and P in contexts that no arm trains on. What it costs is the loss on the
run's held-out sequences, without the places where the token itself stands. An arm is one task of a
worker (`workers.Map`); finished arms are kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from forensics.errors import ForensicsError
from forensics.model.vocabulary_matrices import Weights
from forensics.progress import ProgressCallback, silent
from forensics.step.batch import Batch
from forensics.step.state import TrainState
from forensics.store.resumable import Kept
from forensics.tokens.applied_steps import sequence_ids
from forensics.tokens.exposure import ledger
from forensics.tokens.indicators import measure
from forensics.tokens.trajectories import reference_ids
from forensics.train.advance import fold, token_losses
from forensics.train.run import Run
from replay.compare import null_test
from replay.compare.medians import median_of_present
from replay.compare.probe_sequences import Probe
from replay.executors.local import Map, Task, here, spawned
from replay.forks.lockstep import arm_from
from replay.interventions.boost_token import BoostToken
from replay.interventions.corpus_search import holding
from replay.interventions.registry import from_dict, to_dict
from replay.lineage import open_trajectory, require_intact
from replay.result_files import keep_result
from replay.verify import Witness

TIMES = (1, 3, 10, 30, 100)
CONTEXTS = 16  # sequences the token's loss is read in
TRIES = 32  # tokens tried as a placebo
FREE = 2  # sequences of the default window for each that is exchanged


def boost(
    runs: Path,
    name: str,
    token: int,
    *,
    first: int | None = None,
    last: int | None = None,
    times: Sequence[int] = TIMES,
    seeds: int = 3,
    workers: int = 1,
    hand_out: Map | None = None,
    progress: ProgressCallback = silent,
) -> dict[str, Any]:
    """`arms`, one for each kind, n and seed, and `summary`, one for each n, held against the
    placebos.

    The window first:last ends at the last checkpoint where it is left out, and begins at the latest
    one with room for the largest n. Errors: usage, missing, integrity.
    """
    run = open_trajectory(runs, name)
    first, last = _window(run, first, last, max(times, default=0), seeds, workers)
    plan = _plan(run, token, first, last, sorted(set(times)), seeds)
    require_intact(run)
    tasks: list[Task] = [
        {
            "runs": str(runs),
            "run": name,
            "token": token,
            "first": first,
            "last": last,
            "contexts": plan["contexts"],
            "reference": plan["reference"],
            "threads": 1 if workers > 1 else None,
            **arm,
        }
        for arm in plan["arms"]
    ]
    finished = Kept(run.folder / "boosts", f"{run.name} {run.header.order} {run.header.created}")
    keys = [_key(task) for task in tasks]
    waiting = [i for i, key in enumerate(keys) if key not in finished]
    computed = len(tasks) - len(waiting)
    hand_out = hand_out or (spawned(workers) if workers > 1 else here)
    for index, result in hand_out(arm_of, [tasks[i] for i in waiting]):
        finished.put(keys[waiting[index]], result)
        computed += 1
        progress(computed, len(tasks), f"{result['arm']} {result['times']}")
    arms = [finished.get(key) for key in keys]
    met = ledger(run, first)
    summary = _summary(arms)
    document = {
        "run": name,
        "token": token,
        "text": run.corpus.decode([token]),
        "from": first,
        "to": last,
        "exposure_in": int(met.exposure_in[token]),
        "exposure_out": int(met.exposure_out[token]),
        "contexts": {
            "sequences": len(plan["contexts"]),
            "positions": arms[0]["positions"],
            "why": plan["why"],
        },
        "control": arms[0]["control"],
        "seeds": seeds,
        "arms": arms,
        "summary": summary,
        "verdict": _verdict(arms[0], summary),
    }
    keep_result(run.folder, "boost", "\n".join(keys), document)
    return document


def _window(
    run: Run, first: int | None, last: int | None, most: int, seeds: int, workers: int
) -> tuple[int, int]:
    if most < 1 or seeds < 1 or workers < 1:
        raise ForensicsError(
            "usage",
            f"wanted --times, --seeds and --workers of at least 1, found {most}, {seeds} and "
            f"{workers}",
            "e.g. --times 1,3,10 --seeds 3",
        )
    last = run.last_step() if last is None else last
    B = run.recipe.train.batch
    if first is None:
        fitting = [s for s in run.saved_steps() if s < last and (last - s) * B >= FREE * most]
        if not fitting:
            raise ForensicsError(
                "usage",
                f"wanted a checkpoint of {run.name} with {FREE * most} sequences after it, found"
                " none",
                "boost it less (--times), or name the window (--from, --to)",
            )
        first = fitting[-1]
    if not run.header.first_step <= first < last <= run.last_step():
        raise ForensicsError(
            "missing",
            f"wanted a window of {run.name}, found {first}:{last}",
            f"it has states {run.header.first_step} to {run.last_step()}",
        )
    return first, last


def _plan(
    run: Run, token: int, first: int, last: int, times: list[int], seeds: int
) -> dict[str, Any]:
    """Return the arms' interventions, the sequences of the contexts and the reference of the
    indicator. Errors: usage, missing.
    """
    BoostToken(first, last, token, 1).resolved(run)  # refuses a token that no sequence holds
    holders = holding(run, token)
    contexts, why = _contexts(run, token, holders, last)
    pool = np.setdiff1d(holders, contexts)
    arms: list[dict[str, Any]] = [
        {"arm": "unmodified", "times": 0, "seed": 0, "other": None, "intervention": None}
    ]
    for n in times:
        for seed in range(seeds):
            boosted = _boosted(run, token, first, last, n, seed, pool)
            placebo = _placebo(run, boosted, first, last, seed, holders)
            arms.append(
                {
                    "arm": "boosted",
                    "times": n,
                    "seed": seed,
                    "other": None,
                    "intervention": to_dict(boosted),
                }
            )
            if placebo is not None:
                arms.append(
                    {
                        "arm": "placebo",
                        "times": n,
                        "seed": seed,
                        "other": placebo.token,
                        "intervention": to_dict(placebo),
                    }
                )
    reference = reference_ids(run, first)
    return {
        "arms": arms,
        "contexts": contexts.tolist(),
        "why": why,
        "reference": reference.ids.tolist() if reference else [],
    }


def _contexts(run: Run, token: int, holders: np.ndarray, last: int) -> tuple[np.ndarray, str]:
    """Sequences that hold the token as a target and that no arm trains on: (n,) ids, and what they
    are in words.
    """
    held_out = run.batches.held_out()
    held_out_ids = held_out.sequence[(held_out.tokens[:, 1:] == token).any(1)].numpy()
    unread = np.random.default_rng(0).permutation(np.setdiff1d(holders, _read(run, last)))
    spare = unread[: max(len(unread) // 2, int(len(holders) > 1))]  # the rest is what boosts it
    chosen = np.concatenate((held_out_ids, spare))[:CONTEXTS]
    if not len(chosen):
        return (
            chosen,
            "none: the run trains on every sequence that holds the token, so its loss is not read",
        )
    mine = min(len(held_out_ids), CONTEXTS)
    return chosen, f"{mine} held-out sequences and {len(chosen) - mine} that the run never reads"


def _read(run: Run, step: int) -> np.ndarray:
    """Ids of the sequences that a run has read before state `step`, its ancestors' included,
    ascending.
    """
    if run.parent is None:
        return (
            np.unique(sequence_ids(run.batches.order, np.arange(step)))
            if step
            else np.empty(0, np.int64)
        )
    below = _read(run.parent, min(step, run.header.first_step))
    return np.unique(
        np.concatenate(
            [below, *(run.stream(s).sequence.numpy() for s in range(run.header.first_step, step))]
        )
    )


def _boosted(
    run: Run, token: int, first: int, last: int, n: int, seed: int, pool: np.ndarray
) -> BoostToken:
    """Return the intervention with its sequences drawn from `pool`."""
    resolved = BoostToken(first, last, token, n, seed).resolved(run)
    come = np.random.default_rng(seed).permutation(pool)
    return replace(resolved, sequences=tuple(int(come[i % len(come)]) for i in range(n)))


def _placebo(
    run: Run, own: BoostToken, first: int, last: int, seed: int, holders: np.ndarray
) -> BoostToken | None:
    """As many sequences of another token of about the same count, none of which holds this one."""
    for attempt in range(TRIES):
        placebo = own.placebo(run, run.stream, first, last, seed + attempt * 1009)
        if not isinstance(placebo, BoostToken):
            return None
        pool = np.setdiff1d(holding(run, placebo.token), holders)
        if len(pool):
            return _boosted(run, placebo.token, first, last, own.times, seed, pool)
    return None


def _key(task: Task) -> str:
    """Tell what an arm depends on: not the number of threads or where the runs lie."""
    depends = json.dumps(
        {k: v for k, v in task.items() if k not in ("runs", "threads")}, sort_keys=True
    )
    return (
        f"{task['token']} {task['arm']} {task['times']} {task['seed']}"
        f" {xxhash.xxh3_128_hexdigest(depends.encode())}"
    )


# ---- one arm


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
        control = {"level": report.level, "bitwise": report.bitwise, "sentence": report.sentence()}
    return {
        "arm": task["arm"],
        "times": task["times"],
        "seed": task["seed"],
        "other": task["other"],
        "control": control,
        "before": before,
        **_measured(run, arm.state, task),
    }


def _measured(run: Run, state: TrainState, task: Task) -> dict[str, Any]:
    """Return the token's indicator and its rank, its loss and P in the contexts, and the held-out
    loss by sequence.
    """
    token = task["token"]
    name = "cosine" if run.shape.tied else "input-norm"
    indicators = measure(_weights(run, state), np.array(task["reference"], np.int64)).get(name)
    value = None if indicators is None else float(indicators[token])
    lower = None if indicators is None else float((indicators < indicators[token]).mean())
    measures = {
        "indicator": name,
        "value": value,
        "rank": lower,
        "loss": None,
        "p": None,
        "positions": 0,
        "held_out": None,
    }
    if task["contexts"]:
        batch = run.batches.make(np.array(task["contexts"]))
        here_ = batch.tokens[:, 1:] == token
        losses = _losses(run, state, batch)[here_]
        measures |= {
            "loss": float(losses.mean()),
            "p": float((-losses).exp().mean()),
            "positions": int(here_.sum()),
        }
    probe = Probe(run)
    if probe.batch is not None:
        counts = (probe.batch.tokens[:, 1:] != token).double()
        losses = _losses(run, state, probe.batch)
        measures["held_out"] = ((losses * counts).sum(1) / counts.sum(1).clamp(min=1)).tolist()
    return measures


def _losses(run: Run, state: TrainState, batch: Batch) -> torch.Tensor:
    """(B, T) float64 on the CPU."""
    return token_losses(state.params, batch, run.model, run.header.precision).double().cpu()


def _weights(run: Run, state: TrainState) -> Weights:
    from forensics.model.decoder import unembedding

    E = state.params["embed.weight"].float().cpu()
    return Weights(
        E, E if run.shape.tied else unembedding(state.params).float().cpu(), None, run.shape.tied
    )


# ---- what it comes to


def _summary(arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each n: medians over seeds, and whether what changed goes beyond what the placebos
    changed.
    """
    control, rows = arms[0], []
    for n in sorted({arm["times"] for arm in arms[1:]}):
        boosted, placebo = (
            [a for a in arms if a["times"] == n and a["arm"] == kind]
            for kind in ("boosted", "placebo")
        )
        row: dict[str, Any] = {"times": n, "seeds": len(boosted), "placebos": len(placebo)}
        for kind, measured in (("boosted", boosted), ("placebo", placebo)):
            row[kind] = {
                key: median_of_present([a[key] for a in measured])
                for key in ("value", "rank", "loss", "p")
            }
            gaps = [_gap(a, control) for a in measured]
            row[kind] |= {
                "held_out_gap": median_of_present([g[0] for g in gaps]),
                "held_out_error": median_of_present([g[1] for g in gaps]),
            }
        row["takes"] = _effect(
            [_less(control["loss"], a["loss"]) for a in boosted],
            [_less(control["loss"], a["loss"]) for a in placebo],
        )
        row["costs"] = _effect(
            [_gap(a, control)[0] for a in boosted], [_gap(a, control)[0] for a in placebo]
        )
        rows.append(row)
    return rows


def _gap(arm: dict[str, Any], control: dict[str, Any]) -> tuple[float | None, float | None]:
    """Return the arm's held-out loss over the control's, and its standard error over the sequences,
    which are paired.
    """
    if arm["held_out"] is None:
        return None, None
    gaps = np.array(arm["held_out"]) - np.array(control["held_out"])
    return float(gaps.mean()), (
        float(gaps.std(ddof=1) / math.sqrt(len(gaps))) if len(gaps) > 1 else None
    )


def _effect(own: list[float | None], placebos: list[float | None]) -> dict[str, Any] | None:
    """Return the median change held against the sizes of the placebos' changes."""
    d = median_of_present(own)
    if d is None:
        return None
    effect = null_test.judge_effect(d, [abs(x) for x in placebos if x is not None])
    return {
        "change": d,
        "p": effect.p,
        "placebos": effect.placebos,
        "largest_placebo": effect.largest,
        "causal": effect.causal,
        "verdict": effect.sentence(),
    }


def _verdict(control: dict[str, Any], summary: list[dict[str, Any]]) -> str:
    if control["loss"] is None:
        return "no context of the token is left to read its loss in"
    takes = next((row for row in summary if row["takes"]["causal"]), None)
    shown = takes or summary[-1]
    placebo_words = f", its placebos to {shown['placebo']['loss']:.3f}" if shown["placebos"] else ""
    words = [
        f"{shown['times']} sequences take its loss from {control['loss']:.3f} to"
        f" {shown['boosted']['loss']:.3f}{placebo_words}, {shown['takes']['verdict']}"
        + ("" if takes else ", nor is any smaller number")
    ]
    costly = next((row for row in summary if row["costs"] and row["costs"]["causal"]), None)
    if costly:
        words.append(
            f"at {costly['times']} it costs {costly['costs']['change']:+.4f} elsewhere, beyond the"
            " placebos"
        )
    elif summary[-1]["costs"]:
        words.append(
            f"even {summary[-1]['times']} change the loss elsewhere by"
            f" {summary[-1]['costs']['change']:+.4f}, {summary[-1]['costs']['verdict']}"
        )
    return "; ".join(words)


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
