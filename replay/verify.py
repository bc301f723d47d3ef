"""Verify a replay: compare every bit and every recorded loss with what the run recorded."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from forensics.detect.spikes import restarts_of, robust
from forensics.errors import ForensicsError
from forensics.identity import fingerprint_difference
from forensics.lazy import make_callable
from forensics.progress import ProgressCallback as Progress
from forensics.progress import silent
from forensics.step.result import StepResult
from forensics.step.state import TrainState
from forensics.store.writer import Writer
from forensics.train import checkpoint
from forensics.train.header import now
from forensics.train.run import Run
from replay.lineage import open_trajectory, require_intact

COMPARED = ("loss", "grad_norm")
Level = Literal["exact", "reproduces", "absent"]


@dataclass
class Report:
    """What a witness says of the window it saw."""

    bitwise: bool
    level: Level
    steps: int
    compared: int  # steps of which something was recorded
    first_difference: dict[str, Any] | None
    max_abs_difference: float  # nats, of a recorded loss
    fingerprint_equal: bool
    fingerprint_differs: list[str]

    def sentence(self) -> str:
        """Say what was compared and whether anything differs."""
        if self.bitwise:
            return f"bit for bit: {self.compared:,} recorded steps compared, none differs"
        if not self.compared:
            return "nothing was recorded to compare with"
        where = self.first_difference or {}
        return (
            f"tolerance only: step {where.get('step')} differs first ({where.get('what')}), "
            f"losses by at most {self.max_abs_difference:.3g} nats"
        )


class Witness:
    """Compares each replayed step with the recorded one: loss, gradient norm, digest; tensors where
    a state was saved.
    """

    def __init__(self, run: Run, first: int, last: int) -> None:
        self.run, self.first, self.last = run, first, last
        self.recorded = recorded_steps(run, first, last)
        self.saved = {s for s in run.saved_steps() if first < s <= last}
        self.losses: dict[int, float | None] = {}
        self.compared = 0
        self.gap = 0.0
        self.difference: dict[str, Any] | None = None

    def see(self, state: TrainState, result: StepResult) -> None:
        """`after` of a fold; states must be the run's own."""
        step = result.step
        self.losses[step] = result.loss
        row = self.recorded.get(step)
        if row is not None:
            self.compared += 1
            for name in COMPARED:
                replayed, recorded = getattr(result, name), row[name]
                if not _same(replayed, recorded):
                    self._differs(step, name, None)
                if (
                    name == "loss"
                    and replayed is not None
                    and recorded is not None
                    and math.isfinite(replayed - recorded)
                ):
                    self.gap = max(self.gap, abs(replayed - recorded))
            digest = row["state_digest"]
            if digest is not None and digest != state.digest():
                self._differs(step, "state_digest", self._tensor(state))
        if state.counters.step in self.saved and self.difference is None:
            if row is None or row["state_digest"] is None:
                self.compared += row is None
            wrong = self._tensor(state)
            if wrong is not None:
                self._differs(step, "checkpoint", wrong)

    def _differs(self, step: int, what: str, tensor: str | None) -> None:
        if self.difference is None:
            layer = (
                tensor.split("layers.")[1].split(".")[0] if tensor and "layers." in tensor else None
            )
            self.difference = {
                "step": step,
                "what": what,
                "tensor": tensor,
                "layer": int(layer) if layer else None,
            }

    def _tensor(self, state: TrainState) -> str | None:
        """Return the first tensor that differs from the saved state of this step, if one was saved
        and it does.
        """
        step = state.counters.step
        if step not in self.saved:
            return None
        path = self.run.folder / "checkpoints" / checkpoint.name_of(step) / "state.json"
        hashes = json.loads(path.read_bytes())["tensors"]
        return next(
            (name for name, hash_ in checkpoint.tensor_hashes(state) if hashes.get(name) != hash_),
            None,
        )

    def report(self) -> Report:
        """Report what was compared, and the first difference."""
        here = self.run.fingerprint()
        differs = fingerprint_difference(here, self.run.header.fingerprint)
        bitwise = self.difference is None and self.compared > 0
        return Report(
            bitwise=bitwise,
            level="exact" if bitwise else self._level(),
            steps=self.last - self.first,
            compared=self.compared,
            first_difference=self.difference,
            max_abs_difference=self.gap,
            fingerprint_equal=not differs,
            fingerprint_differs=differs,
        )

    def _level(self) -> Level:
        """reproduces: each spike of the window again within ±2 steps, its excess within a factor 2;
        else absent.
        """
        history = recorded_steps(self.run, 0, self.last)
        past = [s for s in sorted(history) if s < min(self.losses)]
        restarts = restarts_of(self.run.recipe)
        steps = past + sorted(self.losses)
        theirs = robust(
            [history[s]["loss"] if s in history else None for s in steps],
            steps=steps,
            restarts=restarts,
        )
        ours = robust(
            [history[s]["loss"] for s in past] + [self.losses[s] for s in sorted(self.losses)],
            steps=steps,
            restarts=restarts,
        )
        for spike in (
            s for s in theirs if self.first <= s.step < self.last and s.baseline is not None
        ):
            excess = spike.value - (spike.baseline or 0.0)
            if not any(
                abs(s.step - spike.step) <= 2
                and 0.5 <= (s.value - (s.baseline or 0.0)) / excess <= 2
                for s in ours
            ):
                return "absent"
        return "reproduces"


def recorded_steps(run: Run, first: int, last: int) -> dict[int, dict[str, Any]]:
    """Rows of `steps` along the run's lineage, by step."""
    import pyarrow.compute as pc

    rows_by_step: dict[int, dict[str, Any]] = {}
    if run.parent is not None and first < run.header.first_step:
        rows_by_step = recorded_steps(run.parent, first, min(last, run.header.first_step))
    table = run.table("steps", ["step", *COMPARED, "state_digest"])
    column = table["step"]
    rows = table.filter(pc.and_(pc.greater_equal(column, first), pc.less(column, last))).to_pylist()
    return rows_by_step | {row["step"]: row for row in rows}


def _same(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return a == b or (math.isnan(a) and math.isnan(b))


def verify(
    runs: Path, name: str, first: int, last: int, progress: Progress = silent
) -> tuple[Report, int]:
    """Replay first:last unaltered and compare every bit and every recorded loss; writes a
    certificate.

    Returns the report and the last step that was replayed, which lies further where no digest was
    recorded at `last`. Errors: usage, missing, integrity.
    """
    run = open_trajectory(runs, name)
    if not 0 <= first < last <= run.header.steps:
        raise ForensicsError(
            "missing",
            f"wanted a window of {name}, found {first}:{last}",
            f"it has steps 0 to {run.header.steps}",
        )
    trained = run.last_step()
    if last > trained:
        raise ForensicsError(
            "missing",
            f"{name} has been trained to step {trained}, not to {last}",
            f"verify up to {trained}",
        )
    require_intact(run)
    end = _last_with_digest(run, first, last)
    witness = Witness(run, first, end)

    def after(state: TrainState, result: Any) -> None:
        # steps before the window only lead up to it, but a difference there is one too
        witness.see(state, result)
        progress(state.counters.step - origin, end - origin, "")

    base = run if first >= run.header.first_step or run.parent is None else run.parent
    origin = base.checkpoint_before(first)
    witness.recorded |= recorded_steps(run, origin, first)
    state = run.state_at(first, after)
    if state.counters.step < run.header.first_step:
        raise ForensicsError(
            "usage",
            f"{name} is a fork that starts at {run.header.first_step}, found {first}",
            f"verify its own window, or its parent {run.header.parent}",
        )
    run.replay(state, end, after=after)
    report = witness.report()
    certify(run, first, end, report, "verify")
    return report, end


def _last_with_digest(run: Run, first: int, last: int) -> int:
    """`last`, or the next checkpoint where no digest of that state was recorded."""
    row = recorded_steps(run, last - 1, last).get(last - 1)
    if row is not None and row["state_digest"] is not None:
        return last
    later = [s for s in run.saved_steps() if s >= last]
    return later[0] if later else last


def certify(run: Run, first: int, last: int, report: Report, source: str) -> None:
    """Write what was proven to the run's `certificates`."""
    with Writer(run.folder) as writer:
        writer.append(
            "certificates",
            first=first,
            last=last,
            bitwise=report.bitwise,
            level=report.level,
            compared=report.compared,
            first_difference=report.first_difference["step"] if report.first_difference else None,
            max_abs_difference=report.max_abs_difference,
            fingerprint_equal=report.fingerprint_equal,
            fingerprint=json.dumps(run.fingerprint()),
            source=source,
            created=now(),
        )


make_callable(__name__, __name__, "verify")  # `from replay import verify` gives something to call
