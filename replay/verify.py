"""Verify a replay: compare every bit and every recorded loss with what the run recorded."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from forensics.detect.spikes import Spike, restarts_of, robust
from forensics.errors import ForensicsError
from forensics.identity import fingerprint_difference
from forensics.lazy import make_callable
from forensics.progress import ProgressCallback as Progress
from forensics.progress import silent
from forensics.result_records import ResultRecord, json_key, part_to_document
from forensics.step.result import StepResult
from forensics.step.state import TrainState
from forensics.store.writer import Writer
from forensics.train import checkpoint
from forensics.train.header import now
from forensics.train.run import Run
from replay.elsewhere import Beside, Tolerance, beside, taken_up, tolerance_of
from replay.lineage import open_trajectory, require_intact

COMPARED = ("loss", "grad_norm")
Level = Literal["exact", "reproduces", "absent"]


@dataclass(frozen=True)
class Difference:
    """Where a replay and what was recorded part first."""

    step: int
    what: str  # loss | grad_norm | state_digest | checkpoint
    tensor: str | None = None  # of the saved state after the step, where one was saved
    layer: int | None = None


@dataclass(frozen=True)
class Report(ResultRecord):
    """What a witness says of the window it saw."""

    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "verification"
    AGAIN: ClassVar[str] = "run `replay verify` again"

    bitwise: bool
    level: Level
    steps: int
    compared: int  # steps of which something was recorded
    first_difference: Difference | None
    max_abs_difference: float  # nats, of a recorded loss; inf where one of the two is not finite
    fingerprint_equal: bool
    fingerprint_differs: tuple[str, ...]
    # the saved state that was compared last differs in the payload of NaNs and in no number
    nan_payload_only: bool = False
    run: str = ""
    first: int = json_key("from", default=0)
    last: int = json_key("to", default=0)  # as asked for
    verified_to: int = 0  # further than asked for where no digest was recorded there
    # of a run made elsewhere: beside its log and its next checkpoint
    loss_max_abs_difference: float | None = None  # nats
    state_relative_difference: float | None = None  # ‖θ−θ_theirs‖ / ‖θ_theirs−θ_A‖
    loss_tolerance: float | None = None  # nats
    state_tolerance: float | None = None  # of the distance travelled
    elsewhere: Beside | None = None

    @property
    def holds(self) -> bool:
        """Whether it is the recorded run: bit for bit; to tolerance where it was made elsewhere."""
        if self.elsewhere is None:
            return self.bitwise
        return self.elsewhere.within(self.tolerance)

    @property
    def tolerance(self) -> Tolerance:
        """Return the tolerance that a run made elsewhere is held to."""
        return Tolerance(self.loss_tolerance or 0.0, self.state_tolerance or 0.0)

    def sentence(self) -> str:
        """Say what was compared and whether anything differs."""
        if self.elsewhere is not None:
            return self.elsewhere.sentence(self.tolerance)
        if self.bitwise:
            return f"equal bit for bit over {self.compared:,} recorded steps"
        if self.first_difference is None:
            return "nothing was recorded to compare with"
        where = f"step {self.first_difference.step} is the first that differs"
        if self.nan_payload_only:
            return (
                f"equal to tolerance only: {where}, by the payload of its NaNs alone; every number"
                " is equal"
            )
        losses = (
            f"losses differ by at most {self.max_abs_difference:.3g} nats"
            if math.isfinite(self.max_abs_difference)
            else "a loss is finite in one and not in the other"
        )
        return (
            f"equal to tolerance only: {where} (its"
            f" {self.first_difference.what.replace('_', ' ')}), {losses}"
        )


class Witness:
    """Compares each replayed step with the recorded one: loss, gradient norm, digest; tensors where
    a state was saved. A NaN equals a NaN. A run made elsewhere is held against its log and its
    checkpoints, to tolerance (`replay.elsewhere`).
    """

    def __init__(self, run: Run, first: int, last: int) -> None:
        self.run, self.first, self.last = run, first, last
        self.recorded = recorded_steps(run, first, last)
        self.saved = {s for s in run.saved_steps() if first < s <= last}
        self.losses: dict[int, float | None] = {}
        self.compared = 0
        self.gap = 0.0
        self.difference: Difference | None = None
        self.payload_only = False
        self.beside = beside(run, first)

    def see(self, state: TrainState, result: StepResult) -> None:
        """`after` of a fold; states must be the run's own."""
        step = result.step
        self.losses[step] = result.loss
        row = self.recorded.get(step)
        if self.beside is not None:
            self._see_beside(self.beside, state, result, row)
            return
        if row is not None:
            self.compared += 1
            for name in COMPARED:
                if not equal_values(getattr(result, name), row[name]):
                    self._differs(step, name, None)
            self.gap = max(self.gap, _gap(result.loss, row["loss"]))
            digest = row["state_digest"]
            if digest is not None and digest != state.digest():
                self._differs(step, "state_digest", self._tensor(state))
        if state.counters.step in self.saved:
            self._compare_saved(state, step, row)

    def _see_beside(
        self, theirs: Beside, state: TrainState, result: StepResult, row: dict[str, Any] | None
    ) -> None:
        """Hold a step against a log, and its state against a checkpoint, where there are such."""
        self.compared += row is not None
        if row is not None:
            theirs.see_step(result, row)
            self.gap = theirs.loss_max_abs_difference or 0.0
        if state.counters.step in self.saved:
            start = self.run.load(self.run.checkpoint_before(self.first)).params
            theirs.see_state(state, self.run.load(state.counters.step).params, start)

    def _compare_saved(self, state: TrainState, step: int, row: dict[str, Any] | None) -> None:
        """Hold the state against the one that was saved of this step."""
        if self.difference is None:
            self.compared += row is None
            wrong = self._tensor(state)
            if wrong is not None:
                self._differs(step, "checkpoint", wrong)
        if self.difference is not None and self.difference.what not in COMPARED:
            saved = self.run.load(state.counters.step)
            self.payload_only = _same_but_for_nans(state, saved)

    def _differs(self, step: int, what: str, tensor: str | None) -> None:
        if self.difference is None:
            layer = (
                tensor.split("layers.")[1].split(".")[0] if tensor and "layers." in tensor else None
            )
            self.difference = Difference(step, what, tensor, int(layer) if layer else None)

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

    def notes(self) -> dict[str, Any]:
        """Return what it saw so far, as JSON, for a fork that is interrupted."""
        return {
            "losses": list(self.losses.items()),
            "compared": self.compared,
            "gap": self.gap,
            "difference": part_to_document(self.difference) if self.difference else None,
            "payload_only": self.payload_only,
            "beside": self.beside.notes() if self.beside else None,
        }

    def take_up(self, notes: dict[str, Any]) -> None:
        """Go on from what `notes` gave."""
        self.losses = {int(step): loss for step, loss in notes["losses"]}
        self.compared, self.gap = notes["compared"], notes["gap"]
        self.difference = Difference(**notes["difference"]) if notes["difference"] else None
        self.payload_only = notes.get("payload_only", False)
        if notes.get("beside") is not None:
            self.beside = taken_up(notes["beside"])

    def report(self) -> Report:
        """Report what was compared, and the first difference."""
        here = self.run.fingerprint()
        differs = fingerprint_difference(here, self.run.header.fingerprint)
        theirs = self.beside
        bitwise = self.difference is None and self.compared > 0 and theirs is None
        tolerance = tolerance_of(self.run) if theirs else None
        return Report(
            bitwise=bitwise,
            level="exact" if bitwise else self._level(),
            steps=self.last - self.first,
            compared=self.compared,
            first_difference=self.difference,
            max_abs_difference=self.gap,
            fingerprint_equal=not differs,
            fingerprint_differs=tuple(differs),
            nan_payload_only=self.payload_only,
            run=self.run.name,
            first=self.first,
            last=self.last,
            verified_to=self.last,
            loss_max_abs_difference=theirs.loss_max_abs_difference if theirs else None,
            state_relative_difference=theirs.state_relative_difference if theirs else None,
            loss_tolerance=tolerance.loss if tolerance else None,
            state_tolerance=tolerance.state if tolerance else None,
            elsewhere=theirs,
        )

    def _level(self) -> Level:
        """reproduces: each spike of the window again within ±2 steps, its excess within a factor 2,
        or not finite again; else absent. Of a run made elsewhere also where its log and its
        checkpoints are reproduced to tolerance; absent where neither holds.
        """
        if self.beside is not None and self.beside.within(tolerance_of(self.run)):
            return "reproduces"
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
        in_window = [s for s in theirs if self.first <= s.step < self.last]
        again = all(any(_is_again(spike, s) for s in ours) for spike in in_window)
        beside = self.beside
        if beside is not None and beside.compared and not (in_window or beside.warm_moments):
            # beyond the tolerance, and no spike that would say more; moments that were made here
            # are not expected to come within it
            return "absent"
        return "reproduces" if again else "absent"


def _is_again(recorded: Spike, replayed: Spike) -> bool:
    """Whether a replayed spike is the recorded one: near in time, and as high or as little
    finite.
    """
    if abs(replayed.step - recorded.step) > 2:
        return False
    if not (math.isfinite(recorded.value) and math.isfinite(replayed.value)):
        return math.isfinite(recorded.value) == math.isfinite(replayed.value)
    if recorded.baseline is None or replayed.baseline is None:
        return True  # nothing finite came before: there is no height to compare
    excess = recorded.value - recorded.baseline
    return 0.5 <= (replayed.value - replayed.baseline) / excess <= 2


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


def equal_values(a: float | None, b: float | None) -> bool:
    """Whether two recorded numbers are equal: a NaN equals a NaN, a missing one a missing one."""
    if a is None or b is None:
        return a is b
    return a == b or (math.isnan(a) and math.isnan(b))


def _gap(a: float | None, b: float | None) -> float:
    """Return |a − b|: 0 where they are equal or one is missing, inf where one is not finite."""
    if a is None or b is None or equal_values(a, b):
        return 0.0
    return abs(a - b) if math.isfinite(a - b) else math.inf


def _same_but_for_nans(state: TrainState, saved: TrainState) -> bool:
    """Whether two states are equal in every bit but those of numbers that are NaN in both."""
    if state.rest() != saved.rest():
        return False
    for (_, a), (_, b) in zip(state.tensors(), saved.tensors(), strict=True):
        same_bits = a.cpu().view(torch.int32) == b.cpu().view(torch.int32)
        if not (same_bits | (a.cpu().isnan() & b.cpu().isnan())).all():
            return False
    return True


def verify(runs: Path, name: str, first: int, last: int, progress: Progress = silent) -> Report:
    """Replay first:last unaltered and compare every bit and every recorded loss; writes a
    certificate.

    It goes on past `last`, to `verified_to`, where no digest was recorded there. Errors: usage,
    missing, integrity.
    """
    run = open_trajectory(runs, name)
    if not 0 <= first < last <= run.header.steps:
        raise ForensicsError(
            "missing",
            f"wanted a window of {name}, found {first}:{last}",
            f"it has steps 0 to {run.header.steps}",
        )
    made_elsewhere = beside(run, first) is not None
    trained = run.header.steps if made_elsewhere else run.last_step()
    if last > trained:
        raise ForensicsError(
            "missing",
            f"{name} has been trained to step {trained}, not to {last}",
            f"verify up to {trained}",
        )
    require_intact(run)
    end = last if made_elsewhere else _last_with_digest(run, first, last)
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
    report = dataclasses.replace(witness.report(), last=last)
    certify(run, first, end, report, "verify")
    return report


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
            first_difference=report.first_difference.step if report.first_difference else None,
            max_abs_difference=report.max_abs_difference,
            fingerprint_equal=report.fingerprint_equal,
            fingerprint=json.dumps(run.fingerprint()),
            source=source,
            created=now(),
        )


make_callable(__name__, __name__, "verify")  # `from replay import verify` gives something to call
