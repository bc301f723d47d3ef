"""One fork being run: control, altered arm and null forks in lock-step, compared at every step.

All arms advance from one start, each by its own stream and policy, all by the one `advance`. The
control is held against the parent's rows; where it does not match, the fork still runs and
everything it says is marked *tolerance only*. A step costs one step of each arm and, where it is
due, one forward of each over the probe sets.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

from forensics.interrupt import Interruptible
from forensics.model.shape import parameter_shapes
from forensics.observe.recorder import Recorder
from forensics.progress import ProgressCallback as Progress
from forensics.progress import silent
from forensics.step.state import TrainState
from forensics.store.writer import Writer, link_table, replace_table, write_atomic
from forensics.train import checkpoint
from forensics.train.header import now, write_header
from forensics.train.run import Run
from replay.forks import resume
from replay.forks.arms import CONTROL, FORK, start_arms
from replay.forks.comparison import Comparison
from replay.forks.conclude import conclude
from replay.forks.identity import clear, identity_of, standing
from replay.forks.lockstep import altered_model, step_all
from replay.forks.result import RESULT_FILE, ForkResult
from replay.forks.spec import Spec
from replay.interventions.composition import altered_shape
from replay.interventions.placebo import placebos_of
from replay.interventions.registry import to_dict
from replay.lineage import open_trajectory, require_intact
from replay.verify import Witness, certify

FLUSH_S = 1.0  # seconds of the clock after which what was measured is written, for those who watch
# columns of table `forks` that the end of a fork holds under the same names
FINAL_COLUMNS = (
    "loss_control",
    "loss_fork",
    "loss_error",
    "probe_sequences",
    "logit_kl",
    "l2",
    "cosine",
    "placebos",
    "effect",
    "p",
)


class Fork:
    """One fork being run; interrupted, it goes on when it is made again."""

    def __init__(
        self,
        spec: Spec,
        parent: Run,
        progress: Progress,
        anew: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec, self.parent, self.progress, self.clock = spec, parent, progress, clock
        self.written = -math.inf  # by the clock
        self.started = time.perf_counter()
        self.identity = identity_of(spec, parent)
        self.run = self._create()
        self.writer = Writer(self.run.folder, background=True)
        self.distances = Writer(
            self.run.folder, background=True
        )  # the divergence alone: written far more often
        record = dataclasses.replace(parent.recipe.record, level=spec.record)
        self.recorder = Recorder(
            self.writer,
            record,
            altered_model(spec.interventions, parent),
            parent.header.device == "cpu",
        )
        start = parent.state_at(spec.first)
        self.arms = start_arms(
            start,
            parent,
            spec.interventions,
            placebos_of(
                spec.interventions, parent, spec.first, spec.last, spec.placebos, spec.seed
            ),
            range(spec.seed, spec.seed + spec.chaos),
            self.recorder,
        )
        self.measured = Comparison(spec, parent, start, self.arms, self.distances)
        self.witness = Witness(parent, spec.first, min(spec.last, parent.header.steps))
        self.first = spec.first if anew else self._taken_up()
        if self.first == spec.first:
            resume.clear(self.run.folder)
            self.writer.truncate(0)

    def run_to_end(self) -> ForkResult:
        """Step all arms to the end of the window; Ctrl-C saves them first."""
        spec, arms = self.spec, self.arms.by_name
        if self.first == spec.first:
            self._save(arms[FORK].state, "first")
        keep_every, flush_every = (
            self.parent.recipe.checkpoint.every,
            self.parent.recipe.record.flush_every,
        )
        try:
            with Interruptible() as interrupt:
                for step in range(self.first, spec.last):
                    results = step_all(arms)
                    if step < self.witness.last:
                        self.witness.see(arms[CONTROL].state, results[CONTROL])
                    self.measured.see(step + 1, {arm: r.loss for arm, r in results.items()})
                    steps_done = step + 1 - spec.first
                    self.progress(steps_done, spec.last - spec.first, f"{len(arms)} arms")
                    if step + 1 < spec.last and (
                        interrupt.stop or (keep_every and steps_done % keep_every == 0)
                    ):
                        self._keep_halfway(step + 1)
                    elif (step + 1) % flush_every == 0:
                        self.writer.flush()
                    if self.clock() - self.written >= FLUSH_S:
                        self.distances.flush()
                        self.written = self.clock()
                    if interrupt.stop and step + 1 < spec.last:
                        raise KeyboardInterrupt(f"the same command goes on from state {step + 1}")
            self.recorder.commit()
            self.writer.drain()
            self.distances.drain()
            self._save(arms[FORK].state, "last")
        finally:
            with self.distances, self.writer:
                self.recorder.commit()
        report, witness = self.witness.report(), self.witness
        if report.compared:  # a control is a proof like any other replay
            certify(self.parent, witness.first, witness.last, report, "fork")
        concluded = conclude(spec, self.parent, self.measured, report)
        result = dataclasses.replace(concluded, seconds=time.perf_counter() - self.started)
        self._keep(result)
        resume.clear(self.run.folder)
        return result

    def _keep_halfway(self, step: int) -> None:
        self.recorder.commit()
        self.writer.drain()
        self.distances.drain()
        notes = self.measured.notes | {"witness": self.witness.notes()}
        resume.save(
            self.run.folder,
            self.identity.to_document(),
            step,
            self.arms.by_name,
            self.run.header.eot,
            notes,
        )

    def _taken_up(self) -> int:
        """Return the step from which an interrupted fork goes on, everything put back as it was.

        Its first where there is none.
        """
        saved = resume.load(
            self.run.folder,
            self.identity.to_document(),
            list(self.arms.by_name),
            self.parent.header.device,
        )
        if saved is None:
            return self.spec.first
        step, states, notes = saved
        for name, arm in self.arms.by_name.items():
            arm.state = states[name]
        self.witness.take_up(notes.pop("witness"))
        self.measured.notes = notes
        self.writer.truncate(step)
        return step

    def _keep(self, result: ForkResult) -> None:
        final, run = result.final, self.run
        row = {
            "fork": result.fork,
            "parent": result.parent,
            "first": result.first,
            "last": result.last,
            "interventions": json.dumps(result.interventions),
            "sentence": result.does,
            "control_level": result.control.level,
            "control_bitwise": result.control.bitwise,
            **{column: getattr(final, column) for column in FINAL_COLUMNS},
            "unseen_gap": final.unseen.gap if final.unseen.sequences else None,
            "unseen_sequences": final.unseen.sequences,
            "chaos": result.chaos,
            "time_to_reconverge": result.time_to_reconverge,
            "created": now(),
        }
        replace_table(run.folder, "forks", {column: [value] for column, value in row.items()})
        write_atomic(run.folder / RESULT_FILE, result.to_json())
        write_header(run.runs, dataclasses.replace(run.header, status="finished"))

    def _create(self) -> Run:
        spec, parent = self.spec, self.parent
        fingerprint = parent.fingerprint()
        shape = altered_shape(spec.interventions, parent)
        header = dataclasses.replace(
            parent.header,
            name=spec.fork,
            first_step=spec.first,
            steps=spec.last,
            shape=dataclasses.asdict(shape),
            parameters=sum(map(math.prod, parameter_shapes(shape).values())),
            parent=spec.parent,
            parent_step=spec.first,
            # a fork that is run anew is the same parent still: its identity tells which
            parent_created=parent.header.created if parent.header.parent is None else None,
            interventions=[to_dict(i) for i in spec.interventions],
            fingerprint=fingerprint,
            created=now(),
            git_commit=fingerprint["git_commit"],
            status="running",
            identity=self.identity.to_document(),
        )
        write_header(parent.runs, header)
        link_table(parent.runs / spec.fork, "documents", parent.corpus.documents_file)
        return open_trajectory(parent.runs, spec.fork)

    def _save(self, state: TrainState, reason: str) -> None:
        path, digest, size = checkpoint.save(
            self.run.folder / "checkpoints",
            state,
            self.run.shape,
            self.run.corpus.tokenizer_file,
            self.run.header.eot,
        )
        self.writer.append(
            "checkpoints",
            step=state.counters.step,
            path=str(path.relative_to(self.run.folder)),
            digest=digest,
            bytes=size,
            nonfinite=checkpoint.nonfinite(path).numbers,
            reason=reason,
            created=now(),
        )


def fork(spec: Spec, runs: Path, progress: Progress = silent, *, again: bool = False) -> ForkResult:
    """Run a fork with its control and null forks, and keep its result as `fork.json`.

    A fork that is done is not run again, and one that was interrupted goes on, where everything
    agrees that they depend on (`identity`); what is compared with more null forks runs anew.
    Errors: usage, missing, integrity, storage.
    """
    parent = open_trajectory(runs, spec.parent)
    spec.check(parent)
    spec = spec.settled(parent)
    there = standing(spec, parent, again)
    if there.finished is not None:
        return there.finished
    require_intact(parent)
    if there.anew:
        clear(parent, spec.fork, identity_of(spec, parent))
    elif spec.probe_every is None:
        spec = dataclasses.replace(spec, name=spec.fork, probe_every=there.probe_every)
    return Fork(spec, parent, progress, anew=there.anew).run_to_end()
