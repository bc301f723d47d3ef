"""`make null-study`: over forks of ordinary data, is p uniform, and are causal words rare?

    python -m benchmarks.null_study --workers 2

Small runs of two recipes, trained on ordinary text, are forked by what ordinary teams do: a batch
dropped or skipped, two swapped, rows or a document taken out; early, in the middle and late, at the
fork's start and some steps after. Nothing is odd about any of that data, so every causal word is
a false alarm, and p must be uniform over its N + 1 values. A finished fork is kept: an interrupted
study goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.study_tasks import run_tasks
from forensics import config
from forensics.json_documents import plain
from forensics.train.loop import train
from forensics.train.run import Run
from replay.compare.null_test import judge_effect
from replay.forks.run import fork
from replay.forks.spec import Spec
from replay.interventions.base import Intervention
from replay.interventions.no_update import Skip
from replay.interventions.order import Drop, Swap
from replay.interventions.removal import RemoveDocuments, RemoveSequences
from replay.lineage import open_trajectory

PLACEBOS = 19
WINDOW = 8  # steps of a fork
STEPS = 160
KINDS = (
    "drop",
    "skip",
    "swap",
    "rows replaced",
    "rows masked",
    "rows repacked",
    "document replaced",
    "document masked",
)
PLACES = {"start": (8, 40), "middle": (60, 100), "end": (120, STEPS - WINDOW)}  # states
RECIPES: dict[str, dict[str, Any]] = {
    "one source, bytes": {
        "data": {"source": "stdlib/email", "tokenizer": "bytes"},
        "train": {"batch": 4, "learning_rate": 3e-3},
    },
    "two sources, trained tokenizer": {
        "data": {
            "sources": {"mail": "stdlib/email", "pages": "stdlib/http"},
            "phases": [{"mix": {"mail": 0.7, "pages": 0.3}}],
            "tokenizer": "train",
            "vocabulary": 400,
        },
        "train": {"batch": 8, "learning_rate": 1e-2},
    },
}
RUNS = 3  # of each recipe
VERSION = 1  # of what a task does: kept results of another version are not used


def recipe(name: str, seed: int) -> config.Recipe:
    """Return a small run of one of RECIPES."""
    parts = RECIPES[name]
    return config.from_dict(
        {
            "data": {"sequence_length": 32, "held_out": 16, **parts["data"]},
            "model": {"layers": 1, "width": 16, "heads": 2},
            "train": {
                "steps": STEPS,
                "warmup": 10,
                "seed": seed,
                "threads": 1,
                "device": "cpu",
                "held_out_every": 0,
                **parts["train"],
            },
            "checkpoint": {"every": 20},
            "record": {"level": "off"},
        }
    )


def made(run: Run, kind: str, at: int, last: int, draw: random.Random) -> Intervention:
    """Choose at random what the intervention acts on at step `at` of a fork that ends at `last`."""
    B, T = run.recipe.train.batch, run.recipe.data.sequence_length
    if kind == "drop":
        return Drop(at, at + draw.choice((1, 2)))
    if kind == "skip":
        return Skip(at, at + draw.choice((1, 2)))
    if kind == "swap":
        return Swap(at, at + draw.choice((1, 2, 3)))
    what, how = kind.split()
    how = {"replaced": "replace", "masked": "mask", "repacked": "repack"}[how]
    if what == "rows":
        slots = sorted(draw.sample(range(B), draw.choice((1, 2))))
        return RemoveSequences(at, last, tuple((at, slot, 0, T) for slot in slots), how)
    spans = run.batches.provenance(run.stream(at))[draw.randrange(B)]
    return RemoveDocuments(at, at + 1, (draw.choice(spans).document,), how)


def study(task: dict[str, Any]) -> dict[str, Any]:
    """Run one fork of a run that is there: the task of a worker."""
    runs, name = Path(task["runs"]), task["run"]
    run = open_trajectory(runs, name)
    draw = random.Random(f"{name} {task['kind']} {task['place']} {task['number']}")
    low, high = PLACES[task["place"]]
    first = draw.randrange(low, high)
    at = first + draw.choice((0, 0, 3))
    kind = made(run, task["kind"], at, first + WINDOW, draw)
    spec = Spec(
        name,
        first,
        first + WINDOW,
        (kind,),
        placebos=PLACEBOS,
        probe_every=WINDOW,
        record="off",
        name=f"{name}-{KINDS.index(task['kind'])}-{task['place']}-{task['number']}",
    )
    end = fork(spec, runs).final
    distances = end_distances(open_trajectory(runs, spec.fork), end.measure)
    largest = end.placebo_largest or 0.0
    distance = end.logit_kl if end.measure == "logit_kl" else end.l2
    return plain(
        {
            **{key: task[key] for key in ("recipe", "run", "kind", "place", "number")},
            "first": first,
            "offset": at - first,
            "placebos": end.placebos,
            "p": end.p,
            "p_corrected": end.p_corrected,
            "loss_p": end.loss_change.p if end.loss_change else None,
            "over_largest": (distance or 0.0) / largest if largest else None,
            "finding": end.finding,
            "distances": distances,
        }
    )


def end_distances(run: Run, measure: str) -> list[float]:
    """Return the distance at the end of the fork, then of each placebo from its own control."""
    rows = [
        row
        for row in run.table("divergence", ["step", "arm", "tensor", measure]).to_pylist()
        if row["tensor"] == "" and (row["arm"] == "fork" or row["arm"].startswith("placebo-"))
    ]
    last = max(row["step"] for row in rows)
    at_end = {row["arm"]: row[measure] for row in rows if row["step"] == last}
    return [at_end.pop("fork"), *at_end.values()]


def alarms(forks: Sequence[dict[str, Any]], N: int, draws: int = 20) -> float:
    """Return how often causal words would be said with N placebos: each arm of each fork in turn is
    taken for the fork, N others drawn at random for its placebos. All are draws of one kind.
    """
    draw = random.Random(N)
    said = total = 0
    for each in forks:
        distances = each["distances"]
        for i, distance in enumerate(distances):
            others = [*distances[:i], *distances[i + 1 :]]
            for _ in range(draws if len(others) > N else 1):
                effect = judge_effect(distance, draw.sample(others, min(N, len(others))))
                said += effect.causal
                total += 1
    return said / total


def row(name: str, forks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Count over some forks how often p is small, and causal words."""
    n = len(forks)

    def share(key: str, most: float) -> float:
        return sum(each[key] <= most for each in forks) / n

    return {
        "forks": name,
        "number": n,
        "p ≤ 0.05": share("p", 0.05),
        "p ≤ 0.25": share("p", 0.25),
        "p ≤ 0.5": share("p", 0.5),
        "corrected p ≤ 0.05": share("p_corrected", 0.05),
        "largest / largest placebo": max(each["over_largest"] or 0.0 for each in forks),
        "causal words": sum(each["finding"] == "beyond" for each in forks),
    }


def summary(forks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows by kind, place and recipe, and one of all."""
    rows = []
    for key in ("kind", "place", "recipe"):
        for value in dict.fromkeys(each[key] for each in forks):
            rows.append(row(value, [each for each in forks if each[key] == value]))
    return [*rows, row("all", forks)]


def holds(forks: Sequence[dict[str, Any]]) -> bool:
    """Tell whether p is small no oftener than it may be, and causal words are rare."""
    everything = row("all", forks)
    rare = everything["causal words"] <= 0.01 * len(forks)
    return rare and max(everything["p ≤ 0.05"], everything["corrected p ≤ 0.05"]) <= 0.08


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study, print its table and keep it; 1 where it does not hold."""
    from benchmarks.null_study import study as one_study  # by name: workers import it
    from forensics.cli.console import say, table

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.null_study", description="Is p uniform over ordinary forks?"
    )
    parser.add_argument("--forks", type=int, default=2, help="of each run, kind and place")
    parser.add_argument("--first-seed", type=int, default=0, help="of the runs")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "null-study")
    parser.add_argument("--json", type=Path, help="keep the figures, for docs/nulls.md")
    options = parser.parse_args(arguments)
    options.runs.mkdir(parents=True, exist_ok=True)
    names = {
        f"ordinary-{i}-{seed}": (recipe_name, seed)
        for i, recipe_name in enumerate(RECIPES)
        for seed in range(options.first_seed, options.first_seed + RUNS)
    }
    for name, (recipe_name, seed) in names.items():
        if not (options.runs / name / "run.json").is_file():
            train(recipe(recipe_name, seed), name=name, recipe_name="null-study", runs=options.runs)
    tasks: list[dict[str, Any]] = [
        {
            "runs": str(options.runs),
            "recipe": recipe_name,
            "run": name,
            "kind": kind,
            "place": place,
            "number": number,
        }
        for number in range(options.forks)
        for kind in KINDS
        for place in PLACES
        for name, (recipe_name, _) in names.items()
    ]
    by_name = {json.dumps({k: v for k, v in task.items() if k != "runs"}): task for task in tasks}
    results = run_tasks(
        one_study,
        by_name,
        options.runs,
        f"null study {VERSION}",
        workers=options.workers,
        of="forks",
    )
    forks = list(results.values())
    rows = summary(forks)
    table(list(rows[0]), [list(each.values()) for each in rows])
    rates = {N: alarms(forks, N) for N in (3, 5, 9, PLACEBOS)}
    for N, rate in rates.items():
        say(f"With {N} placebos, causal words in {rate:.2%} of ordinary forks.")
    say("It holds." if holds(forks) else "IT DOES NOT HOLD.")
    if options.json:
        document = {"placebos": PLACEBOS, "window": WINDOW, "rows": rows, "alarms": rates}
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if holds(forks) else 1


if __name__ == "__main__":
    raise SystemExit(main())
