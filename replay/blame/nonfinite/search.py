"""`replay blame` of a loss or gradient norm that is not finite: where it begins, and with what.

    result = blame_nonfinite(runs, "demo", 400, "loss")

Replay to the first step k of which anything is not finite → the first tensor, token and position
of that step → which sequences of batch k must give way to others for it to be finite (delta
debugging), beside as many others → where no other data help, the batches before k, and the policy
of the step before. Kept as `nonfinite-<step>.json` in the run's folder.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback, silent
from forensics.step.result import StepResult
from forensics.step.state import TrainState
from forensics.store.writer import write_atomic
from forensics.train.header import now
from forensics.train.run import Run
from forensics.visible import visible
from replay.blame.bisect import DeltaDebugging
from replay.blame.candidates import document_spans
from replay.blame.nonfinite.place import STAGES, RawPlace
from replay.blame.nonfinite.result import (
    NonFiniteProof,
    NonFiniteReason,
    NonFiniteResult,
    Place,
    ReplacedTrial,
)
from replay.blame.nonfinite.sentences import sentence
from replay.blame.nonfinite.step_trials import StepTrials, is_finite
from replay.blame.result import DocumentSpan, Verdict
from replay.blame.window_replays import DocumentStretch, WindowReplays, document_stretches
from replay.compare.null_test import ENOUGH_P
from replay.forks.result import ControlResult
from replay.interventions.random_rows import Pool, RandomSets
from replay.interventions.rows import Slot
from replay.lineage import lowest_state, open_trajectory, require_intact
from replay.spike_list import Metric
from replay.verify import Witness

WINDOW = 16  # steps before k that are gone into where no other batch k helps
BUDGET = 200  # replays of delta debugging
OTHERS = 3  # draws of other data
MOST = 19  # other sets of the same size: p ≤ 0.05 needs so many
SEED = 0


def blame_nonfinite(
    runs: Path,
    name: str,
    spike: int,
    of: Metric,
    value: float,
    progress: ProgressCallback = silent,
) -> NonFiniteResult:
    """Find what made step `spike`'s `of` not finite; return and keep the result.

    Ctrl-C during the trials returns what is known so far. Errors: missing, integrity, storage.
    """
    run = open_trajectory(runs, name)
    require_intact(run)
    search = NonFiniteSearch(run, spike, of, value, progress)
    search.run_search()
    write_atomic(run.folder / f"nonfinite-{spike}.json", search.result.to_json())
    return search.result


@dataclass
class _Evidence:
    place: Place | None = None
    sequences: tuple[Place, ...] = ()
    proof: NonFiniteProof | None = None
    other_data: list[ReplacedTrial] = field(default_factory=list)
    other_state: ReplacedTrial | None = None
    policy: ReplacedTrial | None = None
    complete: bool = True
    interrupted: bool = False


@dataclass(frozen=True)
class _Rows:
    """A run's rows, cut into documents."""

    run: Run

    def document_stretches(self, row: Slot) -> list[DocumentStretch]:
        return document_stretches(self.run, row, self.run.stream(row.step))


class NonFiniteSearch:
    """One step that is not finite being explained, and then its `result`."""

    result: NonFiniteResult

    def __init__(
        self, run: Run, spike: int, of: Metric, value: float, progress: ProgressCallback
    ) -> None:
        """Replay from the last finite state to the first step that is not finite."""
        self.run, self.spike, self.of, self.value = run, spike, of, value
        self.started, self.progress, self.done = time.perf_counter(), progress, 0
        self.evidence = _Evidence()
        self.start = _finite_checkpoint(run, spike)
        self.start_step = self.start.counters.step if self.start is not None else spike
        self.states: dict[
            int, TrainState
        ] = {}  # the last WINDOW finite ones, at the start of steps
        self.first_step: int | None = None
        self.control = ControlResult("absent", False, "no finite state to replay from")
        self.replays, self.steps = 0, 0
        if self.start is not None:
            self._walk(self.start.clone())

    def run_search(self) -> None:
        """Try what makes the step finite, and judge."""
        try:
            if self.first_step is not None:
                self._search(self.first_step)
        except KeyboardInterrupt:
            self.evidence.interrupted = True
        self.result = self._result()

    def _on_step(self, steps: int, note: str) -> None:
        self.done += steps
        self.progress(self.done, None, note)

    def _walk(self, state: TrainState) -> None:
        """Replay up to the first step that is not finite; keep the states before the last steps."""
        witness = Witness(self.run, self.start_step, self.spike + 1)
        self.replays = 1
        while state.counters.step <= self.spike and self.first_step is None:
            step = state.counters.step
            self.states[step] = state.clone()
            self.states.pop(step - WINDOW - 1, None)

            def after(state: TrainState, result: StepResult) -> None:
                witness.see(state, result)
                if not is_finite(state, result):
                    self.first_step = result.step

            self.run.replay(state, step + 1, after=after)
            self.steps += 1
            self._on_step(1, "control")
        report = witness.report()
        self.control = ControlResult(report.level, report.bitwise, report.sentence())

    # ---- the search

    def _search(self, k: int) -> None:
        evidence = self.evidence
        at_step = StepTrials(self.run, self.states[k], k, self._on_step)
        watch = at_step.places()
        first = watch.first()
        evidence.place = self._place(k, first) if first is not None else None
        evidence.sequences = tuple(self._place(k, place) for place in watch.by_slot())
        broken = [Slot(k, place.slot, 0, 0) for place in watch.by_slot()]
        rows = at_step.rows([k])
        broken = [row for row in rows if row.slot in {slot.slot for slot in broken}]
        self._other_data(at_step, rows, f"other sequences in batch {k}")
        if any(trial.finite for trial in evidence.other_data):
            self._smallest(at_step, broken if at_step.finite(broken) else rows)
            self._other_state(at_step, k)
        else:
            begin = min(self.states)
            before = StepTrials(self.run, self.states[begin], k, self._on_step)
            window = before.rows(range(begin, k + 1))
            if begin < k:
                evidence.other_data.clear()
                self._other_data(before, window, f"other sequences in batches {begin} to {k}")
            steady = before.steady_policy()
            if steady is not None:
                evidence.policy = ReplacedTrial(f"the policy of step {begin} held", steady)
            if begin < k and any(trial.finite for trial in evidence.other_data):
                self._smallest(before, window)
            self._count(before)
        self._count(at_step)

    def _count(self, trials: StepTrials) -> None:
        self.replays += trials.replays
        self.steps += trials.steps

    def _other_data(self, trials: StepTrials, rows: Sequence[Slot], words: str) -> None:
        for draw in range(OTHERS):
            try:
                finite = trials.finite(rows, draw, f"other data {draw + 1}")
            except ForensicsError:
                break  # there are none, neither before nor after the run's end
            self.evidence.other_data.append(ReplacedTrial(f"{words}, draw {draw + 1}", finite))

    def _smallest(self, trials: StepTrials, rows: list[Slot]) -> None:
        """Find a smallest set that must give way, and replace as many others instead."""
        search = DeltaDebugging(
            cast(WindowReplays, trials), trials.replays + BUDGET, lambda _: None
        )
        parts = [[row] for row in rows]
        if not search.takes_spike_away(parts):
            return  # only one draw of others helped, not the first
        smallest = search.minimal(parts, "sequences")
        self.evidence.complete = trials.replays < search.stop
        removal = tuple(sorted(slot for slots in smallest for slot in slots))
        again = [trials.finite(removal, draw, "others again") for draw in range(1, OTHERS)]
        tried = finite = 0
        every, sets = _other_sets(trials, removal)
        for replaced in sets:
            tried += 1
            finite += trials.finite(replaced, note=f"other sequences {tried}")
            self.evidence.proof = self._proof(removal, again, tried, finite, False)
        self.evidence.proof = self._proof(removal, again, tried, finite, every)

    def _proof(
        self, removal: tuple[Slot, ...], again: list[bool], others: int, finite: int, every: bool
    ) -> NonFiniteProof:
        spans: dict[int, DocumentSpan] = {}
        for row in removal:
            for span in document_spans(_Rows(self.run), row):
                spans.setdefault(span.document, span)
        p = (1 + finite) / (others + 1) if others else None
        documents = tuple(sorted(spans.values(), key=lambda span: -span.targets))
        return NonFiniteProof(removal, documents, sum(again), len(again), others, finite, every, p)

    def _other_state(self, trials: StepTrials, k: int) -> None:
        """Try the same batch from the earliest finite state at hand."""
        step = min(self.states)
        if step < k:
            finite = trials.other_state(self.states[step])
            self.evidence.other_state = ReplacedTrial(f"batch {k} from state {step}", finite)

    def _place(self, k: int, place: RawPlace) -> Place:
        """Say which token a place is at."""
        slot = place.slot if place.slot >= 0 else None
        position = place.position if slot is not None else None
        token = text = document = None
        if slot is not None and position is not None:
            batch = self.run.stream(k)
            token = int(batch.tokens[slot, position])
            text = visible(self.run.corpus.decode([token]))
            T = batch.weight.shape[1]
            for span in document_spans(_Rows(self.run), Slot(k, slot, 0, T)):
                # target t is token t + 1; a sequence's first token belongs to its first document
                if span.first <= max(position - 1, 0) < span.first + span.targets:
                    document = span
        return Place(
            step=k,
            stage=STAGES[place.stage],
            tensor=place.tensor,
            value=place.value,
            slot=slot,
            position=position,
            token=token,
            text=text,
            document=document,
            element=place.element,
        )

    # ---- the result

    def _result(self) -> NonFiniteResult:
        evidence = self.evidence
        verdict, reason = self._judge()
        result = NonFiniteResult(
            run=self.run.name,
            spike=self.spike,
            of=self.of,
            value=self.value,
            start=self.start_step,
            first_step=self.first_step,
            control=self.control,
            place=evidence.place,
            sequences=evidence.sequences,
            verdict=verdict,
            reason=reason,
            sentence="",
            p=evidence.proof.p if evidence.proof else None,
            proof=evidence.proof,
            other_data=tuple(evidence.other_data),
            other_state=evidence.other_state,
            policy=evidence.policy,
            complete=evidence.complete,
            interrupted=evidence.interrupted,
            replays=self.replays,
            steps_replayed=self.steps,
            seconds=time.perf_counter() - self.started,
            created=now(),
        )
        return sentence(result)

    def _judge(self) -> tuple[Verdict, NonFiniteReason]:
        """Judge by exact counterfactuals: what is finite when what is replaced."""
        evidence, proof = self.evidence, self.evidence.proof
        if self.start is None:
            return "cannot tell", "no finite state before it"
        if self.first_step is None:
            return "numerics", "the replay is finite"
        if proof is None:
            if evidence.policy is not None and evidence.policy.finite:
                return "policy", "another policy is finite"
            if evidence.interrupted:
                return "cannot tell", "interrupted"
            if len(evidence.other_data) < OTHERS:
                return "cannot tell", "no other data"
            if not any(trial.finite for trial in evidence.other_data):
                return "state or policy", "other data are not finite either"
            return "cannot tell", "other sequences do as well"
        if proof.others_finite or proof.again < proof.draws:
            return "cannot tell", "other sequences do as well"
        if not proof.exhaustive and (proof.p is None or proof.p > ENOUGH_P):
            return "cannot tell", "not all others were tried"
        if evidence.policy is not None and evidence.policy.finite:
            # the ordinary policy makes the same data finite: data and policy are both needed
            return "data and policy", "another policy is finite"
        if evidence.other_state is not None and evidence.other_state.finite:
            return "data and state", "another state is finite"
        return "data", "replaced sequences make it finite"


def _finite_checkpoint(run: Run, spike: int) -> TrainState | None:
    """Load a saved state before step `spike` whose parameters are finite.

    The last one a window before it, else the first after that.
    """
    import torch

    lowest = lowest_state(run)
    saved = sorted(step for step in _saved(run) if lowest <= step <= spike)
    early = max((step for step in saved if step <= spike - WINDOW), default=lowest)
    # those of the window first, then the ones before it, the latest first
    before = [step for step in saved if step < early]
    for step in [step for step in saved if step >= early] + before[::-1]:
        state = run.state_at(step)
        if all(bool(torch.isfinite(param).all()) for param in state.params.values()):
            return state
    return None


def _saved(run: Run) -> set[int]:
    """List the saved states along the lineage."""
    below = _saved(run.parent) if run.parent is not None else set()
    return set(run.saved_steps()) | {step for step in below if step <= run.header.first_step}


def _other_sets(
    trials: StepTrials, removal: Sequence[Slot]
) -> tuple[bool, Iterator[tuple[Slot, ...]]]:
    """Other sets with as many sequences of the same batches: all where few, else MOST by chance.

    The first is whether they are all.
    """
    needed = Counter(slot.step for slot in removal)
    pools = {step: [row for row in trials.rows([step]) if row not in removal] for step in needed}
    number = math.prod(math.comb(len(pools[step]), count) for step, count in needed.items())
    if number <= MOST:
        by_step = [itertools.combinations(pools[step], count) for step, count in needed.items()]
        return True, (sum(chosen, ()) for chosen in itertools.product(*by_step))
    tried = RandomSets([Pool(pools[step], count) for step, count in needed.items()], SEED)
    return False, (tuple(sorted(chosen)) for chosen in tried.up_to(MOST))
