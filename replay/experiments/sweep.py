"""The same intervention at many starting steps: how far does it take the run, early and late?

sweep(runs, raw, [50, 150, 250], workers=2)  →  points

Windows in the fork file are relative to its `from` and move with the starting step, where its SQL
is run anew with $first and $last of the moved window; every fork runs over as many steps as the
file's. Early against late is confounded by the schedule, so there are two arms: "own" trains by the
run's own policy; in "equal" control, fork and placebos all hold the learning rate that the run has
at the earliest of the steps, constant over the window. Where the run's own rate is that one all
along there is no second arm: both would train the same. Every control is held against the parent:
in "own" bit for bit over the window; in "equal", which the parent never trained, the start and the
first step's loss and gradient norm.

A fork is one task, computed in a worker process of one thread (`workers.Map`). Finished ones are
kept: what was cut off goes on. The whole document is `sweep-<hash>.json` in the run's folder, for
the app.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from forensics.config import window
from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback, silent
from forensics.result_records import read_part
from forensics.step.state import Counters, TrainState
from forensics.store.resumable import Kept
from forensics.train.run import Run
from replay.compare import distances, null_test, probe_sequences
from replay.compare.probe_sequences import Probe
from replay.executors.local import Map, Task, here, spawned
from replay.experiments.results import SweepPoint, SweepResult, SweepRow
from replay.forks import spec
from replay.forks.arms import CONTROL, start_arms
from replay.forks.lockstep import at_learning_rate, march, require_steps
from replay.interventions import placebo
from replay.interventions.fields import fields_of
from replay.interventions.placebo import placebos_of
from replay.interventions.registry import KINDS, from_dict, to_dict
from replay.lineage import identity_text, open_trajectory, require_intact
from replay.result_files import keep_result
from replay.verify import Witness, recorded_steps

ARMS = ("own", "equal")
PROBES = 20  # readings of the probe set over a window


def sweep(
    runs: Path,
    raw: dict[str, Any],
    at: Sequence[int],
    *,
    workers: int = 1,
    seeds: int = 1,
    hand_out: Map | None = None,
    progress: ProgressCallback = silent,
) -> SweepResult:
    """Fork at each step: one point per step, arm and seed, and a summary over the seeds.

    `raw` is a fork file's keys. A seed draws other placebos and chaos, and moves the `seed` of
    interventions that have one. Errors: config, usage, missing, integrity, sql.
    """
    run = open_trajectory(runs, raw["parent"])
    as_written = spec.build(runs, run, raw)
    as_written.check(run)
    horizon, steps = as_written.last - as_written.first, sorted(set(at))
    require_steps(run, steps, "--at", horizon)
    if seeds < 1 or workers < 1:
        raise ForensicsError(
            "usage",
            f"wanted --seeds and --workers of at least 1, found {seeds} and {workers}",
            "e.g. --seeds 3",
        )
    at_step = {
        (step, seed): spec.build(runs, run, moved(raw, step, seed))
        for step in steps
        for seed in range(seeds)
    }
    for at_one_step in at_step.values():
        at_one_step.check(run)
    require_intact(run)
    rate = _rate_at(run, steps[0])
    trained = [s for step in steps for s in range(step, step + horizon)]
    arms = ARMS[:1] if _rates(run, trained) == {rate} else ARMS
    tasks: list[Task] = [
        {
            "runs": str(runs),
            "run": run.name,
            "step": step,
            "last": step + horizon,
            "arm": arm,
            "seed": seed,
            "interventions": [to_dict(i) for i in at_step[step, seed].interventions],
            "rate": rate if arm == "equal" else None,
            "placebos": as_written.placebos,
            "chaos": as_written.chaos,
            "null_seed": as_written.seed + seed * max(as_written.placebos, as_written.chaos, 1),
            "probe_every": as_written.probe_every or max(1, horizon // PROBES),
            "threads": 1 if workers > 1 else None,
        }
        for step in steps
        for arm in arms
        for seed in range(seeds)
    ]
    finished = Kept(
        run.folder / "sweeps",
        f"{identity_text(run)} {SweepResult.VERSION}",
    )
    keys = [_key(task) for task in tasks]
    open_tasks = [i for i, key in enumerate(keys) if key not in finished]
    computed = len(tasks) - len(open_tasks)
    if open_tasks:
        progress(computed, len(tasks), "")
        hand_out = hand_out or (spawned(workers) if workers > 1 else here)
        for index, measured in hand_out(point, [tasks[i] for i in open_tasks]):
            finished.put(keys[open_tasks[index]], measured)
            computed += 1
            progress(computed, len(tasks), f"state {measured['step']}, {measured['arm']}")
    points = [read_part(SweepPoint, finished.get(key)) for key in keys]
    result = SweepResult(
        run=run.name,
        does=as_written.sentence(),
        first=as_written.first,
        steps=tuple(steps),
        horizon=horizon,
        seeds=seeds,
        equal_learning_rate=rate,
        placebos=as_written.placebos,
        points=tuple(points),
        summary=tuple(summarise(points)),
    )
    keep_result(run.folder, "sweep", "\n".join([identity_text(run), *keys]), result)
    return result


def _key(task: Task) -> str:
    """Tell what a point depends on: not the number of threads or where the runs lie."""
    depends = json.dumps(
        {k: v for k, v in task.items() if k not in ("runs", "threads")}, sort_keys=True
    )
    return (
        f"{task['step']} {task['arm']} {task['seed']} {xxhash.xxh3_128_hexdigest(depends.encode())}"
    )


def moved(raw: dict[str, Any], step: int, seed: int = 0) -> dict[str, Any]:
    """Rewrite a fork file's keys as if they had been written from `step`.

    Its draws take the seed that lies `seed` above its own.

    Windows, batches acted on and places move; the data that comes in (a donor batch, a text,
    sequences) stays the same.
    """
    by = step - raw["from"]
    interventions = [_moved(keys, by, seed) for keys in raw.get("intervention", [])]
    barrier = [state + by for state in raw.get("barrier", [])]
    later = {"from": step, "to": raw["to"] + by, "intervention": interventions}
    return raw | later | ({"barrier": barrier} if barrier else {})


def _moved(keys: dict[str, Any], by: int, seed: int) -> dict[str, Any]:
    """Return an intervention's keys `by` steps later.

    Its window, and the fields declared as steps.
    """
    if keys.get("kind") not in KINDS:
        return keys
    later = dict(keys)
    if "window" in keys:
        later["window"] = ":".join(str(edge + by) for edge in window(str(keys["window"])))
    for field in fields_of(KINDS[keys["kind"]]):
        if field.about.settled:
            later.pop(field.name, None)  # it follows from where the fork is
        elif field.about.step and field.name in keys:
            later[field.name] = _later(keys[field.name], by)
        elif field.about.step and type(field.default) is int and by:
            later[field.name] = field.default + by
        if field.about.seed and seed:
            later[field.name] = keys.get(field.name, field.default) + seed
    return later


def _later(value: Any, by: int) -> Any:
    """Return a step, steps, or places (step, slot, …), `by` steps later."""
    if isinstance(value, int):
        return value + by
    return [
        place + by if isinstance(place, int) else [place[0] + by, *place[1:]] for place in value
    ]


def _rate_at(run: Run, step: int) -> float:
    """Return the learning rate that step took, as it was recorded."""
    (rate,) = _rates(run, [step])
    return rate


def _rates(run: Run, steps: Sequence[int]) -> set[float]:
    """Return the learning rates of these steps, as they were recorded."""
    recorded = {r["step"]: r["lr"] for r in run.table("steps", ["step", "lr"]).to_pylist()}
    return {
        run.policy(Counters(step, step, step)).learning_rate
        if recorded.get(step) is None
        else float(recorded[step])
        for step in steps
    }


def point(task: Task) -> dict[str, Any]:
    """One fork beside its control and nulls: the task of a worker. Errors: missing, integrity."""
    run, first, last = open_trajectory(Path(task["runs"]), task["run"]), task["step"], task["last"]
    _ = run.model  # settles the run's own number of threads
    if task["threads"]:
        import torch

        torch.set_num_threads(task["threads"])
    start = run.state_at(first)
    trained = run if task["rate"] is None else at_learning_rate(run, task["rate"])
    interventions = tuple(from_dict(document) for document in task["interventions"])
    arms = start_arms(
        start,
        trained,
        interventions,
        placebos_of(interventions, trained, first, last, task["placebos"], task["null_seed"]),
        range(task["null_seed"], task["null_seed"] + task["chaos"]),
    )
    probe, probed, readings = Probe(run), [], {}
    series: dict[str, dict[str, list[float]]] = {name: {"l2": [], "kl": []} for name in arms.pairs}
    witness = Witness(run, first, last if trained is run else first + 1)
    control, rate, started = arms.by_name[CONTROL].state, None, False
    for step, results in march(arms.by_name, first, last):
        rate = results["control"].policy.learning_rate if rate is None else rate
        if step <= witness.last and trained is run:
            witness.see(control, results["control"])
        elif step <= witness.last:
            started = _starts_as_recorded(witness, start, results["control"])
        reading = probe.sequences and ((step - first) % task["probe_every"] == 0 or step == last)
        params = {name: arm.state.params for name, arm in arms.by_name.items()}
        if reading:
            readings = probe.read_pairs(params, arms.pairs, arms.decoders)
            probed.append(step)
        for name, (arm, its_control) in arms.pairs.items():
            apart = distances.distance(params[arm], params[its_control], start.params)
            series[name]["l2"].append(apart.l2[""])
            if reading:
                series[name]["kl"].append(readings[name].logit_kl)
    if trained is run:
        report = witness.report()
        control_report = {
            "level": report.level,
            "bitwise": report.bitwise,
            "compared": report.compared,
            "what": "every step",
        }
    else:
        control_report = {
            "level": "exact" if started else "absent",
            "bitwise": started,
            "compared": 1,
            "what": "the start and its first step",
        }
    moved = distances.distance(control.params, start.params, start.params).l2[""]
    return {
        "step": first,
        "arm": task["arm"],
        "seed": task["seed"],
        "learning_rate": rate,
        "control": control_report,
        **_sizes(series, probed, readings, moved, (first, last), placebo.exist(interventions)),
    }


def _starts_as_recorded(witness: Witness, start: TrainState, result: Any) -> bool:
    """Whether the held arm begins where the parent was: another learning rate shows only after its
    first step.
    """
    row = witness.recorded.get(result.step)
    before = recorded_steps(witness.run, result.step - 1, result.step).get(result.step - 1, {})
    digest = before.get("state_digest")
    same = row is not None and result.loss == row["loss"] and result.grad_norm == row["grad_norm"]
    return same and (digest is None or digest == start.digest())


def _sizes(
    series: dict[str, dict[str, list[float]]],
    probed: list[int],
    readings: dict[str, probe_sequences.Reading],
    moved: float,
    window: tuple[int, int],
    exist: bool,
) -> dict[str, Any]:
    """How large the fork is in the end, over what the control moved, and over its placebos."""
    first, last = window
    fork = series["fork"]
    placebos = [s for name, s in series.items() if name.startswith("placebo-")]
    chaos = [s["l2"][-1] for name, s in series.items() if name.startswith("chaos-")]
    measure = (
        "kl" if fork["kl"] else "l2"
    )  # without a probe set, only the parameters can be compared
    steps = probed if measure == "kl" else list(range(first + 1, last + 1))
    effect = null_test.judge_effect(fork["l2"][-1], [p["l2"][-1] for p in placebos], exist)
    found_kl = (
        null_test.judge_effect(fork["kl"][-1], [p["kl"][-1] for p in placebos], exist)
        if fork["kl"]
        else None
    )
    time = null_test.time_to_reconverge(steps, fork[measure], [p[measure] for p in placebos], first)
    gap = readings["fork"].loss_gap if readings else None
    return {
        "l2": fork["l2"][-1],
        "moved": moved,
        "l2_over_moved": fork["l2"][-1] / moved if moved else None,
        "logit_kl": fork["kl"][-1] if fork["kl"] else None,
        "loss_gap": gap,
        "over_placebos": effect.effect,
        "p": effect.p,
        "placebos": effect.placebos,
        "finding": effect.finding,
        "verdict": effect.sentence(),
        "logit_kl_over_placebos": found_kl.effect if found_kl else None,
        "logit_kl_p": found_kl.p if found_kl else None,
        "placebo_l2": [p["l2"][-1] for p in placebos],
        "chaos_l2": chaos,
        "measure": "logit_kl" if measure == "kl" else "l2",
        "time_to_reconverge": time,
        "censored": f"> {last - first}" if placebos and time is None else None,
    }


def _nulls(seeds: Sequence[SweepPoint]) -> list[float]:
    """Return what a summary's median over seeds is held against: draws of the same kind.

    A fork without a draw of its own is one distance, whatever the seed: all placebos are its
    draws. A fork that draws is a median over seeds, and so is each of its placebos.
    """
    if len({point.l2 for point in seeds}) == 1:
        return [distance for point in seeds for distance in point.placebo_l2]
    return [float(np.median(draws)) for draws in zip(*(point.placebo_l2 for point in seeds))]


def summarise(points: Sequence[SweepPoint]) -> list[SweepRow]:
    """Summarise the seeds of each step and arm, judged against their placebos."""
    rows = []
    for step, arm in sorted(
        {(point.step, point.arm) for point in points},
        key=lambda place: (place[0], ARMS.index(place[1])),
    ):
        seeds = [point for point in points if (point.step, point.arm) == (step, arm)]
        l2 = float(np.median([point.l2 for point in seeds]))
        nulls = _nulls(seeds)
        exist = all(point.finding != "none exist" for point in seeds)
        effect = null_test.judge_effect(l2, nulls, exist)
        times = [point.time_to_reconverge for point in seeds]
        median = sorted(math.inf if t is None else t for t in times)[(len(times) - 1) // 2]
        rows.append(
            SweepRow(
                step=step,
                arm=arm,
                seeds=len(seeds),
                learning_rate=seeds[0].learning_rate,
                l2=l2,
                l2_range=(min(p.l2 for p in seeds), max(p.l2 for p in seeds)),
                l2_over_moved=l2 / seeds[0].moved if seeds[0].moved else None,
                placebo_range=(min(nulls), max(nulls)) if nulls else None,
                over_placebos=effect.effect,
                p=effect.p,
                placebos=effect.placebos,
                finding=effect.finding,
                verdict=effect.sentence(),
                time_to_reconverge=median if math.isfinite(median) else None,
                censored=sum(t is None for t in times) if nulls else None,
                bitwise=all(point.control.bitwise for point in seeds),
            )
        )
    return rows
