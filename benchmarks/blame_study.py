"""`make blame-study`: does blame find planted causes, and keep quiet where there is none?

    python -m benchmarks.blame_study --seeds 10 --clean 15

Small runs with a planted cause, and of each kind without one, all blamed by default settings. A run
with a planted cause is blamed twice: where the detector sees the spike, and in its aftermath, at
the first clean batch, where only the state is left to explain. A finished run is kept, so an
interrupted study goes on where it was.

Clean text is a small random language that a small model learns well: its gradients become small, so
second moments with a long memory go out of date and a few odd batches hurt. The cause:

    damaged document      one document without structure: half of each of 4 consecutive batches
    rare tokens           bytes that the text never held, in a quarter of 2 batches, under β₂ =
                          0.999 and no clipping
    duplicated document   one document, one sequence long, 40 times in 5 batches
    learning-rate jump    a fork whose rate is 30 times as high for 3 steps; no data cause
    clean run             nothing; its largest fluctuation is blamed with --force
"""

from __future__ import annotations

import argparse
import json
import random
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forensics import config
from forensics.cli.progress_bar import bar
from forensics.store.resumable import Kept
from forensics.train.loop import train
from replay.executors import local

PLANTED = ("damaged document", "rare tokens", "duplicated document")
UNPLANTED = ("learning-rate jump", "clean run")
AT = 160  # the step at which a cause is planted
LENGTH = {
    "damaged document": 4,
    "rare tokens": 2,
    "duplicated document": 5,
    "learning-rate jump": 3,
}  # steps
SHARE = {
    "damaged document": 0.5,
    "rare tokens": 0.25,
    "duplicated document": 0.5,
}  # of each of those batches
STEPS = AT + 14
SEQUENCE, BATCH = 64, 16  # tokens, sequences
JUMP = 30.0  # × the learning rate
FIRST_SEED = 2000  # seeds below are for development and tests
VERSION = 2  # of what a task does: kept results of another version are not used


def recipe(cause: str, seed: int, folder: Path) -> config.Recipe:
    """Return a small run with a cause planted at step AT; write its texts to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    clean = folder / f"language-{seed}.jsonl"
    clean.write_text(_language(seed), encoding="utf-8")
    sources: dict[str, str] = {"clean": str(clean)}
    phases: list[dict[str, Any]] = [{"mix": {"clean": 1.0}}]
    if cause in PLANTED:
        path, share = folder / f"{cause.replace(' ', '-')}-{seed}.txt", SHARE[cause]
        path.write_text(_planted(cause, seed), encoding="utf-8")
        sources["planted"] = str(path)
        phases = [
            {"until": AT, "mix": {"clean": 1.0}},
            {"until": AT + LENGTH[cause], "mix": {"clean": 1.0 - share, "planted": share}},
            {"mix": {"clean": 1.0}},
        ]
    stale = cause == "rare tokens"
    return config.from_dict(
        {
            "data": {
                "sources": sources,
                "phases": phases,
                "tokenizer": "bytes",
                "sequence_length": SEQUENCE,
                "held_out": 32,
            },
            "model": {"layers": 2, "width": 48, "heads": 2},
            "train": {
                "steps": STEPS,
                "batch": BATCH,
                "seed": seed,
                "learning_rate": 1e-2,
                "schedule": "constant",
                "warmup": 10,
                "betas": [0.9, 0.999 if stale else 0.95],
                "clip": 0.0 if stale else 1.0,
                "threads": 1,
                "device": "cpu",
                "held_out_every": 0,
            },
            "checkpoint": {"every": 40},
            "record": {"every": {"heads": 1000, "layers": 1000}},
        }
    )


def _language(seed: int) -> str:
    """Make documents of a language of 24 words, each followed by one of three."""
    draw = random.Random(f"language {seed}")
    words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(3, 6))) for _ in range(24)]
    follow = {word: draw.sample(words, 3) for word in words}
    lines = []
    for _ in range(300):
        sentence = [draw.choice(words)]
        while len(sentence) < 60:
            sentence.append(draw.choice(follow[sentence[-1]]))
        lines.append(json.dumps({"text": " ".join(sentence) + ".\n"}))
    return "\n".join(lines) + "\n"


def _planted(cause: str, seed: int) -> str:
    """Make the text of the one planted document."""
    draw = random.Random(f"{cause} {seed}")
    if cause == "damaged document":
        return "".join(draw.choices(string.ascii_lowercase * 4 + " .", k=2 * 4 * BATCH * SEQUENCE))
    if cause == "rare tokens":
        return "".join(draw.choices("жщэюяфъ", k=BATCH * SEQUENCE))
    words = [
        "".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 7))) for _ in range(SEQUENCE)
    ]
    return " ".join(words)[
        :SEQUENCE
    ]  # with its end-of-text token one sequence long, so that it comes again and again


def make(cause: str, seed: int, runs: Path) -> tuple[str, list[tuple[str, int | None]]]:
    """Train the run (and fork) of a cause.

    Returns its name, and the places at which it is to be blamed: in words, and a step or None.
    """
    from replay.forks import spec as specs
    from replay.forks.run import fork
    from replay.lineage import open_trajectory

    name = f"{cause.replace(' ', '-')}-{seed}"
    train(
        recipe(cause, seed, runs / "texts"),
        name=name,
        recipe_name="study",
        runs=runs,
        resume=(runs / name).exists(),
    )
    if cause in PLANTED:
        return name, [("peak", None), ("aftermath", AT + LENGTH[cause])]
    run = open_trajectory(runs, name)
    if cause == "learning-rate jump":
        document = {
            "parent": name,
            "from": AT,
            "to": STEPS,
            "placebos": 0,
            "name": f"{name}-fork",
            "record": "light",
            "intervention": [
                {"kind": "lr-scale", "factor": JUMP, "window": f"{AT}:{AT + LENGTH[cause]}"}
            ],
        }
        fork(specs.build(runs, run, document), runs)
        return f"{name}-fork", [("peak", None)]
    losses = run.table("steps", ["step", "loss"]).sort_by("step").to_pydict()["loss"]
    return name, [("largest fluctuation", max(range(AT, STEPS), key=lambda s: losses[s]))]


def study(task: dict[str, Any]) -> dict[str, Any]:
    """Train and blame one run: a row for each place at which it was blamed."""
    from forensics.json_documents import plain
    from replay.blame.investigate import BlameOptions, blame

    runs = Path(task["runs"])
    name, places = make(task["cause"], task["seed"], runs)
    rows = []
    for where, step in places:
        result = blame(runs, name, step, BlameOptions(force=step is not None))
        candidate = result.candidates[0] if result.candidates else None
        document = result.documents[0] if result.documents else None
        rows.append(
            {
                "cause": task["cause"],
                "seed": task["seed"],
                "where": where,
                "step": result.spike.step,
                "verdict": result.verdict,
                "sentence": result.sentence,
                "p": result.p,
                "excess": result.excess.total,
                "state": result.excess.state,
                "top": bool(document and document.source == "planted"),
                "first": bool(candidate and candidate.source == "planted"),
                "set": [candidate.source for candidate in result.candidates],
                "seconds": result.seconds,
            }
        )
    return plain({"rows": rows})


# by cause and place: the verdicts that are right; "cannot tell" is never wrong, only of no use
ALLOWED = {
    ("damaged document", "peak"): ("data", "data and state"),
    ("damaged document", "aftermath"): ("data", "data and state"),
    ("duplicated document", "peak"): ("data", "data and state"),
    ("duplicated document", "aftermath"): ("data", "data and state"),
    ("rare tokens", "peak"): ("data", "data and state"),
    ("rare tokens", "aftermath"): ("data and state",),
    ("learning-rate jump", "peak"): ("state or schedule",),
    ("clean run", "largest fluctuation"): (),
}


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Count by cause and place how often it is on top, and how often the verdict is right."""
    table = []
    for (cause, where), right in ALLOWED.items():
        matching = [row for row in rows if (row["cause"], row["where"]) == (cause, where)]
        if matching:
            verdicts = [row["verdict"] for row in matching]
            table.append(
                {
                    "cause": cause,
                    "blamed at": where,
                    "runs": len(matching),
                    "on top": sum(row["top"] for row in matching) if cause in PLANTED else None,
                    "right": sum(verdict in right for verdict in verdicts),
                    "cannot tell": verdicts.count("cannot tell"),
                    "wrong": sum(
                        verdict not in right and verdict != "cannot tell" for verdict in verdicts
                    ),
                    "verdicts": ", ".join(
                        f"{verdict} {verdicts.count(verdict)}"
                        for verdict in dict.fromkeys(verdicts)
                    ),
                }
            )
    return table


def holds(table: Sequence[dict[str, Any]]) -> bool:
    """Whether the planted cause is on top in 9 of 10, and nothing is blamed where there is none."""
    planted = [row for row in table if row["cause"] in PLANTED]
    return all(row["on top"] >= 0.9 * row["runs"] for row in planted) and not any(
        row["wrong"] for row in table if row not in planted
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study and print its table; 1 where it does not hold."""
    from benchmarks.blame_study import study as one_study  # by name: workers import it
    from forensics.cli.console import say, table
    # by the module's own name, under which a worker finds it again

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.blame_study", description="Does blame find planted causes?"
    )
    parser.add_argument("--seeds", type=int, default=10, help="runs of each planted cause")
    parser.add_argument("--clean", type=int, default=15, help="runs of each kind without one")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "blame-study")
    parser.add_argument("--only", help="one cause")
    options = parser.parse_args(arguments)
    planted, unplanted = (
        [(cause, options.seeds) for cause in PLANTED],
        [(cause, options.clean) for cause in UNPLANTED],
    )
    causes = [
        (cause, count) for cause, count in planted + unplanted if options.only in (None, cause)
    ]
    seeds = range(options.first_seed, options.first_seed + max(options.seeds, options.clean))
    tasks: list[dict[str, Any]] = [
        {"cause": cause, "seed": seed, "runs": str(options.runs)}
        for index, seed in enumerate(seeds)
        for cause, count in causes
        if index < count
    ]
    options.runs.mkdir(parents=True, exist_ok=True)
    results = Kept(options.runs / "study", f"study {VERSION}")
    left: list[dict[str, Any]] = [
        task for task in tasks if f"{task['cause']} {task['seed']}" not in results
    ]
    with bar("blame study", "runs") as progress:
        for finished, (index, result) in enumerate(
            local.spawned(options.workers)(one_study, left), 1
        ):
            results.put(f"{left[index]['cause']} {left[index]['seed']}", result)
            progress(len(tasks) - len(left) + finished, len(tasks), left[index]["cause"])
    rows = [row for task in tasks for row in results.get(f"{task['cause']} {task['seed']}")["rows"]]
    rows_by_cause = summary(rows)
    columns = list(rows_by_cause[0])
    table(columns, [[row[cause] for cause in columns] for row in rows_by_cause])
    say(
        f"{sum(row['seconds'] for row in rows):.0f} s of blame, {options.workers} workers;"
        f" {'holds' if holds(rows_by_cause) else 'DOES NOT HOLD'}"
    )
    return 0 if holds(rows_by_cause) else 1


if __name__ == "__main__":
    raise SystemExit(main())
