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
from collections.abc import Sequence
from pathlib import Path

import xxhash

from forensics.progress import ProgressCallback, silent
from forensics.result_records import read_part
from forensics.store.resumable import Kept
from forensics.tokens.exposure import ledger
from replay.executors.local import Map, Task, here, spawned
from replay.experiments.boost_arm import arm_of
from replay.experiments.boost_plan import plan_arms, window_of
from replay.experiments.boost_result import (
    BoostArm,
    BoostContexts,
    BoostResult,
    summarise,
    verdict_of,
)
from replay.lineage import identity_text, open_trajectory, require_intact
from replay.result_files import keep_result

TIMES = (1, 3, 10, 30, 100)


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
) -> BoostResult:
    """Run the window again with 1, 3, … sequences that hold the token in others' place.

    The window first:last ends at the last checkpoint where it is left out, and begins at the latest
    one with room for the largest n. Errors: usage, missing, integrity.
    """
    run = open_trajectory(runs, name)
    first, last = window_of(run, first, last, max(times, default=0), seeds, workers)
    plan = plan_arms(run, token, first, last, sorted(set(times)), seeds)
    require_intact(run)
    tasks: list[Task] = [
        {
            "runs": str(runs),
            "run": name,
            "token": token,
            "first": first,
            "last": last,
            "contexts": list(plan.contexts),
            "reference": list(plan.reference),
            "threads": 1 if workers > 1 else None,
            **arm,
        }
        for arm in plan.arms
    ]
    finished = Kept(run.folder / "boosts", f"{identity_text(run)} {BoostResult.VERSION}")
    keys = [_key(task) for task in tasks]
    waiting = [i for i, key in enumerate(keys) if key not in finished]
    computed = len(tasks) - len(waiting)
    hand_out = hand_out or (spawned(workers) if workers > 1 else here)
    for index, measured in hand_out(arm_of, [tasks[i] for i in waiting]):
        finished.put(keys[waiting[index]], measured)
        computed += 1
        progress(computed, len(tasks), f"{measured['arm']} {measured['times']}")
    arms = tuple(read_part(BoostArm, finished.get(key)) for key in keys)
    met, summary = ledger(run, first), summarise(arms)
    result = BoostResult(
        run=name,
        token=token,
        text=run.corpus.decode([token]),
        first=first,
        last=last,
        exposure_in=int(met.exposure_in[token]),
        exposure_out=int(met.exposure_out[token]),
        contexts=BoostContexts(len(plan.contexts), arms[0].positions, plan.why),
        control=arms[0].control,
        seeds=seeds,
        arms=arms,
        summary=summary,
        verdict=verdict_of(arms[0], summary),
    )
    keep_result(run.folder, "boost", "\n".join([identity_text(run), *keys]), result)
    return result


def _key(task: Task) -> str:
    """Tell what an arm depends on: not the number of threads or where the runs lie."""
    depends = json.dumps(
        {k: v for k, v in task.items() if k not in ("runs", "threads")}, sort_keys=True
    )
    return (
        f"{task['token']} {task['arm']} {task['times']} {task['seed']}"
        f" {xxhash.xxh3_128_hexdigest(depends.encode())}"
    )
