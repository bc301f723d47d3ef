"""`replay blame`: from a spike to the step, sequence, document, token and tensor that caused it.

    result = blame(runs, "demo", 400)

Control → excess → influence → deletion curve against random removals → trials that tell data from
state → verdict. The result is kept as `blame-<step>.json` in the run's folder, its candidates as
rows of the table `blame`.
"""

from __future__ import annotations

import dataclasses
import math
import time
import typing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback, silent
from forensics.store.writer import replace_table, write_atomic
from forensics.train.header import now
from forensics.train.run import Run
from replay.blame import candidates, counterfactuals, sentences, verdict
from replay.blame.bisect import BUDGET, bisect
from replay.blame.blamed_step import the_spike
from replay.blame.candidates import Influences
from replay.blame.deletion import HALF, Suspect, deletion_curve, prove
from replay.blame.excess import BEFORE, WindowControl, clean_probes
from replay.blame.influence_text import CandidateText, text_pieces
from replay.blame.result import (
    AWAY,
    Bisection,
    BlamedStep,
    BlameResult,
    Candidate,
    Condition,
    CurvePoint,
    DocumentInfluence,
    Method,
    ProbeLoss,
    Proof,
    UpdateBlame,
)
from replay.blame.window_memory import require_memory
from replay.blame.window_replays import WindowReplays
from replay.forks.result import ControlResult
from replay.interventions.rows import Slot
from replay.lineage import lowest_state, open_trajectory, require_intact
from replay.step.update_split import layer_blame, line_scan, split_update
from replay.verify import Level

METHODS: tuple[Method, ...] = typing.get_args(Method)
WINDOW = 16  # steps before the spike
SHOWN = 16  # candidates in the result
REPLAYED = 4  # of them removed by themselves, where that takes replays
NEGLIGIBLE = 0.05  # share of the excess below which the state part is not gone into
RESCUE = 80  # replays of a bisection where influences find nothing
STALE_SHOWN = 8  # tensors
SEED = 0
# columns of the table `blame`, in their order
FROM_CANDIDATE = (
    "step",
    "slot",
    "sequence",
    "document",
    "source",
    "part",
    "influence",
    "replayed_effect",
)
COLUMNS = ("spike", "rank", *FROM_CANDIDATE, "method")


@dataclass(frozen=True)
class BlameOptions:
    """How a spike is gone into."""

    window: int | None = None  # steps; None: those of the last 16 since P's loss began to rise
    method: Method = "metagradient"
    placebos: int | None = None  # random removals; None: as many as the rule needs
    precision: str = "float32"  # of the metagradient: float32 | float64
    tokens: bool = False  # the candidates come with the influence of each token
    force: bool = False  # blame a step that no detector calls a spike


def blame(
    runs: Path,
    name: str,
    spike: int | None = None,
    options: BlameOptions = BlameOptions(),
    progress: ProgressCallback = silent,
) -> BlameResult:
    """Explain the spike at `spike` (the largest, where left out); return and keep the result.

    Ctrl-C during the search returns what is known so far, with `interrupted`. Errors: usage (no
    spike there, unless forced), missing (no state before it), memory (a window too long),
    integrity.
    """
    return investigate(runs, name, spike, options, progress).result


def investigate(
    runs: Path,
    name: str,
    spike: int | None = None,
    options: BlameOptions = BlameOptions(),
    progress: ProgressCallback = silent,
) -> Investigation:
    """Do as `blame` does; return what is known of the text of the candidates too."""
    if options.method not in METHODS:
        raise ForensicsError(
            "usage",
            f"wanted a method of {', '.join(METHODS)}, found {options.method!r}",
            "metagradient is the default",
        )
    if options.window is not None and options.window < 1:
        raise ForensicsError(
            "usage",
            f"wanted a window of at least 1 step, found {options.window}",
            f"the default is {WINDOW}",
        )
    run = open_trajectory(runs, name)
    blamed = the_spike(run, spike, options.force)
    first = _first_step(run, blamed.step, options.window or WINDOW)
    require_intact(run)
    if options.method == "metagradient":
        require_memory(run, blamed.step - first, options.precision)
    investigation = Investigation(run, blamed, first, options, progress)
    investigation.run_search()
    return investigation


def _first_step(run: Run, step: int, window: int) -> int:
    """Return the window's first step. Errors: missing, where no state lies before the spike."""
    first = max(lowest_state(run), step - window)
    if first >= step:
        raise ForensicsError(
            "missing",
            f"wanted a state of {run.name} before step {step}, found none: it starts at {first}",
            "blame a later spike",
        )
    return first


class _StepCount:
    """Steps done of the steps foreseen, for the bar."""

    def __init__(self, progress: ProgressCallback) -> None:
        self.progress, self.done, self.planned = progress, 0, 0

    def expect(self, steps: int) -> None:
        self.planned = self.done + steps

    def add(self, steps: int, note: str) -> None:
        self.done += steps
        self.planned = max(self.planned, self.done)
        self.progress(self.done, self.planned, note)


@dataclass
class _Evidence:
    """What the search has found so far; an interrupt loses none of it."""

    notes: list[str] = field(default_factory=list)
    curve: list[CurvePoint] = field(default_factory=list)
    bisection: Bisection | None = None
    condition: Condition | None = None
    tensors: UpdateBlame | None = None
    smallest: int | None = None
    effects: dict[Slot, float] = field(default_factory=dict)  # nats that go with one sequence
    ranked: list[Slot] = field(default_factory=list)  # sequences, most influential first


class Investigation:
    """One spike being explained: its control, replays and influences, and then its `result`."""

    result: BlameResult

    def __init__(
        self,
        run: Run,
        blamed: BlamedStep,
        first: int,
        options: BlameOptions,
        progress: ProgressCallback,
    ) -> None:
        """Replay the window from step `first` unaltered."""
        self.run, self.blamed, self.options = run, blamed, options
        self.steps = _StepCount(progress)
        self.started = time.perf_counter()
        self.evidence = _Evidence()
        S, length = blamed.step, blamed.step - first
        self.steps.expect(2 * (BEFORE + length) + 8 * length)
        probes = clean_probes(run, max(lowest_state(run), first - BEFORE))
        narrow = options.window is None
        self.control = WindowControl(run, first, S, probes, self.steps.add, narrow)
        self.first = self.control.begin
        self.replays = WindowReplays(self.control, self.steps.add)
        B, T = self.control.batch.weight.shape
        length = S - self.first
        self.influences = Influences(
            self.first, np.zeros((length + 1, B, T)), np.zeros((length + 1, B), bool)
        )
        self.influences.by_token[-1] = self.control.batch_influence().numpy()
        self.influences.known[-1] = True
        self.facts = verdict.Facts(
            blamed,
            self.control.report,
            self.control.recorded_absent(blamed),
            self.control.excess.loss,
            self.control.excess,
        )

    def run_search(self) -> None:
        """Search, judge, and keep the result. Errors: storage."""
        try:
            if not self.facts.absent:
                self._search()
        except KeyboardInterrupt:
            self.facts.interrupted = True
            if self.evidence.bisection is None and self.options.method != "bisect":
                self.evidence.ranked = self.influences.ranked(self.replays)
        self.result = self._result()
        self._keep()

    def candidate_text(self, candidate: Candidate) -> CandidateText:
        """Return the whole text of a candidate with the influence of each piece."""
        row = self.replays.row(candidate.step, candidate.slot)
        return CandidateText(candidate, text_pieces(self.replays, self.influences, row))

    # ---- the search

    def _search(self) -> None:
        excess = self.control.excess
        rising = verdict.rises(self.blamed, excess)
        method = self._method_that_can()
        if method == "bisect":
            if rising:
                self._bisect(BUDGET)
        else:
            self._measure_influences(method)
            self.evidence.ranked = self.influences.ranked(self.replays)
            if rising:
                self.steps.expect(40 * (self.blamed.step - self.first))
                self._remove()
                self._try_otherwise()
                self._bisect_where_helpless()
        if rising and excess.total * NEGLIGIBLE < excess.state < math.inf:
            self._take_update_apart()
        self._remove_one_by_one()

    def _method_that_can(self) -> Method:
        """Return the method to use: a gradient needs finite numbers."""
        if self.options.method != "bisect" and not math.isfinite(self.control.excess.total):
            self.evidence.notes.append(
                "The loss is not finite at the spike, so nothing can be differentiated: the window"
                " was bisected instead."
            )
            return "bisect"
        return self.options.method

    def _measure_influences(self, method: Method) -> None:
        excess = self.control.excess
        if method == "leave-one-out":
            self._leave_one_out()
        elif excess.state <= NEGLIGIBLE * max(excess.total, 0.0) and self.blamed.is_spike:
            self.evidence.notes.append(
                "The model had not become worse before the spike (state part "
                f"{sentences.nats(excess.state, signed=True)} nats), so only the spike's own batch"
                " was gone into."
            )
        else:
            self._metagradient()

    def _metagradient(self) -> None:
        from replay.blame.metagradient import influence
        from replay.blame.probe_target import probe_target

        counted = [0]

        def progress(done: int, total: int | None, note: str = "") -> None:
            self.steps.add(max(0, done - counted[0]), f"metagradient, {note}")
            counted[0] = done

        window_influence = influence(
            self.run,
            self.first,
            self.blamed.step,
            probe_target(self.run, self.control.probes.batch),
            start=self.control.state(self.first),
            precision=self.options.precision,
            tokens=True,
            progress=progress,
        )
        assert window_influence.by_token is not None, "tokens were asked for"
        self.influences.by_token[:-1] = window_influence.by_token
        self.influences.known[:-1] = True
        condition = self.evidence.condition = window_influence.condition
        if condition is not None and not condition.ok:
            float64 = "--float64, " if self.options.precision == "float32" else ""
            self.evidence.notes.append(
                f"{condition.sentence} Ways to do so: {float64}--method leave-one-out, --method"
                " bisect."
            )

    def _leave_one_out(self) -> None:
        rows = self.replays.rows(range(self.first, self.blamed.step))
        self.steps.expect(sum(self.blamed.step - row.step for row in rows))
        for i, row in enumerate(rows):
            note = f"leaving out sequence {i + 1} of {len(rows)}"
            effect = self.replays.excess_removed([row], note)
            self.evidence.effects[row] = effect
            k = row.step - self.first
            self.influences.by_token[k, row.slot] = effect / (row.last - row.first)
            self.influences.known[k, row.slot] = True
            if i % 64 == 63:
                self.evidence.ranked = self.influences.ranked(self.replays)

    def _remove(self) -> None:
        """Remove the most influential together, and each suspect; prove the best of them."""
        window = len(self.replays.rows(range(self.first, self.blamed.step + 1)))
        evidence, facts = self.evidence, self.facts
        facts.tried = 0

        def on_point(point: CurvePoint) -> None:
            evidence.curve.append(point)
            facts.tried = len(evidence.curve)
            facts.largest = max(facts.largest, point.excess_removed)

        evidence.smallest = deletion_curve(self.replays, evidence.ranked, window, SEED, on_point)
        best = evidence.smallest or (
            max(evidence.curve, key=lambda point: point.excess_removed).removed
            if evidence.curve
            else 0
        )
        suspects = candidates.suspects(self.replays, self.influences, window)
        facts_tried = len(suspects)
        strongest = Suspect("strongest", tuple(evidence.ranked[:best]), count=best)
        suspects = [suspect for suspect in (*suspects, strongest) if suspect.slots]
        removed = {
            suspect: self.replays.excess_removed(suspect.slots, f"without {suspect.words}")
            for suspect in suspects
        }
        facts.largest = max([facts.largest, *removed.values()])
        facts.tried += facts_tried
        enough = [s for s in suspects if removed[s] >= AWAY * self.control.excess.total]
        if suspects:
            self._prove(enough[0] if enough else max(suspects, key=lambda s: removed[s]))

    def _prove(self, suspect: Suspect) -> None:
        def on_proof(proof: Proof) -> None:
            self.facts.proof = proof

        proof = prove(self.replays, suspect, SEED + 1, self.options.placebos, on_proof)
        self.facts.proof = proof
        self.facts.documents = candidates.documents_in(self.replays, self.influences, proof.removal)

    def _bisect_where_helpless(self) -> None:
        """Where the most influential do not carry the spike, real replays look for what does."""
        proof, other_data = self.facts.proof, self.facts.trials.other_data
        if proof is not None and proof.excess_removed >= HALF * self.control.excess.total:
            return
        if other_data and all(trial.spikes for trial in other_data):
            return
        self.evidence.notes.append(
            "The most influential sequences do not carry the spike, so the window was bisected by"
            " real replays too."
        )
        self._bisect(RESCUE)

    def _bisect(self, budget: int) -> None:
        """Run delta debugging; its set is proved as any other."""
        evidence, facts = self.evidence, self.facts

        def on_smaller(removal: tuple[Slot, ...]) -> None:
            evidence.ranked = list(removal)
            facts.largest = max(facts.largest, self.replays.excess_removed(removal))

        self.steps.expect(budget * (self.blamed.step - self.first) // 3)
        bisection = evidence.bisection = bisect(self.replays, budget, on_smaller)
        facts.tried = max(facts.tried, self.replays.replays)
        if bisection is None:
            evidence.notes.append(
                "The spike stays though all data of the window are replaced by others."
            )
            if not facts.trials.other_data:
                self._try_otherwise()
            return
        if not bisection.complete:
            evidence.notes.append(
                f"Bisection ended after its budget of {budget} replays: the set may not be the"
                " smallest."
            )
        evidence.ranked = list(bisection.removal)
        count = len({(slot.step, slot.slot) for slot in bisection.removal})
        self._prove(Suspect("bisection", bisection.removal, count=count))
        self._try_otherwise()

    def _try_otherwise(self) -> None:
        """Tell data from state by the trials.

        They start at the first touched step where a set takes the spike away, else at the window's.
        """
        proof, S = self.facts.proof, self.blamed.step
        proved = proof is not None and proof.away
        first = self.replays.first_step(proof.removal) if proof and proved else self.first
        other_data = counterfactuals.other_data(self.replays, first)
        self.facts.trials = dataclasses.replace(self.facts.trials, other_data=other_data)
        self.facts.stale = counterfactuals.stale_tensors(self.run, min(first, S - 1), S)
        if all(trial.spikes for trial in other_data):
            self.facts.trials = dataclasses.replace(
                self.facts.trials, steady_rate=counterfactuals.steady_rate(self.replays)
            )
            first = self.first
        elif proof is not None and proof.causal:
            self.facts.trials = dataclasses.replace(
                self.facts.trials, other_states=counterfactuals.other_states(self.replays, first)
            )
        else:
            return
        self.facts.trials = dataclasses.replace(
            self.facts.trials, up_to_date=counterfactuals.up_to_date(self.replays, first)
        )

    def _take_update_apart(self) -> None:
        """Take the update after which P's loss rose most apart, by tensor."""
        run, control = self.run, self.control
        update = control.worst_update()
        before, after = control.state(update).clone(), control.state(update + 1)
        split = split_update(before, after, run.policy(before.counters), run.model, run.stream)

        def progress(done: int, total: int | None, note: str = "") -> None:
            self.steps.add(0, f"tensors, {note}")

        layers = layer_blame(run, split, control.batch, progress)
        tensors = layers.tensors
        if layers.rise_probe is not None:
            tensors = tuple(sorted(tensors, key=lambda tensor: -(tensor.alone_probe or 0.0)))
        self.evidence.tensors = UpdateBlame(
            **{f.name: getattr(layers, f.name) for f in dataclasses.fields(layers)}
            | {"tensors": tensors},
            update=update,
            stale=self.facts.stale[:STALE_SHOWN],
            line=line_scan(run, split, control.batch),
            batch=self.blamed.step,
        )

    def _remove_one_by_one(self) -> None:
        """Remove the strongest one by one; those of batch S cost nothing."""
        replayed, effects = 0, self.evidence.effects
        for row in self._strongest()[:SHOWN]:
            if row in effects:
                continue
            if row.step < self.blamed.step:
                replayed += 1
                if replayed > REPLAYED:
                    continue
            effects[row] = self.replays.excess_removed([row], "one by one")

    # ---- the result

    def _proved_slots(self) -> tuple[Slot, ...]:
        proof = self.facts.proof
        return proof.removal if proof is not None and proof.causal else ()

    def _strongest(self) -> list[Slot]:
        """List sequences by influence, those of the proved set before all others."""
        ranked = self.evidence.ranked
        rows = list(dict.fromkeys(self.replays.row(slot.step, slot.slot) for slot in ranked))
        proved = {(slot.step, slot.slot) for slot in self._proved_slots()}
        return sorted(rows, key=lambda row: (row.step, row.slot) not in proved)

    def _documents(self) -> list[DocumentInfluence]:
        """List documents by influence, those of the proved set before all others."""
        bisection = self.evidence.bisection
        window = range(self.first, self.blamed.step + 1)
        rows = bisection.removal if bisection else self.replays.rows(window)
        documents = candidates.by_document(self.replays, self.influences, rows)
        proved = {
            document.document
            for document in candidates.by_document(
                self.replays, self.influences, self._proved_slots()
            )
        }
        return sorted(documents, key=lambda document: document.document not in proved)

    def _result(self) -> BlameResult:
        facts, control, replays, evidence = self.facts, self.control, self.replays, self.evidence
        judgement = verdict.judge(facts)
        documents = self._documents()
        level: Level = "exact" if control.report.bitwise else "reproduces"
        level = "absent" if facts.absent else level
        return BlameResult(
            run=self.run.name,
            spike=self.blamed,
            window=(self.first, self.blamed.step),
            before=control.first,
            method=self.options.method,
            control=ControlResult(level, control.report.bitwise, control.report.sentence()),
            probes=control.probes.words,
            excess=control.excess,
            verdict=judgement.verdict,
            reason=judgement.reason,
            sentence=sentences.sentence(judgement, facts),
            p=facts.proof.p if facts.proof else None,
            proof=facts.proof,
            candidates=tuple(self._candidate(row) for row in self._strongest()[:SHOWN]),
            documents=tuple(documents[:SHOWN]),
            sources=tuple(candidates.by_source(documents)),
            smallest=evidence.smallest,
            deletion_curve=tuple(evidence.curve),
            bisection=evidence.bisection,
            trials=facts.trials,
            tensors=evidence.tensors,
            condition=evidence.condition,
            notes=tuple(evidence.notes),
            probe_losses=tuple(ProbeLoss(*pair) for pair in sorted(control.probe.items())),
            replays=1 + replays.replays,
            steps_replayed=self.blamed.step + 1 - control.start + replays.steps,
            interrupted=facts.interrupted,
            seconds=time.perf_counter() - self.started,
            created=now(),
        )

    def _candidate(self, row: Slot) -> Candidate:
        effect = self.evidence.effects.get(row)
        return candidates.candidate(self.replays, self.influences, row, effect, self.options.tokens)

    def _keep(self) -> None:
        """Write `blame-<step>.json`, and the candidates as rows; those of other spikes stay."""
        S, result = self.blamed.step, self.result
        write_atomic(self.run.folder / f"blame-{S}.json", result.to_json())
        rows = [row for row in self.run.table("blame").to_pylist() if row["spike"] != S]
        for rank, candidate in enumerate(result.candidates):
            row = {"spike": S, "rank": rank, "method": self.options.method}
            rows.append(row | {name: getattr(candidate, name) for name in FROM_CANDIDATE})
        columns = {name: [row[name] for row in rows] for name in COLUMNS}
        replace_table(self.run.folder, "blame", columns)
