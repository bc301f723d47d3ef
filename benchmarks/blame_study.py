"""`make blame-study`: does blame find planted causes, and keep quiet where there is none?

    python -m benchmarks.blame_study --seeds 10 --few 5 --clean 15

Small runs with a planted cause, and of each kind without one, all blamed by default settings. A
finished run is kept, so an interrupted study goes on where it was.

Clean text is a small random language that a small model learns well: its gradients become small, so
second moments with a long memory go out of date and a few odd batches hurt. One cause:

    damaged document      one document without structure: half of each of 4 consecutive batches
    rare tokens           bytes that the text never held, in a quarter of 2 batches, under β₂ =
                          0.999 and no clipping
    duplicated document   one document, one sequence long, 40 times in 5 batches
    duplicate outside     the damaged document again 50 steps before, and in a quarter of what the
                          run would draw next, so that it could stand in for itself
    learning-rate jump    a fork whose rate is 30 times as high for 3 steps; no data cause
    decay changed         a fork with weight decay 40 for 3 steps
    betas changed         a fork with β = (0.9, 0) for 3 steps

Two, and one that lies elsewhere:

    either is enough      damaged batches, and weight decay 40: either alone makes the spike
    both are needed       rare tokens in a run that clips, and a fork without clipping: rare tokens
                          alone do nothing, no clipping alone does nothing
    before the window     the learning-rate jump, blamed 8 steps later with a window of 4

And none:

    clean run             nothing; the largest fluctuation in each of 4 stretches, with --force

A run with one data cause is blamed twice: where the detector sees the spike, and in its aftermath,
at the first clean batch, where only the state is left to explain. Of clean runs, `--null` measures
how often the rules for windows without a spike are met by a window without a spike.
"""

from __future__ import annotations

import argparse
import json
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.study_tasks import run_tasks
from forensics import config
from forensics.train.loop import train

if TYPE_CHECKING:
    from replay.blame.result import NullWindows

AT = 160  # the step at which a cause is planted
STEPS = AT + 14
SEQUENCE, BATCH = 64, 16  # tokens, sequences
FIRST_SEED = 2000  # seeds below are for development and tests
CLEAN_WINDOWS = 60  # of which one may be blamed
VERSION = 4  # of what a task does: kept results of another version are not used
ONE_CAUSE = ("data", "data and state")
# batches before the last that are ranked → windows of a clean run that are searched so
NULL_DEPTHS = {0: 120, 4: 14}
BOOTSTRAPS = 2000  # resamplings of the runs
CLEAN_STRETCHES = ((100, 118), (118, 136), (136, 154), (154, STEPS))  # steps, a clean window each


class Document(NamedTuple):
    """A planted document: what it holds, in which share of which batches it comes."""

    text: str
    share: float
    length: int  # batches from AT on


@dataclass(frozen=True)
class Place:
    """Where a run is blamed, and which verdicts are right; "cannot tell" is of no use there."""

    where: str
    right: tuple[str, ...]
    after: int | None = None  # steps after AT; None: the largest spike
    window: int | None = None


@dataclass(frozen=True)
class Kind:
    """A planted cause, or none."""

    places: tuple[Place, ...]
    document: Document | None = None
    again: bool = False  # the document comes before, and would come after
    clip: float = 1.0
    beta2: float = 0.95
    fork: tuple[dict[str, Any], ...] = ()  # interventions, their window AT : AT + `for`
    repeat: str = "seeds"  # which number of runs: seeds | few | clean

    @property
    def data(self) -> bool:
        """Whether one data cause is planted, whose document must lead the list."""
        return self.document is not None and not self.fork


DAMAGED = Document("damaged", 0.5, 4)
RARE = Document("rare", 0.25, 2)
JUMP = {"kind": "lr-scale", "factor": 30.0, "for": 3}
DECAY = {"kind": "weight-decay", "value": 40.0, "for": 3}
BETAS = {"kind": "betas", "betas": [0.9, 0.0], "for": 3}
UNCLIPPED = {"kind": "clip", "value": 0.0, "for": 3}
PEAK = Place("peak", ONE_CAUSE)
KINDS: dict[str, Kind] = {
    "damaged document": Kind((PEAK, Place("aftermath", ONE_CAUSE, 4)), DAMAGED),
    "duplicated document": Kind(
        (PEAK, Place("aftermath", ONE_CAUSE, 5)), Document("duplicated", 0.5, 5)
    ),
    "rare tokens": Kind(
        (PEAK, Place("aftermath", ("data and state",), 2)), RARE, clip=0.0, beta2=0.999
    ),
    "duplicate outside": Kind((PEAK,), DAMAGED, again=True, repeat="few"),
    "learning-rate jump": Kind((Place("peak", ("policy",)),), fork=(JUMP,), repeat="clean"),
    "decay changed": Kind((Place("peak", ("policy",)),), fork=(DECAY,), repeat="few"),
    "betas changed": Kind((Place("peak", ("policy",)),), fork=(BETAS,), repeat="few"),
    "either is enough": Kind(
        (Place("aftermath", ("data or policy",), 6),),
        Document("damaged", 1.0, 6),
        fork=(DECAY,),
        repeat="few",
    ),
    "both are needed": Kind(
        (Place("aftermath", ("data and policy",), 2),),
        RARE,
        clip=0.2,
        beta2=0.999,
        fork=(UNCLIPPED,),
        repeat="few",
    ),
    "before the window": Kind(
        (Place("later", ("before the window",), 8, window=4),), fork=(JUMP,), repeat="few"
    ),
    "clean run": Kind((), repeat="clean"),
}
# where one cause was planted, it is to be found in 9 of 10; elsewhere "cannot tell" is enough
SINGLE_CAUSE = tuple(
    cause for cause in KINDS if cause not in ("either is enough", "both are needed", "clean run")
)


def recipe(cause: str, seed: int, folder: Path) -> config.Recipe:
    """Return a small run with a cause planted at step AT; write its texts to `folder`."""
    kind = KINDS[cause]
    folder.mkdir(parents=True, exist_ok=True)
    clean = folder / f"language-{seed}.jsonl"
    clean.write_text(_language(seed), encoding="utf-8")
    sources: dict[str, str] = {"clean": str(clean)}
    phases: list[dict[str, Any]] = [{"mix": {"clean": 1.0}}]
    if kind.document is not None:
        path = folder / f"{cause.replace(' ', '-')}-{seed}.txt"
        path.write_text(_planted(kind.document, cause, seed), encoding="utf-8")
        sources["planted"] = str(path)
        phases = _phases(kind, kind.document)
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
                "betas": [0.9, kind.beta2],
                "clip": kind.clip,
                "threads": 1,
                "device": "cpu",
                "held_out_every": 0,
            },
            "checkpoint": {"every": 40},
            "record": {"every": {"heads": 1000, "layers": 1000}},
        }
    )


def _phases(kind: Kind, document: Document) -> list[dict[str, Any]]:
    """List the phases that bring the document at AT; and, with `again`, before and after."""
    clean: dict[str, float] = {"clean": 1.0}
    mixed: dict[str, float] = {"clean": 1.0 - document.share, "planted": document.share}
    mixed = {source: share for source, share in mixed.items() if share}
    planted: list[dict[str, Any]] = [
        {"until": AT, "mix": clean},
        {"until": AT + document.length, "mix": mixed},
    ]
    if not kind.again:
        return [*planted, {"mix": clean}]
    before: list[dict[str, Any]] = [
        {"until": AT - 50, "mix": clean},
        {"until": AT - 49, "mix": mixed},
    ]
    after: list[dict[str, Any]] = [
        {"until": STEPS, "mix": clean},
        {"mix": {"clean": 0.75, "planted": 0.25}},
    ]
    return [*before, *planted, *after]


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


def _planted(document: Document, cause: str, seed: int) -> str:
    """Make the text of the one planted document."""
    draw = random.Random(f"{cause} {seed}")
    if document.text == "damaged":
        return "".join(draw.choices(string.ascii_lowercase * 4 + " .", k=2 * 4 * BATCH * SEQUENCE))
    if document.text == "rare":
        return "".join(draw.choices("жщэюяфъ", k=BATCH * SEQUENCE))
    words = [
        "".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 7))) for _ in range(SEQUENCE)
    ]
    return " ".join(words)[
        :SEQUENCE
    ]  # with its end-of-text token one sequence long, so that it comes again and again


class Made(NamedTuple):
    """A trained run or fork, and the places at which it is to be blamed: in words, and a step."""

    name: str
    places: list[tuple[str, int | None]]


def make(cause: str, seed: int, runs: Path) -> Made:
    """Train the run (and fork) of a cause."""
    from replay.lineage import open_trajectory

    kind, name = KINDS[cause], f"{cause.replace(' ', '-')}-{seed}"
    train(
        recipe(cause, seed, runs / "texts"),
        name=name,
        recipe_name="study",
        runs=runs,
        resume=(runs / name).exists(),
    )
    if kind.fork:
        name = _forked(name, kind, runs)
    if kind.places:
        steps = [None if place.after is None else AT + place.after for place in kind.places]
        return Made(name, list(zip([place.where for place in kind.places], steps)))
    table = open_trajectory(runs, name).table("steps", ["step", "loss"]).sort_by("step")
    losses = table.to_pydict()["loss"]
    largest = [max(range(first, stop), key=lambda s: losses[s]) for first, stop in CLEAN_STRETCHES]
    return Made(name, [("largest fluctuation", step) for step in largest])


def _forked(parent: str, kind: Kind, runs: Path) -> str:
    """Fork the run from AT, with the kind's interventions."""
    from replay.forks import spec as specs
    from replay.forks.run import fork
    from replay.lineage import open_trajectory

    name = f"{parent}-fork"
    if (runs / name).exists():
        return name
    interventions = [
        {key: value for key, value in each.items() if key != "for"}
        | {"window": f"{AT}:{AT + each['for']}"}
        for each in kind.fork
    ]
    document = {
        "parent": parent,
        "from": AT,
        "to": STEPS,
        "placebos": 0,
        "name": name,
        "record": "light",
        "intervention": interventions,
    }
    fork(specs.build(runs, open_trajectory(runs, parent), document), runs)
    return name


def study(task: dict[str, Any]) -> dict[str, Any]:
    """Train and blame one run: a row for each place at which it was blamed."""
    from forensics.json_documents import plain
    from replay.blame.investigate import BlameOptions, blame

    runs, kind = Path(task["runs"]), KINDS[task["cause"]]
    made = make(task["cause"], task["seed"], runs)
    windows = [place.window for place in kind.places] or [None] * len(made.places)
    rows = []
    for (where, step), window in zip(made.places, windows):
        result = blame(runs, made.name, step, BlameOptions(force=step is not None, window=window))
        candidate = result.candidates[0] if result.candidates else None
        document = result.documents[0] if result.documents else None
        null = result.proof.null if result.proof else None
        rows.append(
            {
                "cause": task["cause"],
                "seed": task["seed"],
                "where": where,
                "step": result.spike.step,
                "verdict": result.verdict,
                "reason": result.reason,
                "sentence": result.sentence,
                "p": result.p,
                "rule": null.rule if null else None,
                "windows": len(null.windows) if null else 0,
                "excess": result.excess.total,
                "state": result.excess.state,
                "top": bool(document and document.source == "planted"),
                "first": bool(candidate and candidate.source == "planted"),
                "set": [candidate.source for candidate in result.candidates],
                "look_from": result.look_from,
                "seconds": result.seconds,
            }
        )
    if task["cause"] == "clean run":
        rows += null_rows(made.name, task, runs)
    return plain({"rows": rows})


def null_rows(name: str, task: dict[str, Any], runs: Path) -> list[dict[str, Any]]:
    """Measure what the search takes away in windows of a clean run, and how far the rule goes.

    Every window is held against those before it, as a spike there would be: a row for batches
    alone, and one for windows of 4 batches before the last.
    """
    from replay.blame.excess import WindowControl
    from replay.blame.null_windows import WindowsWithoutSpike
    from replay.blame.rules import BEFORE, WINDOW
    from replay.blame.stretch import Stretch, clean_probes
    from replay.lineage import open_trajectory

    def silent(steps: int, note: str) -> None: ...

    run, rows = open_trajectory(runs, name), []
    probes = clean_probes(run, AT - WINDOW - BEFORE)
    stretch = Stretch(run, AT - WINDOW - BEFORE, AT, probes, silent, witness=False)
    for depth, number in NULL_DEPTHS.items():
        control = WindowControl(stretch, AT - WINDOW, AT, begin=AT - depth)
        windows = WindowsWithoutSpike(run, control, AT - 1, depth, [], silent).search(number)
        rows.append(
            {
                "cause": task["cause"],
                "seed": task["seed"],
                "where": f"null, {depth} batches before",
                "verdict": "",
                "removed": [window.excess_removed for window in windows],
                "depth": depth,
                "seconds": 0.0,
            }
        )
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Count by cause and place how often it is on top, and how often the verdict is right."""
    places = [
        (cause, place.where, place.right) for cause, kind in KINDS.items() for place in kind.places
    ]
    table = []
    for cause, where, right in [*places, ("clean run", "largest fluctuation", ())]:
        matching = [row for row in rows if (row["cause"], row["where"]) == (cause, where)]
        if matching:
            verdicts = [row["verdict"] for row in matching]
            on_top = sum(row["top"] for row in matching)
            table.append(
                {
                    "cause": cause,
                    "blamed at": where,
                    "runs": len(matching),
                    "on top": on_top if KINDS[cause].data else None,
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


def false_alarms(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Count how often a window without a spike meets the rule against those before it.

    Neighbours share windows that they are held against, so the interval is a bootstrap over runs.
    """
    table = []
    for depth in NULL_DEPTHS:
        judged = [
            _judged_in_turn(row["removed"], depth) for row in rows if row.get("depth") == depth
        ]
        judged = [nulls for nulls in judged if nulls]
        if not judged:
            continue
        every = [null for nulls in judged for null in nulls]
        table.append(
            {
                "clean window": f"{depth} batches before",
                "runs": len(judged),
                "windows": len(every),
                "beyond": sum(null.finding == "beyond" for null in every),
                "by factor": sum(null.rule == "factor" for null in every),
                "by rank": sum(null.rule == "rank" for null in every),
                "p ≤ .05": _share_of_low_p(judged),
            }
        )
    return table


def _judged_in_turn(removed: Sequence[float], depth: int) -> list[NullWindows]:
    """Hold every window of a run against those before it, as far as there are enough of these."""
    from replay.blame.null_windows import decided, grouped
    from replay.blame.result import NullWindow
    from replay.blame.rules import FEWEST_FOR_TIMES, NULL_WINDOWS

    windows = [NullWindow(-i, nats) for i, nats in enumerate(removed)]
    fewest = FEWEST_FOR_TIMES if depth else NULL_WINDOWS
    nulls = []
    for i, nats in enumerate(removed[: max(0, len(removed) - fewest)]):
        before = windows[i + 1 : i + 1 + NULL_WINDOWS]
        nulls.append(decided(nats, grouped(before, depth), depth, early=True))
    return nulls


def _share_of_low_p(judged: Sequence[Sequence[NullWindows]]) -> str:
    """Say the share of p ≤ 0.05 with its 95 % interval over runs; "–" where p cannot reach it."""
    from replay.blame.rules import ENOUGH_P

    low = np.array([sum((null.p or 1.0) <= ENOUGH_P for null in nulls) for nulls in judged])
    count = np.array([len(nulls) for nulls in judged])
    if not any(null.least_p <= ENOUGH_P for nulls in judged for null in nulls):
        return "–"
    drawn = np.random.default_rng(0).integers(len(judged), size=(BOOTSTRAPS, len(judged)))
    shares = low[drawn].sum(1) / count[drawn].sum(1)
    least, most = np.quantile(shares, [0.025, 0.975])
    return f"{low.sum() / count.sum():.3f} ({least:.3f} to {most:.3f})"


def holds(table: Sequence[dict[str, Any]]) -> bool:
    """Whether single causes are found in 9 of 10 and lead the list, nothing wrong is said of the
    others, and something at most once of 60 clean windows.
    """
    for row in table:
        many_clean = row["cause"] == "clean run" and row["runs"] >= CLEAN_WINDOWS
        if row["wrong"] > int(many_clean):
            return False
        if row["cause"] in SINGLE_CAUSE and row["right"] < 0.9 * row["runs"]:
            return False
        if row["on top"] is not None and row["on top"] < 0.9 * row["runs"]:
            return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study and print its table; 1 where it does not hold."""
    from benchmarks.blame_study import study as one_study  # by name: workers import it
    from forensics.cli.console import say, table
    # by the module's own name, under which a worker finds it again

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.blame_study", description="Does blame find planted causes?"
    )
    parser.add_argument("--seeds", type=int, default=10, help="runs of each planted cause")
    parser.add_argument("--few", type=int, default=5, help="runs of each of the rarer kinds")
    parser.add_argument("--clean", type=int, default=15, help="runs without a data cause")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "blame-study")
    parser.add_argument("--only", help="one cause")
    options = parser.parse_args(arguments)
    causes = [
        (cause, int(vars(options)[kind.repeat]))
        for cause, kind in KINDS.items()
        if options.only in (None, cause)
    ]
    most = max(count for _, count in causes)
    tasks: list[dict[str, Any]] = [
        {"cause": cause, "seed": options.first_seed + index, "runs": str(options.runs)}
        for index in range(most)
        for cause, count in causes
        if index < count
    ]
    by_name = {f"{task['cause']} {task['seed']}": task for task in tasks}
    results = run_tasks(
        one_study, by_name, options.runs, f"study {VERSION}", workers=options.workers
    )
    rows = [row for result in results.values() for row in result["rows"]]
    rows_by_cause = summary(rows)
    for counted in (rows_by_cause, false_alarms(rows)):
        if counted:
            columns = list(counted[0])
            table(columns, [[row[column] for column in columns] for row in counted])
    say(
        f"{sum(row['seconds'] for row in rows):.0f} s of blame, {options.workers} workers;"
        f" {'holds' if holds(rows_by_cause) else 'DOES NOT HOLD'}"
    )
    return 0 if holds(rows_by_cause) else 1


if __name__ == "__main__":
    raise SystemExit(main())
