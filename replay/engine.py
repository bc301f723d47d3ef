"""The replay engine: verify a window, and run a fork beside its control.

Fork, control and null forks advance in lock-step from one start, each by its own stream and policy, all by the one
`advance`. The control is held against the parent's rows; where it does not match, the fork still runs and everything
it says is marked *tolerance only*.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forensics.errors import ForensicsError
from forensics.observe.recorder import Recorder
from forensics.progress import Report as Progress
from forensics.progress import silent
from forensics.store.writer import Writer, link_table, replace_table, write_atomic
from forensics.train import checkpoint
from forensics.train.advance import SILENT, BatchStream, Observer, advance
from forensics.train.loop import now
from forensics.train.run import Run, write_header
from forensics.train.schedule import Policy
from forensics.train.state import TrainState
from replay import compare
from replay.compare import Probe, Report, Witness
from replay.interventions import Intervention, UnitInLastPlace, composed, to_dict
from replay.spec import Spec
from replay.trajectory import open_trajectory, require_intact

RESULT = "fork.json"


def verify(runs: Path, name: str, first: int, last: int, progress: Progress = silent) -> tuple[Report, int]:
    """Replay first:last unaltered and compare every bit and every recorded loss; writes a certificate.

    Returns the report and the last step that was replayed, which lies further where no digest was recorded at `last`.
    Errors: usage, missing, integrity.
    """
    run = open_trajectory(runs, name)
    if not 0 <= first < last <= run.header.steps:
        raise ForensicsError(
            "missing", f"wanted a window of {name}, found {first}:{last}", f"it has steps 0 to {run.header.steps}"
        )
    trained = run.last_step()
    if last > trained:
        raise ForensicsError(
            "missing", f"{name} has been trained to step {trained}, not to {last}", f"verify up to {trained}"
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
    witness.recorded |= compare.recorded_steps(run, origin, first)
    state = run.state_at(first, after)
    if state.counters.step < run.header.first_step:
        raise ForensicsError("usage", f"{name} is a fork that starts at {run.header.first_step}, found {first}",
                             f"verify its own window, or its parent {run.header.parent}")  # fmt: skip
    run.replay(state, end, after=after)
    report = witness.report()
    certify(run, first, end, report, "verify")
    return report, end


def _last_with_digest(run: Run, first: int, last: int) -> int:
    """`last`, or the next checkpoint where no digest of that state was recorded."""
    row = compare.recorded_steps(run, last - 1, last).get(last - 1)
    if row is not None and row["state_digest"] is not None:
        return last
    later = [s for s in run.saved_steps() if s >= last]
    return later[0] if later else last


def certify(run: Run, first: int, last: int, report: Report, source: str) -> None:
    """Write what was proven to the run's `certificates`."""
    with Writer(run.folder) as writer:
        writer.append(
            "certificates", first=first, last=last, bitwise=report.bitwise, level=report.level, compared=report.compared,
            first_difference=report.first_difference["step"] if report.first_difference else None,
            max_abs_difference=report.max_abs_difference, fingerprint_equal=report.fingerprint_equal,
            fingerprint=json.dumps(run.fingerprint()), source=source, created=now(),
        )  # fmt: skip


@dataclass
class Arm:
    """One trajectory among those that advance in lock-step."""

    name: str  # control | fork | placebo-<i> | chaos-<i>
    state: TrainState
    stream: BatchStream
    policy: Policy
    watch: Observer = SILENT


def plan(spec: Spec, runs: Path) -> dict[str, Any]:
    """What a fork would do, without a step of it: the steps and sequences that differ, hours and memory."""
    run = open_trajectory(runs, spec.parent)
    spec.check(run)
    touched = [slot for i in spec.interventions for slot in i.touches(run, run.stream)]
    rows = run.table("steps", ["step", "seconds"])
    seconds = float(np.median(rows["seconds"].to_numpy())) if rows.num_rows else math.nan
    arms = 2 + spec.placebos + spec.chaos
    lead = spec.first - (run.checkpoint_before(spec.first) if spec.first >= run.header.first_step else 0)
    steps = (spec.last - spec.first) * arms + lead
    by_step: dict[int, int] = {}
    for step, _ in {(slot.step, slot.slot) for slot in touched}:
        by_step[step] = by_step.get(step, 0) + 1
    return {
        "fork": spec.fork, "parent": spec.parent, "from": spec.first, "to": spec.last, "does": spec.sentence(),
        "interventions": [to_dict(i) for i in spec.interventions], "arms": arms,
        "sequences": sum(by_step.values()), "sequences_by_step": by_step,
        "tokens": sum(slot.last - slot.first for slot in touched),
        "documents": sorted({d for i in spec.interventions for d in getattr(i, "documents", ())}),
        "steps_to_compute": steps, "hours": steps * seconds / 3600,
        "memory_bytes": arms * 3 * 4 * run.header.parameters,
    }  # fmt: skip


def fork(spec: Spec, runs: Path, progress: Progress = silent, *, again: bool = False) -> dict[str, Any]:
    """Run a fork with its control and null forks; returns and keeps `fork.json`. A fork that is done is not run again.

    Errors: usage, missing, integrity, storage.
    """
    parent = open_trajectory(runs, spec.parent)
    spec.check(parent)
    done = runs / spec.fork / RESULT
    if done.is_file() and not again:
        kept = json.loads(done.read_bytes())
        if kept["placebos"] >= spec.placebos and kept["chaos"] >= spec.chaos:
            return kept
    require_intact(parent)
    return Fork(spec, parent, progress).go()


class Fork:
    """One fork being run; `go` returns what `fork.json` keeps."""

    def __init__(self, spec: Spec, parent: Run, progress: Progress) -> None:
        self.spec, self.parent, self.progress = spec, parent, progress
        self.started = time.perf_counter()
        self.run = self._create()
        self.writer = Writer(self.run.folder, background=True)
        self.writer.truncate(0)
        record = dataclasses.replace(parent.recipe.record, level=spec.record)
        self.recorder = Recorder(self.writer, record, parent.model, parent.header.device == "cpu")
        self.probe = Probe(parent)
        self.every = spec.probe_every or max(1, (spec.last - spec.first) // 20)
        self.placebo_words: list[str] = []
        self.difference: dict[str, Any] | None = None
        self.series: dict[str, dict[str, list[float]]] = {}
        self.probed: list[int] = []
        self.rows: list[dict[str, Any]] = []

    def go(self) -> dict[str, Any]:
        spec, model = self.spec, self.parent.model
        witness = Witness(self.parent, spec.first, min(spec.last, self.parent.header.steps))
        arms = self._arms()
        control = arms[0]
        start = {name: t.clone() for name, t in control.state.params.items()}
        self._save(arms[1].state, "first")
        last_readings: dict[str, compare.Reading] = {}
        try:
            for step in range(spec.first, spec.last):
                for arm in arms:
                    policy = arm.policy(arm.state.counters)
                    batch = arm.stream(step) if policy.update != "none" else None
                    result = advance(arm.state, batch, policy, model, arm.watch)
                    if arm is control and step < witness.last:
                        witness.see(control.state, result)
                probing = self.probe.sequences and ((step + 1 - spec.first) % self.every == 0 or step + 1 == spec.last)
                if probing:
                    last_readings = self.probe.read(control.state.params, {a.name: a.state.params for a in arms[1:]})
                    self.probed.append(step + 1)
                self._compare(step + 1, arms, start, last_readings if probing else {})
                if (step + 1) % self.parent.recipe.record.flush_every == 0:
                    self.writer.flush()
                self.progress(step + 1 - spec.first, spec.last - spec.first, f"{len(arms)} arms")
            self.recorder.commit()
            self.writer.drain()
            self._save(arms[1].state, "last")
        finally:
            self.recorder.commit()
            self.writer.close()
        return self._result(witness.report(), last_readings, arms)

    def _arms(self) -> list[Arm]:
        """Control, fork, placebos, chaos: all from the same state, moved by state interventions where they have any."""
        spec, run = self.spec, self.parent
        start = run.state_at(spec.first)
        arms = [self._arm("control", start, ()), self._arm("fork", start, spec.interventions, self.recorder)]
        for i in range(spec.placebos):
            null = tuple(
                p
                for p in (x.placebo(run, run.stream, spec.first, spec.last, spec.seed + i) for x in spec.interventions)
                if p
            )
            if not null:
                self.placebo_words.append("these interventions have no placebo: the same on other data does not exist")
                break
            arms.append(self._arm(f"placebo-{i}", start, null))
        arms += [self._arm(f"chaos-{i}", start, (UnitInLastPlace(spec.seed + i),)) for i in range(spec.chaos)]
        return arms

    def _arm(
        self, name: str, start: TrainState, interventions: tuple[Intervention, ...], watch: Observer = SILENT
    ) -> Arm:
        state = start.clone()
        for intervention in interventions:
            intervention.state(state, self.parent)
        return Arm(name, state, *composed(interventions, self.parent), watch)

    def _compare(self, step: int, arms: list[Arm], start: dict[str, Any], readings: dict[str, compare.Reading]) -> None:
        control = arms[0].state.params
        if self.difference is None:
            found = compare.first_difference(arms[1].state.params, control)
            self.difference = {"step": step - 1, **found} if found else None
        for arm in arms[1:]:
            d = compare.distance(arm.state.params, control, start)
            reading = readings.get(arm.name)
            gap = reading.loss - readings["control"].loss if reading else None
            kl = reading.logit_kl if reading else None
            names = list(d.l2)
            self.writer.append(
                "divergence", step=step, arm=arm.name, tensor=names, l2=[d.l2[n] for n in names], cosine=[d.cosine[n] for n in names],
                loss_gap=[gap if n == "" else None for n in names], logit_kl=[kl if n == "" else None for n in names],
            )  # fmt: skip
            kept = self.series.setdefault(arm.name, {"l2": [], "kl": [], "cosine": []})
            kept["l2"].append(d.l2[""])
            kept["cosine"].append(d.cosine[""])
            if kl is not None:
                kept["kl"].append(kl)
            if arm.name == "fork":
                self.rows.append({"step": step, "loss_gap": gap, "logit_kl": kl, "l2": d.l2[""]})

    def _result(self, report: Report, readings: dict[str, compare.Reading], arms: list[Arm]) -> dict[str, Any]:
        spec, own = self.spec, self.series["fork"]
        nulls = [self.series[a.name] for a in arms if a.name.startswith("placebo-")]
        measure = "kl" if own["kl"] else "l2"  # without a probe set, only the parameters can be compared
        steps = self.probed if measure == "kl" else list(range(spec.first + 1, spec.last + 1))
        effect = compare.effect(own[measure][-1], [n[measure][-1] for n in nulls])
        reconverged = compare.time_to_reconverge(steps, own[measure], [n[measure] for n in nulls], spec.first)
        fork_, control = readings.get("fork"), readings.get("control")
        gaps = fork_.by_sequence - control.by_sequence if fork_ and control else np.array([])
        placebo_gaps = (
            [readings[a.name].loss - control.loss for a in arms if a.name.startswith("placebo-")] if control else []
        )
        words = self.placebo_words[0] if self.placebo_words else effect.words
        result = {
            "fork": spec.fork, "parent": spec.parent, "from": spec.first, "to": spec.last, "does": spec.sentence(),
            "interventions": [to_dict(i) for i in spec.interventions], "placebos": len(nulls), "chaos": spec.chaos,
            "control": {"level": report.level, "bitwise": report.bitwise, "sentence": report.sentence()},
            "first_difference": self.difference,
            "final": {
                "loss_control": control.loss if control else None, "loss_fork": fork_.loss if fork_ else None,
                "loss_error": float(gaps.std(ddof=1) / math.sqrt(len(gaps))) if len(gaps) > 1 else None,
                "logit_kl": fork_.logit_kl if fork_ else None, "l2": own["l2"][-1], "cosine": own["cosine"][-1],
                "measure": "logit_kl" if measure == "kl" else "l2",
                "effect": effect.effect, "p": effect.p, "placebos": effect.placebos, "causal": effect.causal, "verdict": words,
                "placebo_largest": effect.largest, "placebo_loss_gaps": placebo_gaps, "probe_sequences": self.probe.sequences,
            },
            "time_to_reconverge": reconverged,
            "censored": f"> {spec.last - spec.first}" if nulls and reconverged is None else None,
            "divergence": self.rows,
            "seconds": time.perf_counter() - self.started,
        }  # fmt: skip
        self._keep(result)
        return result

    def _keep(self, result: dict[str, Any]) -> None:
        final, run = result["final"], self.run
        replace_table(run.folder, "forks", {k: [v] for k, v in {
            "fork": result["fork"], "parent": result["parent"], "first": result["from"], "last": result["to"],
            "interventions": json.dumps(result["interventions"]), "sentence": result["does"],
            "control_level": result["control"]["level"], "control_bitwise": result["control"]["bitwise"],
            **{k: final[k] for k in ("loss_control", "loss_fork", "loss_error", "probe_sequences", "logit_kl", "l2", "cosine", "placebos", "effect", "p")},
            "chaos": result["chaos"], "time_to_reconverge": result["time_to_reconverge"], "created": now(),
        }.items()})  # fmt: skip
        write_atomic(run.folder / RESULT, (json.dumps(_finite(result), indent=1) + "\n").encode())
        write_header(run.runs, dataclasses.replace(run.header, status="finished"))

    def _create(self) -> Run:
        spec, parent = self.spec, self.parent
        fingerprint = parent.fingerprint()
        header = dataclasses.replace(
            parent.header, name=spec.fork, first_step=spec.first, steps=spec.last, parent=spec.parent, parent_step=spec.first,
            interventions=[to_dict(i) for i in spec.interventions], fingerprint=fingerprint, created=now(),
            git_commit=fingerprint["git_commit"], status="running",
        )  # fmt: skip
        from forensics.store.reader import check_run_name

        check_run_name(spec.fork)
        if (parent.runs / spec.fork / "run.json").is_file() and open_trajectory(
            parent.runs, spec.fork
        ).header.parent is None:
            raise ForensicsError(
                "usage", f"wanted a new fork, found a run called {spec.fork!r}", "give it another --name"
            )
        write_header(parent.runs, header)
        link_table(parent.runs / spec.fork, "documents", parent.corpus.folder / "documents.parquet")
        return open_trajectory(parent.runs, spec.fork)

    def _save(self, state: TrainState, reason: str) -> None:
        path, digest, size = checkpoint.save(
            self.run.folder / "checkpoints",
            state,
            self.run.shape,
            self.run.corpus.folder / "tokenizer.json",
            self.run.header.eot,
        )
        self.writer.append("checkpoints", step=state.counters.step, path=str(path.relative_to(self.run.folder)), digest=digest,
                           bytes=size, reason=reason, created=now())  # fmt: skip


def _finite(value: Any) -> Any:
    """JSON has no NaN and no inf: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, (list, tuple)) else value
