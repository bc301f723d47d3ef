"""`forensics tokens RUN --exact` and `--over-time`: what only a run whose data are known can tell,
and how it is told.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from forensics.cli.console import emit, say, table
from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback
from forensics.state_name import parse_state
from forensics.tokens.target import Open

SHOWN = 20  # tokens that stay behind
LISTED = 20  # checkpoints


def tell_of_data(
    target: str,
    runs: Path,
    open_run: Open,
    exact: bool,
    over_time: bool,
    progress: ProgressCallback,
) -> int:
    """Return the exact test, the trajectories, or both, of RUN or RUN@STEP; 1 where the test does
    not hold.

    Errors: usage (not a run), missing, integrity.
    """
    name, step = parse_state(target)
    if not (runs / name / "run.json").is_file():
        raise ForensicsError(
            "usage",
            f"{'--exact' if exact else '--over-time'}: wanted a run of {runs}, found {target!r}",
            "only of a run is the data order known; `forensics list`",
        )
    run = open_run(runs, name)
    at = run.last_step() if step is None else step
    document: dict[str, Any] = {"run": name, "step": at}
    if exact:
        document["exact"] = _exact(run, at, progress)
    if over_time:
        from forensics.tokens.trajectories import trajectories

        steps = [s for s in run.saved_steps() if s <= at]
        document["over_time"] = trajectories(run, steps, progress=progress)
    emit(document, lambda: _tell(document))
    return 1 if exact and document["exact"]["applies"] and not document["exact"]["holds"] else 0


def _exact(run: Any, step: int, progress: ProgressCallback) -> dict[str, Any]:
    from forensics.tokens.exact import exact_test

    test = exact_test(run, step, progress)
    return {
        "applies": test.applies,
        "holds": test.holds,
        "precision": test.precision,
        "recall": test.recall,
        "never": test.never.tolist(),
        "found": test.found.tolist(),
        "only_ledger": test.only_ledger.tolist(),
        "only_bits": test.only_bits.tolist(),
        "sentence": test.sentence,
    }


def _tell(document: dict[str, Any]) -> None:
    if "exact" in document:
        say(document["exact"]["sentence"])
    if "over_time" in document:
        _tell_over_time(document["over_time"])


def _tell_over_time(told: dict[str, Any]) -> None:
    name = told["indicator"]
    say(
        f"{told['run']}: {told['tokens']:,} reachable tokens over {len(told['steps'])} checkpoints,"
        f" judged by {name}"
    )
    say(
        f"reference: {told['reference']['why']}, every second of them"
        if told["reference"]
        else "reference: none"
    )
    points = told["over_time"]
    rows = [_row(point, name) for point in (points if len(points) <= LISTED else points[-LISTED:])]
    trained = {row["step"]: row["tokens"] for row in told["trained_at"] or []}
    columns = [
        "checkpoint",
        "never seen",
        "Spearman",
        "AUC ≤ 0",
        "≤ 1",
        "≤ 10",
        "≤ 100",
        "trained since",
    ]
    table(columns, [[*row, trained.get(row[0])] for row in rows])
    say(
        f"\nat {points[-1]['step']}: area under ROC, and average precision, for tokens with at most"
        " so many exposures"
    )
    table(
        ["indicator", "Spearman", "≤", "tokens", "AUC", "95%", "average precision", "95%"],
        [
            [
                indicator["indicator"],
                indicator["spearman"],
                s["exposure"],
                s["tokens"],
                s["auc"],
                _interval(s["auc_interval"]),
                s["average_precision"],
                _interval(s["average_precision_interval"]),
            ]
            for indicator in points[-1]["indicators"]
            for s in indicator["scores"]
        ],
    )
    say("\n" + told["sentence"])
    if (after := told["hindsight"]) is not None and after["tokens"]:
        say(
            f"forecast made at {after['made_at']}, by {after['until']}: {after['said_and_came']} of"
            f" {after['said_trained']} that were expected to be trained were, and"
            f" {after['said_not_and_came']} of {after['said_not']} that were not"
        )
    if told["behind"]:
        say(
            f"seen, and still like never seen ({min(SHOWN, len(told['behind']))} of"
            f" {len(told['behind'])}):"
        )
        table(
            ["id", "text", "exposure", name, "expected at", "early", "late"],
            [
                [
                    row["id"],
                    row["text"],
                    row["exposure"],
                    row["indicator"],
                    row["expected_at"],
                    row["expected_early"],
                    row["expected_late"],
                ]
                for row in told["behind"][:SHOWN]
            ],
        )


def _row(point: dict[str, Any], name: str) -> list[Any]:
    band = next(indicator for indicator in point["indicators"] if indicator["indicator"] == name)
    auc = {s["exposure"]: s["auc"] for s in band["scores"]}
    return [point["step"], point["never"], band["spearman"], *(auc.get(t) for t in (0, 1, 10, 100))]


def _interval(edges: list[float]) -> str:
    return f"{edges[0]:.3f}–{edges[1]:.3f}"
