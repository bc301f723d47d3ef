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
    emit(document, lambda: _print_sheet(document))
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


def _print_sheet(document: dict[str, Any]) -> None:
    if "exact" in document:
        say(document["exact"]["sentence"])
    if "over_time" in document:
        _print_over_time(document["over_time"])


def _print_over_time(document: dict[str, Any]) -> None:
    name, reference = document["indicator"], document["reference"]
    say(
        f"{document['run']}: {document['tokens']:,} reachable tokens at"
        f" {len(document['steps'])} checkpoints, judged by {name}."
    )
    say(
        f"Reference (ids known to be unused): {reference['why']}. They are every"
        " second of those it never met; the others are judged like every token."
        if reference
        else "Reference (ids known to be unused): none."
    )
    points = document["over_time"]
    rows = [_row(point, name) for point in (points if len(points) <= LISTED else points[-LISTED:])]
    trained = {row["step"]: row["tokens"] for row in document["trained_at"] or []}
    columns = [
        "checkpoint",
        "never seen",
        "Spearman",
        "AUC ≤ 0",
        "≤ 1",
        "≤ 10",
        "≤ 100",
        "trained from here",
    ]
    table(columns, [[*row, trained.get(row[0])] for row in rows])
    _print_scores(points[-1])
    say("\n" + document["sentence"])
    if (forecast := document["hindsight"]) is not None and forecast["tokens"]:
        say(
            f"A forecast made at checkpoint {forecast['made_at']} for {forecast['until']}: of"
            f" {forecast['said_trained']} tokens expected to be trained by then"
            f" {forecast['said_and_came']} were, of {forecast['said_not']} others"
            f" {forecast['said_not_and_came']} were."
        )
    if document["behind"]:
        _print_behind(document["behind"], name)


def _print_scores(point: dict[str, Any]) -> None:
    """Print how well each indicator tells the seldom seen tokens apart at one checkpoint."""
    say(
        "\nHow well each indicator finds the seldom seen tokens at checkpoint"
        f" {point['step']}: area under the ROC curve (AUC) and average precision, for tokens with"
        " at most so many exposures; Spearman: with log(1 + exposures)."
    )
    table(
        ["indicator", "Spearman", "exposures ≤", "tokens", "AUC", "95%", "precision", "95%"],
        [
            [
                indicator["indicator"],
                indicator["spearman"],
                score["exposure"],
                score["tokens"],
                score["auc"],
                _interval(score["auc_interval"]),
                score["average_precision"],
                _interval(score["average_precision_interval"]),
            ]
            for indicator in point["indicators"]
            for score in indicator["scores"]
        ],
    )


def _print_behind(behind: list[dict[str, Any]], indicator: str) -> None:
    """Print the tokens that were seen and still look like never seen ones."""
    say(
        f"{len(behind)} tokens were seen, and their {indicator} is still that of never-seen ones"
        + (f"; the {SHOWN} seen most often:" if len(behind) > SHOWN else ":")
    )
    table(
        [
            "id",
            "text",
            "exposures",
            indicator,
            "trained by step",
            "at the earliest",
            "at the latest",
        ],
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
            for row in behind[:SHOWN]
        ],
    )


def _row(point: dict[str, Any], name: str) -> list[Any]:
    band = next(indicator for indicator in point["indicators"] if indicator["indicator"] == name)
    auc = {s["exposure"]: s["auc"] for s in band["scores"]}
    return [point["step"], point["never"], band["spearman"], *(auc.get(t) for t in (0, 1, 10, 100))]


def _interval(edges: list[float]) -> str:
    return f"{edges[0]:.3f}–{edges[1]:.3f}"
