"""`replay blame --of grad_norm`: which sequences made the gradient norm of a batch spike?

    result = blame_norm(runs, "demo", 400)

Control → excess over ordinary batches, of the batch and of the state → each sequence's share of the
norm → the strongest left out, and the norm computed again: exact, no replay → the same on ordinary
batches, and as many random sequences → the same batch at an earlier state → where the state has a
part, the batches before, by replay. Kept as `norm-<step>.json` in the run's folder.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from forensics.detect.windows import MAD_TO_SIGMA, smallest_scale
from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback, silent
from forensics.step.batch import Batch
from forensics.step.result import StepResult
from forensics.step.state import TrainState
from forensics.store.writer import write_atomic
from forensics.train.header import now
from forensics.train.run import Run
from forensics.visible import visible
from replay.blame.blamed_step import the_spike
from replay.blame.candidates import EXCERPT, Influences, by_document, by_source, document_spans
from replay.blame.norm.batch_norm import BatchNorm, Params
from replay.blame.norm.removals import Removals, largest_fall, sets_to_try
from replay.blame.norm.result import (
    NormBlameResult,
    NormCandidate,
    NormExcess,
    NormPoint,
    NormProof,
    NormReason,
)
from replay.blame.norm.sentences import sentence
from replay.blame.query.removal_test import choose_sets, try_removal
from replay.blame.query.replays import TargetReplays
from replay.blame.query.result import RemovalTest
from replay.blame.result import BlamedStep, Verdict
from replay.blame.window_memory import require_memory
from replay.compare.null_test import ENOUGH_P
from replay.forks.result import ControlResult
from replay.interventions.rows import Slot
from replay.lineage import lowest_state, open_trajectory, require_intact, root
from replay.verify import Witness

WINDOW = 16  # steps before S: A is the state before them
ORDINARY = 19  # ordinary batches at θ_S: p ≤ 0.05 needs so many
BEFORE = 8  # ordinary batches at θ_A, for the median alone
HALF = 0.5  # of the excess that a cause must carry; of a spike's height that it must reach
AWAY = 0.75  # of the excess whose going takes the spike away
SIGMAS = 6.0  # of ordinary batches, from which a step that no detector calls a spike is one
NEGLIGIBLE = 0.05  # of the excess below which the state part is not gone into
FACTOR = 2.0  # by which a control that is not exact may miss the recorded norm
SHOWN = 16  # candidates
SEED = 0


def blame_norm(
    runs: Path,
    name: str,
    spike: int | None = None,
    force: bool = False,
    progress: ProgressCallback = silent,
) -> NormBlameResult:
    """Explain a spike of the gradient norm; return and keep the result.

    Ctrl-C during the search returns what is known so far. Errors: usage (no spike there, unless
    forced), missing, memory, integrity, storage.
    """
    run = open_trajectory(runs, name)
    blamed = the_spike(run, spike, force, "grad_norm")
    require_intact(run)
    search = NormSearch(run, blamed, progress)
    search.run_search()
    write_atomic(run.folder / f"norm-{blamed.step}.json", search.result.to_json())
    return search.result


@dataclass
class _Evidence:
    curve: list[NormPoint] = field(default_factory=list)
    proof: NormProof | None = None
    before: RemovalTest | None = None
    other_state: float | None = None
    effects: dict[Slot, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False


class NormSearch:
    """One spike of the gradient norm being explained, and then its `result`."""

    result: NormBlameResult

    def __init__(self, run: Run, blamed: BlamedStep, progress: ProgressCallback) -> None:
        """Replay the window unaltered, and measure batch S beside ordinary ones."""
        self.run, self.blamed, self.progress = run, blamed, progress
        self.started, self.done, self.replays = time.perf_counter(), 0, 1
        self.evidence = _Evidence()
        S = blamed.step
        self.first = max(lowest_state(run), S - WINDOW)
        self.start, self.end, self.control = self._control(S)
        self.gradient = BatchNorm(run, self.end.counters)
        self.batch = run.stream(S)
        self.ordinary_batches = _ordinary(run, self.first, ORDINARY)
        self.ordinary = [self._norm(self.end.params, batch) for batch in self.ordinary_batches]
        self.removals = Removals(run, self.gradient, self.end.params, self.batch, S, self._pass)
        self.excess = self._excess()

    def run_search(self) -> None:
        """Search, judge, and tell."""
        try:
            if self._spikes():
                self._search()
        except KeyboardInterrupt:
            self.evidence.interrupted = True
        self.result = sentence(self._result())

    def _pass(self, note: str) -> None:
        self.done += 1
        self.progress(self.done, None, note)

    def _norm(self, params: Params, batch: Batch) -> float:
        self._pass("ordinary batches")
        return self.gradient.norm(params, batch)

    def _control(self, S: int) -> tuple[TrainState, TrainState, ControlResult]:
        """Return θ_A, θ_S and how the replay stands to what was recorded."""
        run = self.run
        witness = Witness(run, self.first, S + 1)
        start = run.state_at(self.first, lambda state, result: self._pass("to the window"))
        ends: list[TrainState] = [start.clone()] if self.first == S else []

        def after(state: TrainState, result: StepResult) -> None:
            witness.see(state, result)
            if state.counters.step == S:
                ends.append(state.clone())
            self._pass("control")

        run.replay(start.clone(), S + 1, after=after)
        report = witness.report()
        return start, ends[0], ControlResult(report.level, report.bitwise, report.sentence())

    def _excess(self) -> NormExcess:
        norm = self.gradient.norm(self.end.params, self.batch)
        at = float(np.median(self.ordinary)) if self.ordinary else norm
        before = at
        if self.first < self.blamed.step and self.ordinary:
            norms = [
                self._norm(self.start.params, batch) for batch in self.ordinary_batches[:BEFORE]
            ]
            before = float(np.median(norms))
        spread = np.abs(np.array(self.ordinary or [norm]) - at)
        scale = max(float(MAD_TO_SIGMA * np.median(spread)), smallest_scale(at))
        return NormExcess(norm - at, at - before, norm, at, before, scale)

    def _absent(self) -> bool:
        """Whether a control that is not exact lacks the recorded norm."""
        if self.control.bitwise:
            return False
        ratio = self.excess.norm / self.blamed.value if self.blamed.value else math.inf
        return not 1 / FACTOR <= ratio <= FACTOR

    def _spikes(self) -> bool:
        """Whether there is a spike to explain, as high as half of what was recorded."""
        blamed, total = self.blamed, self.excess.total
        if self._absent() or total <= 0 or not self.ordinary:
            return False
        if blamed.baseline is not None and total < HALF * (blamed.value - blamed.baseline):
            return False
        return blamed.is_spike or total > SIGMAS * self.excess.scale

    # ---- the search

    def _search(self) -> None:
        evidence, excess = self.evidence, self.excess
        for size in self.removals.sizes():
            slots = self.removals.ranked[:size]
            fall = self.removals.fall(slots)
            evidence.curve.append(NormPoint(size, excess.norm - fall, fall))
            if fall >= AWAY * excess.total:
                break
        self._prove()
        S = self.blamed.step
        if self.first < S:
            ordinary = self.excess.ordinary_before
            evidence.other_state = self._norm(self.start.params, self.batch) - ordinary
        if self.first < S and excess.state >= NEGLIGIBLE * excess.total:
            self._go_back()
        for slot in self.removals.ranked[:SHOWN]:
            evidence.effects[slot] = self.removals.fall([slot])

    def _prove(self) -> None:
        """Hold the smallest set that takes the spike away against random ones and the same search
        on ordinary batches.
        """
        total, curve = self.excess.total, self.evidence.curve
        best = curve[-1].removed if curve else 0
        tried = sets_to_try(self.removals, best)
        falls = {suspect: self.removals.fall(suspect.slots) for suspect in tried}
        enough = [suspect for suspect in tried if falls[suspect] >= AWAY * total]
        if not tried:
            return
        suspect = enough[0] if enough else max(tried, key=lambda each: falls[each])
        largest, size = falls[suspect], len(suspect.slots)
        random = [self.removals.fall(slots) for slots in self.removals.random_sets(suspect.slots)]
        ordinary = []
        for batch in self.ordinary_batches:
            removals = Removals(
                self.run, self.gradient, self.end.params, batch, batch.origin or 0, self._pass
            )
            ordinary.append(largest_fall(removals, size))
        self.evidence.proof = NormProof(
            who=suspect.words,
            removal=tuple(sorted(suspect.slots)),
            taken=largest,
            share=largest / total,
            random=tuple(random),
            p_random=(1 + sum(fall >= largest for fall in random)) / (len(random) + 1),
            ordinary=tuple(ordinary),
            p_ordinary=(1 + sum(fall >= largest for fall in ordinary)) / (len(ordinary) + 1),
        )

    def _go_back(self) -> None:
        """Leave out what raises batch S's norm by way of the state, by replay."""
        from replay.blame.metagradient import influence

        run, S = self.run, self.blamed.step
        require_memory(run, S - self.first, "float32")
        target = self.gradient.target(self.batch)
        replays = TargetReplays(run, self.first, S, S, target, lambda steps, note: self._pass(note))

        def progress(done: int, total: int | None, note: str = "") -> None:
            self._pass(f"metagradient, {note}")

        derivative = influence(
            run,
            self.first,
            S,
            target,
            start=replays.start(),
            tokens=True,
            progress=progress,
        )
        if derivative.condition is not None and not derivative.condition.ok:
            self.evidence.notes.append(derivative.condition.sentence)
        nats = {
            row: float(derivative.by_sequence[row.step - self.first, row.slot])
            for row in replays.rows()
        }
        raising = next(chosen for chosen in choose_sets(nats) if chosen.direction == "raise")

        def on_test(test: RemovalTest) -> None:
            self.evidence.before = test

        try_removal(replays, raising, 1, None, SEED, on_test)
        self.replays += replays.replays

    # ---- the result

    def _judge(self) -> tuple[Verdict, NormReason]:
        evidence, excess, proof = self.evidence, self.excess, self.evidence.proof
        if self._absent():
            return "numerics", "control does not spike"
        if not self._spikes():
            return "cannot tell", "no spike"
        limit = excess.ordinary_before + HALF * excess.total
        spiking = [norm >= limit for norm in self.ordinary]
        before = evidence.before
        if all(spiking):
            fell = before is not None and before.finding == "beyond" and before.measured is not None
            if fell and -(before.measured or 0.0) >= HALF * excess.total:  # type: ignore[union-attr]
                return "data", "removal before it takes it away"
            return "state or policy", "other data spike too"
        if proof is None:
            return "cannot tell", "interrupted" if evidence.interrupted else (
                "no removal takes it away"
            )
        if proof.share < HALF:
            return "cannot tell", "no removal takes it away"
        if proof.p_random > ENOUGH_P:
            return "cannot tell", "not beyond random removals"
        if proof.p_ordinary > ENOUGH_P:
            return "cannot tell", "not beyond ordinary batches"
        if 2 * sum(spiking) >= len(spiking):
            return "cannot tell", "other data spike too"
        if evidence.other_state is not None and evidence.other_state < HALF * excess.total:
            return "data and state", "no other state spikes"
        return "data", "removal takes it away"

    def _result(self) -> NormBlameResult:
        evidence, proof, removals = self.evidence, self.evidence.proof, self.removals
        verdict, reason = self._judge()
        influences = Influences(
            self.blamed.step, removals.by_token[None], np.ones((1, len(removals.by_token)), bool)
        )
        documents = by_document(removals, influences, removals.rows)
        return NormBlameResult(
            run=self.run.name,
            spike=self.blamed,
            window=(self.first, self.blamed.step),
            control=self.control,
            excess=self.excess,
            verdict=verdict,
            reason=reason,
            sentence="",
            p=max(proof.p_random, proof.p_ordinary) if proof else None,
            proof=proof,
            candidates=tuple(self._candidate(slot) for slot in removals.ranked[:SHOWN]),
            documents=tuple(documents[:SHOWN]),
            sources=tuple(by_source(documents)),
            curve=tuple(evidence.curve),
            other_data=tuple(self.ordinary),
            other_state=evidence.other_state,
            before=evidence.before,
            notes=tuple(evidence.notes),
            passes=self.gradient.passes,
            replays=self.replays,
            interrupted=evidence.interrupted,
            seconds=time.perf_counter() - self.started,
            created=now(),
        )

    def _candidate(self, row: Slot) -> NormCandidate:
        spans = document_spans(self.removals, row)
        main = max(spans, key=lambda span: span.targets, default=None)
        text = visible(self.run.corpus.decode(self.batch.tokens[row.slot].tolist()))
        return NormCandidate(
            slot=row.slot,
            sequence=int(self.batch.sequence[row.slot]),
            document=main.document if main else None,
            source=main.source if main else None,
            path=main.path if main else None,
            influence=self.removals.influence[row],
            replayed_effect=self.evidence.effects.get(row),
            text=text if len(text) <= EXCERPT else text[:EXCERPT] + "…",
        )


def _ordinary(run: Run, first: int, number: int) -> list[Batch]:
    """Return ordinary batches: drawn after the run's end, else from before the window."""
    end = root(run).header.steps
    batches: list[Batch] = []
    for draw in range(number):
        try:
            batches.append(run.stream(end + draw))
        except ForensicsError:  # an order file ends with the run
            break
    if batches:
        return batches
    steps = range(max(0, first - number), first)
    return [replace(run.stream(step), origin=step) for step in steps]
