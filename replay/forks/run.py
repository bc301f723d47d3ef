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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from forensics.interrupt import Interruptible
from forensics.observe.recorder import Recorder
from forensics.progress import ProgressCallback as Progress
from forensics.progress import silent
from forensics.step.state import TrainState
from forensics.store.writer import Writer, link_table, replace_table, write_atomic
from forensics.train import checkpoint
from forensics.train.header import now, write_header
from forensics.train.run import Run
from replay.compare import distances, null_test
from replay.compare.loss_barrier import barrier, probe_loss
from replay.compare.probe_sequences import Probe, Reading, unseen
from replay.forks import resume
from replay.forks.identity import clear, identity_of, standing
from replay.forks.lockstep import Arm, arm_from, step_all
from replay.forks.result import (
    RESULT_FILE,
    BarrierHeight,
    ControlResult,
    DivergenceRow,
    FirstDifference,
    ForkEnd,
    ForkResult,
    UnseenGap,
)
from replay.forks.spec import Spec
from replay.interventions.base import Intervention
from replay.interventions.placebo import placebos_of
from replay.interventions.registry import to_dict
from replay.interventions.state import UnitInLastPlace
from replay.lineage import open_trajectory, require_intact
from replay.verify import Report, Witness

FLUSH_S = 1.0  # seconds of the clock after which what was measured is written, for those who watch
UNSEEN = 32  # sequences
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
    """One fork being run; `go` returns what `fork.json` keeps. Interrupted, it goes on when it is
    made again.
    """

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
        self.recorder = Recorder(self.writer, record, parent.model, parent.header.device == "cpu")
        self.every = spec.steps_between_probes
        self.placebos_exist = True
        self.notes: dict[str, Any] = {
            "difference": None,
            "series": {},
            "probed": [],
            "rows": [],
            "barriers": [],
        }
        start = parent.state_at(spec.first)
        self.start = start.params
        self.arms = self._arms(start)
        streams = [arm.stream for arm in self.arms.values()]
        self.probe = Probe(parent)
        self.unseen = Probe(parent, ids=unseen(parent, streams, spec.first, spec.last, UNSEEN))
        self.witness = Witness(parent, spec.first, min(spec.last, parent.header.steps))
        self.readings: dict[str, Reading] = {}
        self.unseen_readings: dict[str, Reading] = {}
        self.first = spec.first if anew else self._taken_up()
        if self.first == spec.first:
            resume.clear(self.run.folder)
            self.writer.truncate(0)

    def run_to_end(self) -> ForkResult:
        """Step all arms to the end of the window; Ctrl-C saves them first."""
        spec, control = self.spec, self.arms["control"]
        if self.first == spec.first:
            self._save(self.arms["fork"].state, "first")
        keep_every, flush_every = (
            self.parent.recipe.checkpoint.every,
            self.parent.recipe.record.flush_every,
        )
        try:
            with Interruptible() as interrupt:
                for step in range(self.first, spec.last):
                    results = step_all(self.arms, self.parent.model)
                    if step < self.witness.last:
                        self.witness.see(control.state, results["control"])
                    self._compare(step + 1)
                    steps_done = step + 1 - spec.first
                    self.progress(steps_done, spec.last - spec.first, f"{len(self.arms)} arms")
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
            self._save(self.arms["fork"].state, "last")
        finally:
            with self.distances, self.writer:
                self.recorder.commit()
        result = self._result(self.witness.report())
        self._keep(result)
        resume.clear(self.run.folder)
        return result

    def _arms(self, start: TrainState) -> dict[str, Arm]:
        """Start control, fork, placebo-<i>, chaos-<i> from one state, moved where they say so."""
        spec, parent = self.spec, self.parent
        arms = {
            "control": arm_from(start, parent),
            "fork": arm_from(start, parent, spec.interventions, self.recorder),
        }
        for i, null in enumerate(self._placebos()):
            arms[f"placebo-{i}"] = arm_from(start, parent, null)
        for i in range(spec.chaos):
            arms[f"chaos-{i}"] = arm_from(start, parent, (UnitInLastPlace(spec.seed + i),))
        return arms

    def _placebos(self) -> list[tuple[Intervention, ...]]:
        """Interventions of the placebos, no two the same: one that comes twice says no more than
        once.
        """
        spec, run = self.spec, self.parent
        placebos: list[tuple[Intervention, ...]] = []
        for seed in range(spec.seed, spec.seed + 4 * spec.placebos):
            null = placebos_of(spec.interventions, run, spec.first, spec.last, seed)
            if not null:
                self.placebos_exist = False
                break
            if null not in placebos:
                placebos.append(null)
            if len(placebos) == spec.placebos:
                break
        return placebos

    def _compare(self, state: int) -> None:
        """Distances of every arm from the control; probes and barriers where they are due."""
        spec, notes, control = self.spec, self.notes, self.arms["control"].state.params
        params_of = {name: arm.state.params for name, arm in self.arms.items() if name != "control"}
        probing = (state - spec.first) % self.every == 0 or state == spec.last
        read, fresh = {}, {}
        if probing and self.probe.sequences:
            read = self.readings = self.probe.read(control, params_of)
        if probing and self.unseen.sequences:
            fresh = self.unseen_readings = self.unseen.read(control, params_of)
        if read or fresh:
            notes["probed"].append(state)
        if notes["difference"] is None:
            difference = distances.first_difference(params_of["fork"], control)
            notes["difference"] = {"step": state - 1, **difference} if difference else None
        for name, params in params_of.items():
            d = distances.distance(params, control, self.start)
            gap = read[name].loss - read["control"].loss if read else None
            unseen_gap = fresh[name].loss - fresh["control"].loss if fresh else None
            kl = (read or fresh)[name].logit_kl if read or fresh else None
            height = self._barrier(state, name, params, control) if state in spec.barrier else None
            names = list(d.l2)
            measures = {
                "loss_gap": gap,
                "unseen_gap": unseen_gap,
                "logit_kl": kl,
                "barrier": height,
            }
            self.distances.append(
                "divergence",
                step=state,
                arm=name,
                tensor=names,
                layer=[distances.layer_of(n) for n in names],
                l2=[d.l2[n] for n in names],
                cosine=[d.cosine[n] for n in names],
                **{
                    key: [value if n == "" else None for n in names]
                    for key, value in measures.items()
                },
            )
            series = notes["series"].setdefault(name, {"l2": [], "kl": [], "cosine": []})
            series["l2"].append(d.l2[""])
            series["cosine"].append(d.cosine[""])
            if kl is not None:
                series["kl"].append(kl)
            if name == "fork":
                notes["rows"].append({"step": state, **measures, "l2": d.l2[""]})

    def _barrier(
        self, state: int, arm: str, params: dict[str, Any], control: dict[str, Any]
    ) -> float:
        highest = barrier(params, control, probe_loss(self.parent))
        self.notes["barriers"].append(
            {"step": state, "arm": arm, "height": highest.height, "alpha": highest.alpha}
        )
        return highest.height

    def _keep_halfway(self, step: int) -> None:
        self.recorder.commit()
        self.writer.drain()
        self.distances.drain()
        states = {name: arm.state for name, arm in self.arms.items()}
        witness = self.witness
        notes = self.notes | {
            "witness": {
                "losses": list(witness.losses.items()),
                "compared": witness.compared,
                "gap": witness.gap,
                "difference": witness.difference,
            }
        }
        resume.save(
            self.run.folder,
            self.identity.to_document(),
            step,
            states,
            self.run.shape,
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
            list(self.arms),
            self.parent.header.device,
        )
        if saved is None:
            return self.spec.first
        step, states, notes = saved
        for name, arm in self.arms.items():
            arm.state = states[name]
        witnessed = notes.pop("witness")
        witness = self.witness
        witness.losses = {int(s): loss for s, loss in witnessed["losses"]}
        witness.compared, witness.gap, witness.difference = (
            witnessed["compared"],
            witnessed["gap"],
            witnessed["difference"],
        )
        self.notes = notes
        self.writer.truncate(step)
        return step

    def _result(self, report: Report) -> ForkResult:
        spec, series = self.spec, self.notes["series"]
        fork = series["fork"]
        nulls = [series[name] for name in self.arms if name.startswith("placebo-")]
        # without any set to probe on, only the parameters can be compared
        measure = "kl" if fork["kl"] else "l2"
        steps = (
            self.notes["probed"] if measure == "kl" else list(range(spec.first + 1, spec.last + 1))
        )
        effect = null_test.judge_effect(
            fork[measure][-1], [null[measure][-1] for null in nulls], self.placebos_exist
        )
        reconverged = null_test.time_to_reconverge(
            steps, fork[measure], [null[measure] for null in nulls], spec.first
        )
        final = ForkEnd(
            **_losses(self.readings, self.arms),
            probe_sequences=self.probe.sequences,
            unseen=UnseenGap(
                **_losses(self.unseen_readings, self.arms), sequences=self.unseen.sequences
            ),
            logit_kl=fork["kl"][-1] if fork["kl"] else None,
            l2=fork["l2"][-1],
            cosine=fork["cosine"][-1],
            measure="logit_kl" if measure == "kl" else "l2",
            effect=effect.effect,
            p=effect.p,
            placebos=effect.placebos,
            causal=effect.causal,
            finding=effect.finding,
            verdict=effect.sentence(),
            placebo_largest=effect.largest,
        )
        difference = self.notes["difference"]
        return ForkResult(
            fork=spec.fork,
            parent=spec.parent,
            first=spec.first,
            last=spec.last,
            does=spec.sentence(),
            interventions=tuple(to_dict(i) for i in spec.interventions),
            placebos=len(nulls),
            placebos_asked=spec.placebos,
            chaos=spec.chaos,
            control=ControlResult(report.level, report.bitwise, report.sentence()),
            first_difference=FirstDifference(**difference) if difference else None,
            final=final,
            time_to_reconverge=reconverged,
            censored=f"> {spec.last - spec.first}" if nulls and reconverged is None else None,
            barriers=tuple(BarrierHeight(**row) for row in self.notes["barriers"]),
            divergence=tuple(DivergenceRow(**row) for row in self.notes["rows"]),
            seconds=time.perf_counter() - self.started,
        )

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
        header = dataclasses.replace(
            parent.header,
            name=spec.fork,
            first_step=spec.first,
            steps=spec.last,
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


def _losses(readings: dict[str, Reading], arms: Iterable[str]) -> dict[str, Any]:
    """Compute the fields of a LossGap from the last readings of one set."""
    if not readings:
        return {}
    control, fork = readings["control"], readings["fork"]
    gaps = fork.by_sequence - control.by_sequence
    return {
        "loss_control": control.loss,
        "loss_fork": fork.loss,
        "loss_error": float(gaps.std(ddof=1) / math.sqrt(len(gaps))) if len(gaps) > 1 else None,
        "placebo_loss_gaps": tuple(
            readings[name].loss - control.loss for name in arms if name.startswith("placebo-")
        ),
    }


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
