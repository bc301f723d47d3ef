"""A matrix beside what blame said of a spike in its window: do they agree, and if not, why?

    beside_blame(run.folder, (400, 404), 400, conclusion)      # None: no such spike was blamed

blame asks whose removal takes the spike away; a matrix asks from which states the batch's loss is
high. The same spike can have two true answers: batches before it that made the state what it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from replay.experiments.results import BesideBlame, Comparison, MatrixConclusion

LARGEST = 64 << 20  # bytes of a document that is read whole


def beside_blame(
    folder: Path, batches: tuple[int, int], judged: int, conclusion: MatrixConclusion
) -> BesideBlame | None:
    """Compare with the kept blame of the judged step, or else of the window's first that has one.

    Of blame's document only the verdict and the excess are read, whatever its version.
    """
    for step in sorted(range(*batches), key=lambda step: (step != judged, step)):
        blamed = _read(folder / f"blame-{step}.json")
        if blamed is not None:
            excess = blamed["excess"]
            return BesideBlame(
                step=step,
                verdict=blamed["verdict"],
                data=float(excess["data"]),
                state=float(excess["state"]),
                comparison=compare(
                    conclusion, blamed["verdict"], float(excess["data"]), float(excess["state"])
                ),
            )
    return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        if path.stat().st_size > LARGEST:
            return None
        document: dict[str, Any] = json.loads(path.read_bytes())
        excess = document["excess"]
        float(excess["data"]), float(excess["state"])
        return document if isinstance(document["verdict"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none, or a damaged one: `blame` says so where it is asked for


def compare(conclusion: MatrixConclusion, verdict: str, data: float, state: float) -> Comparison:
    """Say how a matrix stands to a verdict of blame, with its parts of the excess (nats)."""
    if conclusion.verdict == "cannot tell" or verdict == "cannot tell":
        return "agree" if conclusion.verdict == verdict else "one cannot tell"
    together = "interaction" in conclusion.parts
    has_data, has_state = (together or name in conclusion.parts for name in ("data", "state"))
    if verdict == "numerics":
        return "they differ"
    if state > data:  # what blame names came before the spike, and left this state
        if not has_state:
            return "they differ"
        return "agree" if verdict == "state or policy" else "the state was made before it"
    if not has_data or "data" not in verdict:
        return "they differ"
    return "agree" if verdict == "data" or has_state else "blame tries more"
