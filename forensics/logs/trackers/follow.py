"""The trackers that follow a run: opened, told of each step, closed; one that fails is let go.

    trackers = Trackers.open(("tensorboard:tb", "wandb:small-runs"), run, warn)
    trackers.log({"step": 7, "loss": 2.31, "update": "apply"})
    trackers.close()

They are told what is recorded anyway, after it was computed: they change no bit of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forensics.errors import ForensicsError, first_line, nearest
from forensics.logs.trackers.protocol import TrackedRun, Tracker

# kind → its module here, its class, and the package that it takes
KINDS = {
    "tensorboard": ("tensorboard", "EventFile", None),
    "wandb": ("weights_and_biases", "WandbRun", "wandb"),
    "trackio": ("trackio", "TrackioRun", "trackio"),
}


@dataclass(frozen=True)
class Target:
    """Where to log: the kind of tracker, and its folder or project; empty: its usual one."""

    kind: str
    where: str


@dataclass(frozen=True)
class Followed:
    """What came of following a run with one tracker."""

    kind: str
    where: str
    steps: int  # that it was told of
    problem: str | None  # why it was let go, a sentence


def target_of(text: str) -> Target:
    """Read KIND or KIND:WHERE. Errors: usage."""
    kind, _, where = text.partition(":")
    if kind not in KINDS:
        raise ForensicsError(
            "usage",
            f"wanted a tracker as KIND:WHERE, found {text!r}",
            nearest(kind, KINDS) + "; e.g. tensorboard:FOLDER or wandb:PROJECT",
        )
    return Target(kind, where)


class Trackers:
    """All trackers of a run."""

    def __init__(
        self, targets: Sequence[Target], run: TrackedRun, warn: Callable[[str], None]
    ) -> None:
        self._warn = warn
        self._targets = list(dict.fromkeys(targets))
        self._open: dict[Target, Tracker] = {}
        self._told = dict.fromkeys(self._targets, 0)
        self._problems: dict[Target, str] = {}
        for target in self._targets:
            try:
                self._open[target] = _tracker(target, run)
            except Exception as e:
                self._let_go(target, e)

    def log(self, row: Mapping[str, Any]) -> None:
        """Tell the numbers of a row of `steps`, under its columns' names; NULL is left out."""
        numbers = {
            name: float(value)
            for name, value in row.items()
            if name != "step" and isinstance(value, (int, float))
        }
        for target, tracker in list(self._open.items()):
            try:
                tracker.log(int(row["step"]), numbers)
                self._told[target] += 1
            except Exception as e:
                self._let_go(target, e)

    def close(self) -> None:
        """Close all that are open. May be called again."""
        for target in list(self._open):
            tracker = self._open.pop(target)
            try:
                tracker.close()
            except Exception as e:
                self._let_go(target, e)

    def followed(self) -> tuple[Followed, ...]:
        """Tell what came of each."""
        return tuple(
            Followed(target.kind, target.where, self._told[target], self._problems.get(target))
            for target in self._targets
        )

    def _let_go(self, target: Target, error: Exception) -> None:
        """Say once why a tracker is not told any more; training goes on."""
        self._open.pop(target, None)
        if isinstance(error, ModuleNotFoundError):
            problem = f"{error}: `pip install {KINDS[target.kind][2] or target.kind}`"
        else:
            problem = first_line(error)
        self._problems[target] = problem
        self._warn(f"{target.kind} is not told of this run: {problem}")


def _tracker(target: Target, run: TrackedRun) -> Tracker:
    module, name, _ = KINDS[target.kind]
    opened: Tracker = getattr(importlib.import_module(f"forensics.logs.trackers.{module}"), name)(
        target.where, run
    )
    return opened
