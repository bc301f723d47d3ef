"""The trainer: folds `advance` over a run's own stream, records, saves, and watches for spikes.

    train(config.load("demo"), name="demo", recipe_name="demo", runs=Path("runs"))

Ctrl-C (or SIGTERM) ends at the next step's boundary with a checkpoint that `resume` goes on from.
"""

from __future__ import annotations

import dataclasses
import functools
import resource
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forensics import config
from forensics.detect.spikes import RobustDetector, Spike, restarts_of
from forensics.errors import ForensicsError
from forensics.interrupt import Interruptible
from forensics.logs.trackers.follow import Followed, Target, Trackers, target_of
from forensics.logs.trackers.protocol import TrackedRun
from forensics.model.initialize import Initialization, initialize
from forensics.observe.recorder import Recorder
from forensics.progress import ProgressCallback, silent
from forensics.step import sums
from forensics.step.result import StepResult
from forensics.step.state import TrainState
from forensics.store import reader
from forensics.store.writer import Writer
from forensics.train import checkpoint
from forensics.train.advance import fold, token_losses
from forensics.train.background_checkpoint import Saved, Saver
from forensics.train.create import create, reopen
from forensics.train.header import now, write_header
from forensics.train.prefetch import Prefetch
from forensics.train.run import Run
from forensics.train.step_errors import translate_torch_errors

METRICS = ("loss", "grad_norm")  # watched for spikes


@dataclass(frozen=True)
class Outcome:
    """What a training command reports."""

    run: str
    steps: int
    final_loss: float | None  # nats per token, of the last step
    held_out_loss: float | None  # at the last state
    tokens_per_second: float
    peak_memory_bytes: int
    interrupted: bool = False
    nonfinite: int = 0  # numbers of the last saved state that are NaN or infinite
    last_finite_state: int | None = None  # the last saved state without any
    trackers: tuple[Followed, ...] = ()  # that were to follow it


def _unheard(warning: str) -> None:
    """Warn nobody."""


def train(
    recipe: config.Recipe,
    *,
    name: str,
    recipe_name: str,
    runs: Path,
    resume: bool = False,
    arguments: list[str] | None = None,
    progress: ProgressCallback = silent,
    preparing: ProgressCallback = silent,
    log_to: Sequence[str] = (),
    warn: Callable[[str], None] = _unheard,
) -> Outcome:
    """Train a new run from its recipe, or go on with one that was interrupted.

    `log_to` are trackers, KIND or KIND:WHERE; one that fails is told to `warn` and let go.

    Errors: config, data, device, usage, integrity, storage.
    """
    reader.check_run_name(name)
    targets = [target_of(text) for text in log_to]
    exists = (runs / name / "run.json").is_file()
    if exists and not resume:
        raise ForensicsError(
            "usage",
            f"wanted a new run, found one called {name!r} already",
            "--resume goes on with it, --name gives another",
        )
    run = (
        reopen(runs, name, recipe)
        if exists
        else create(recipe, name, recipe_name, runs, arguments or [], preparing)
    )
    return Trainer(run, progress, targets, warn).run_to_end(resumed=exists)


class _Stop(Exception):
    """End training at this step's boundary, as Ctrl-C asked."""


class Trainer:
    """One run being trained; `run_to_end` returns when it ends."""

    def __init__(
        self,
        run: Run,
        progress: ProgressCallback,
        targets: Sequence[Target] = (),
        warn: Callable[[str], None] = _unheard,
    ) -> None:
        self.run = run
        self.targets, self.warn = targets, warn
        self.trackers: Trackers | None = None  # opened when the first step is known
        self.recipe = run.recipe
        self.progress = progress
        self.model = run.model
        self.writer = Writer(run.folder, background=True)
        self.saver = Saver(
            run.folder / "checkpoints", run.shape, run.corpus.tokenizer_file, run.header.eot
        )
        self.stream = Prefetch(run.stream, run.recipe.train.steps, run.header.device)
        self.recorder = Recorder(
            self.writer,
            self.recipe.record,
            self.model,
            digests=run.header.device == "cpu",
            told=self._tell,
        )
        restarts = restarts_of(self.recipe)
        self.detectors = {
            metric: RobustDetector(metric=metric, restarts=restarts) for metric in METRICS
        }
        self.known_spikes: set[tuple[str, int]] = set()  # metric, onset
        self.ring: deque[TrainState] = deque(maxlen=self.recipe.checkpoint.ring or 1)
        self.held_out = run.batches.held_out() if self.recipe.data.held_out else None
        self.translated_errors = functools.partial(
            translate_torch_errors,
            self.model.micro_batch,
            self.recipe.train.batch,
            self.recipe.train.checkpoint_activations,
        )
        self.interrupt = Interruptible()
        self.held_out_loss: float | None = None
        self.final_loss: float | None = None

    def run_to_end(self, resumed: bool) -> Outcome:
        """Train to the end, or to a Ctrl-C."""
        state = self._resumed_state() if resumed else None
        if state is None:
            params = initialize(
                self.run.shape, Initialization.of(self.recipe.model), self.recipe.train.seed
            )
            with self.translated_errors():
                state = TrainState.start(
                    {name: tensor.to(self.model.device) for name, tensor in params.items()}
                )
                self._save(state, "first")
        first, started = state.counters.step, time.perf_counter()
        if first < self.recipe.train.steps:
            self._status("running")
            self._open_trackers(first)
        interrupted = False
        try:
            with self.interrupt:
                fold(
                    state,
                    self.stream,
                    self.run.policy,
                    self.recipe.train.steps,
                    self.model,
                    self.recorder,
                    self._after,
                )
            self._note_saved(wait=True)
        except _Stop:
            interrupted = True
        except BaseException:
            self._status("failed", quietly=True)
            raise
        finally:
            self.stream.close()
            self.saver.close()
            self.writer.close()
            if self.trackers is not None:
                self.trackers.close()
        seconds = time.perf_counter() - started
        if not interrupted:
            self._finish()
        steps = state.counters.step - first
        saved = self.run.saved_steps()
        return Outcome(
            run=self.run.name,
            steps=state.counters.step,
            final_loss=self.final_loss,
            held_out_loss=self.held_out_loss,
            tokens_per_second=(
                steps * self.recipe.train.batch * self.recipe.data.sequence_length / seconds
                if steps
                else 0.0
            ),
            peak_memory_bytes=peak_memory(self.run.header.device),
            interrupted=interrupted,
            nonfinite=self.run.nonfinite_at(saved[-1]).numbers if saved else 0,
            last_finite_state=self.run.last_finite_step(),
            trackers=self.trackers.followed() if self.trackers is not None else (),
        )

    def _open_trackers(self, first_step: int) -> None:
        header = self.run.header
        followed = TrackedRun(
            header.name, self.run.folder, header.created, header.config, first_step
        )
        self.trackers = Trackers(self.targets, followed, self.warn)

    def _tell(self, row: Mapping[str, Any]) -> None:
        if self.trackers is not None:
            self.trackers.log(row)

    def _after(self, state: TrainState, result: StepResult) -> None:
        """Finish a step: spikes, held-out loss, ring, tables, checkpoint; then perhaps stop."""
        with self.translated_errors():
            self._finish_step(state, result)

    def _finish_step(self, state: TrainState, result: StepResult) -> None:
        step, train, saving = state.counters.step, self.recipe.train, self.recipe.checkpoint
        self.final_loss = result.loss
        self._note_saved()
        spike_begins = self._watch(result)
        last = step == train.steps
        if (
            self.held_out is not None
            and len(self.held_out.tokens)
            and (last or (train.held_out_every and step % train.held_out_every == 0))
        ):
            self.held_out_loss = self.loss_on_held_out(state)
            assert self.recorder.row is not None
            self.recorder.row["held_out_loss"] = self.held_out_loss
        if saving.ring:
            if step % saving.ring_every == 0:
                self.ring.append(state.clone())
            if spike_begins:
                self._write_ring(result.step)
        due = last or (saving.every and step % saving.every == 0) or step in saving.steps
        # read once: a Ctrl-C that comes later ends the next step, with its checkpoint
        stopping = self.interrupt.stop
        if due or stopping:
            self._save(state, "last" if last else "every" if due else "interrupted")
        elif step % self.recipe.record.flush_every == 0:
            self._flush()
        note = f"loss {result.loss:.3f}" if result.loss is not None else ""
        self.progress(
            step,
            train.steps,
            f"{note} · {train.batch * self.recipe.data.sequence_length / result.seconds:,.0f}"
            " tokens/s",
        )
        if stopping and not last:
            self._note_saved(wait=True)
            self._event(step, "interrupt", text="ended by Ctrl-C; --resume goes on")
            self._flush()
            self.writer.drain()
            self._status("interrupted")
            raise _Stop

    def loss_on_held_out(self, state: TrainState) -> float:
        """Compute the mean cross-entropy of the held-out sequences, nats per token."""
        assert self.held_out is not None
        return sums.mean(
            token_losses(state.params, self.held_out, self.model, self.run.header.precision)
        )

    def _watch(self, result: StepResult) -> bool:
        """Show the step to the detectors; return whether a spike begins at it."""
        self._feed_detectors(result.step, {metric: getattr(result, metric) for metric in METRICS})
        return any(
            detector.alarm and detector.onset == result.step for detector in self.detectors.values()
        )

    def _feed_detectors(self, step: int, values: dict[str, float | None]) -> None:
        """Give each detector its metric's value, None where there is none; write settled spikes."""
        for metric, detector in self.detectors.items():
            value = values[metric]
            settled = detector.update(
                step, value if value is not None else 0.0, computed=value is not None
            )
            if settled is not None:
                self._write_spike(settled)

    def _write_spike(self, spike: Spike) -> None:
        if (spike.metric, spike.onset) in self.known_spikes:
            return
        self.known_spikes.add((spike.metric, spike.onset))
        self._event(
            spike.step,
            "spike",
            metric=spike.metric,
            value=spike.value,
            baseline=spike.baseline,
            sigma=spike.sigma,
            spike_kind=spike.kind,
            onset=spike.onset,
            recovered_at=spike.recovered_at,
        )

    def _write_ring(self, step: int) -> None:
        """Save the ring's states, so that the steps up to the spike can be replayed densely."""
        self._note_saved(wait=True)
        saved = set(self.run.saved_steps())
        for state in self.ring:
            if state.counters.step not in saved:
                self._save(state, "ring")
        first = self.ring[0].counters.step if self.ring else step
        self._event(
            step,
            "ring",
            text=(
                f"states {first} to {step + 1} are kept: replay {first}:{step + 1} densely to see"
                " what happened"
            ),
        )

    def _save(self, state: TrainState, reason: str) -> None:
        """Hand the state over to be written.

        A run resumes from any complete checkpoint: the rows up to it are on disk before it.
        """
        self._flush()
        self.saver.save(state, reason, after=self.writer.handed_over())

    def _note_saved(self, wait: bool = False) -> None:
        """Write a row for each checkpoint that came into place.

        Errors: storage, where one could not be written.
        """
        for saved in self.saver.saved(wait):
            self._checkpoint_row(saved)

    def _checkpoint_row(self, saved: Saved) -> None:
        self.writer.append(
            "checkpoints",
            step=int(saved.path.name.removeprefix("step-")),
            path=str(saved.path.relative_to(self.run.folder)),
            digest=saved.digest,
            bytes=saved.bytes,
            nonfinite=checkpoint.nonfinite(saved.path).numbers,
            reason=saved.reason,
            created=now(),
        )

    def _event(self, step: int, kind: str, **columns: object) -> None:
        self.writer.append("events", step=step, kind=kind, created=now(), **columns)

    def _flush(self) -> None:
        self.recorder.commit()
        self.writer.flush()

    def _resumed_state(self) -> TrainState | None:
        """Load the last checkpoint, cut the tables there and feed the detectors.

        None: nothing was saved.
        """
        saved = self.run.saved_steps()
        if not saved:
            return None
        step = saved[-1]
        state = self.run.load(step)
        if step < self.recipe.train.steps:
            self._refuse_nonfinite(state)
        self.writer.truncate(step)
        with_row = self.run.table("checkpoints", ["step"])["step"].to_pylist()
        if step not in with_row:  # killed between the folder and its row
            path = self.run.folder / "checkpoints" / checkpoint.name_of(step)
            size = sum(
                file.stat().st_size for file in path.iterdir() if file.name != "manifest.json"
            )
            self._checkpoint_row(Saved(path, state.digest(), size, "every"))
        for event in self.run.table("events").to_pylist():
            if event["kind"] == "spike":
                self.known_spikes.add((event["metric"], event["onset"]))
        history = self.run.table("steps", ["step", "held_out_loss", *METRICS]).sort_by("step")
        for row in history.to_pylist():
            self.final_loss = row["loss"]
            if row["held_out_loss"] is not None:
                self.held_out_loss = row["held_out_loss"]
            self._feed_detectors(row["step"], row)
        if step < self.recipe.train.steps:
            self._event(step, "resume", text=f"resumed from checkpoint {step}")
        return state

    def _refuse_nonfinite(self, state: TrainState) -> None:
        """Refuse to go on from a state that no update makes finite again. Errors: mismatch."""
        name, step, last = self.run.name, state.counters.step, self.run.last_finite_step()
        numbers, tensor = state.nonfinite()
        if numbers:
            raise ForensicsError(
                "mismatch",
                f"wanted a finite state to go on from, found {numbers:,} numbers of checkpoint"
                f" {step} of {name} that are not (first in {tensor})",
                "no saved state of it is finite: train another run"
                if last is None
                else f"the last finite state saved is {last}: `replay fork {name} --from {last}"
                f" --to {self.recipe.train.steps}` with a change goes on from it",
            )

    def _finish(self) -> None:
        for detector in self.detectors.values():
            settled = detector.finish()
            if settled is not None:
                self._write_spike(settled)
        self.writer.close()
        self._status("finished")

    def _status(self, status: str, quietly: bool = False) -> None:
        self.run.header = dataclasses.replace(self.run.header, status=status)
        try:
            write_header(self.run.runs, self.run.header)
        except ForensicsError:
            if not quietly:  # on a full disk, the first error is the one to tell
                raise


def peak_memory(device: str) -> int:
    """Return the peak memory in bytes: of the GPU where one is used, else of this process."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
