"""`replay blame --query`, `--eval`: which training data moved the loss of a text?

    asked = ask(runs, "demo", query, QueryOptions(at=300, window=(284, 300)))
    asked.result.candidates[0]

Control → influence of every sequence of the window by the metagradient → the strongest that lower
the loss and the strongest that raise it left out by replay, beside as many random ones → on wish,
how good the influences are. The result is kept as `influence-<hash>.json` in the run's folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback, silent
from forensics.train.header import now
from forensics.train.run import Run
from forensics.visible import visible
from replay.blame.candidates import (
    EXCERPT,
    Influences,
    by_document,
    by_source,
    document_spans,
)
from replay.blame.influence_text import CandidateText, text_pieces
from replay.blame.probe_target import probe_target
from replay.blame.query.datamodel_score import datamodel_score, measure_subsets
from replay.blame.query.removal_test import choose_sets, try_removal
from replay.blame.query.replays import TargetReplays
from replay.blame.query.result import (
    InfluenceResult,
    QueryCandidate,
    QuerySequence,
    RemovalTest,
    StepInfluence,
    SubsetChange,
)
from replay.blame.query.sentences import asked_sentence, whole_sentence
from replay.blame.query.text import Query
from replay.blame.result import Condition, DocumentInfluence
from replay.blame.window_memory import require_memory
from replay.interventions.rows import Slot
from replay.lineage import lowest_state, open_trajectory, require_intact
from replay.result_files import keep_result

WINDOW = 16  # steps before the state, where no window is named
SHOWN = 16  # sequences whose text is in the result
SEED = 0


@dataclass(frozen=True)
class QueryOptions:
    """Where the loss of the text is taken, and which steps are examined."""

    at: int | None = None  # the state; None: the run's last
    # batches first … last−1; a number: the last so many before the state; None: the last 16
    window: tuple[int, int] | int | None = None
    placebos: int | None = None  # random removals of each set; None: as many as p needs
    validate: int | None = None  # random subsets of the datamodeling score; None: none
    precision: str = "float32"  # of the metagradient
    tokens: bool = False  # the candidates come with the influence of each token


def ask(
    runs: Path,
    name: str,
    question: Callable[[Run], Query],
    options: QueryOptions = QueryOptions(),
    progress: ProgressCallback = silent,
) -> Asked:
    """Explain the loss of a text; return and keep the result.

    `question` reads the text with the run's tokenizer (`query_of_text`, `query_of_file`). Ctrl-C
    during the replays returns what is known so far, with `interrupted`. Errors: usage, missing (no
    such state), memory (a window too long), integrity, data.
    """
    run = open_trajectory(runs, name)
    query = question(run)
    at = _state(run, options.at)
    first, last = _window(run, at, options.window)
    require_intact(run)
    require_memory(run, at - first, options.precision)
    inquiry = Asked(run, query, (first, last), at, options, progress)
    inquiry.answer()
    return inquiry


def _state(run: Run, at: int | None) -> int:
    """Return the state that is asked about. Errors: missing."""
    trained = run.last_step()
    at = trained if at is None else at
    lowest = lowest_state(run)
    if not lowest < at <= trained:
        raise ForensicsError(
            "missing",
            f"wanted a state of {run.name} after its first step, found {at}",
            f"--at {lowest + 1} to {trained}",
        )
    return at


def _window(run: Run, at: int, window: tuple[int, int] | int | None) -> tuple[int, int]:
    """Return the window's bounds A, B. Errors: usage, missing."""
    lowest = lowest_state(run)
    if window is None or isinstance(window, int):
        return max(lowest, at - (window or WINDOW)), at
    first, last = window
    if first < lowest:
        raise ForensicsError(
            "missing",
            f"wanted a window of {run.name}, found {first}:{last}",
            f"its steps begin at {lowest}",
        )
    if last > at:
        raise ForensicsError(
            "usage",
            f"wanted a window before state {at}, found {first}:{last}",
            f"--window {first}:{at}" if first < at else f"--at {last} or later",
        )
    return first, last


class _StepCount:
    """Steps done of the steps foreseen, for the bar."""

    def __init__(self, progress: ProgressCallback, planned: int) -> None:
        self.progress, self.done, self.planned = progress, 0, planned

    def add(self, steps: int, note: str) -> None:
        self.done += steps
        self.planned = max(self.planned, self.done)
        self.progress(self.done, self.planned, note)


@dataclass
class _Evidence:
    """What is known so far; an interrupt loses none of it."""

    removals: dict[str, RemovalTest] = field(default_factory=dict)  # by direction
    subsets: list[SubsetChange] = field(default_factory=list)
    condition: Condition | None = None
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False


class Asked:
    """A question being answered: its influences, replays, and then its `result`."""

    result: InfluenceResult

    def __init__(
        self,
        run: Run,
        query: Query,
        window: tuple[int, int],
        at: int,
        options: QueryOptions,
        progress: ProgressCallback,
    ) -> None:
        """Replay the window unaltered, and differentiate the loss by every sequence's weight."""
        self.run, self.query, self.window, self.at = run, query, window, at
        self.options, self.started = options, time.perf_counter()
        self.evidence = _Evidence()
        first, last = window
        self.steps = _StepCount(progress, 20 * (at - first))
        self.target = probe_target(run, query.batch)
        self.replays = TargetReplays(run, first, last, at, self.target, self.steps.add)
        self.influences = self._differentiate()
        rows = self.replays.rows()
        self.influence = {row: self.influences.of(row) or 0.0 for row in rows}

    def answer(self) -> None:
        """Test the influences by replay, and keep the result. Errors: storage."""
        try:
            self._test()
        except KeyboardInterrupt:
            self.evidence.interrupted = True
        self.result = self._result()
        keep_result(self.run.folder, "influence", self._identity(), self.result)

    def candidate_text(self, candidate: QueryCandidate) -> CandidateText:
        """Return the whole text of a candidate with the influence of each piece."""
        T = self.influences.by_token.shape[2]
        row = Slot(candidate.step, candidate.slot, 0, T)
        return CandidateText(candidate, text_pieces(self.replays, self.influences, row))

    def _differentiate(self) -> Influences:
        from replay.blame.metagradient import influence

        first, last = self.window
        counted = [0]

        def progress(done: int, total: int | None, note: str = "") -> None:
            self.steps.add(max(0, done - counted[0]), f"metagradient, {note}")
            counted[0] = done

        derivative = influence(
            self.run,
            first,
            self.at,
            self.target,
            start=self.replays.start(),
            precision=self.options.precision,
            tokens=True,
            progress=progress,
        )
        assert derivative.by_token is not None, "tokens were asked for"
        by_token = derivative.by_token[: last - first]
        condition = self.evidence.condition = derivative.condition
        if condition is not None and not condition.ok:
            self.evidence.notes.append(condition.sentence)
        return Influences(first, by_token, np.ones(by_token.shape[:2], bool))

    def _test(self) -> None:
        sets = choose_sets(self.influence)
        tests = max(1, sum(bool(chosen.slots) for chosen in sets))
        for i, chosen in enumerate(sets):

            def on_test(removal: RemovalTest) -> None:
                self.evidence.removals[removal.direction] = removal

            number = self.options.placebos
            try_removal(self.replays, chosen, tests, number, SEED + i, on_test)
        if self.options.validate is not None:
            number = self.options.validate
            measure_subsets(
                self.replays, self.influence, number, SEED, self.evidence.subsets.append
            )

    # ---- the result

    def _identity(self) -> str:
        """Name all that the result depends on."""
        options, header = self.options, self.run.header
        return (
            f"{self.run.name} {header.created} {self.query.digest} {self.at} {self.window}"
            f" {options.placebos} {options.validate} {options.precision} {options.tokens}"
        )

    def _result(self) -> InfluenceResult:
        evidence, replays = self.evidence, self.replays
        sequences = {row: self._sequence(row) for row in sorted(self.influence)}
        ranked = sorted(self.influence, key=lambda row: (-abs(self.influence[row]), row))
        documents = self._documents()
        removals = tuple(evidence.removals.values())
        noun = self.query.noun
        inquiry = asked_sentence(self.query.description, noun, replays.value, self.at)
        return InfluenceResult(
            run=self.run.name,
            query=self.query.description,
            at=self.at,
            window=self.window,
            loss=replays.value,
            control=replays.control(),
            precision=self.options.precision,
            sentence=whole_sentence(inquiry, removals, evidence.interrupted),
            removals=removals,
            candidates=tuple(self._candidate(row, sequences[row]) for row in ranked[:SHOWN]),
            sequences=tuple(sequences[row] for row in ranked),
            steps=self._by_step(),
            documents=tuple(documents),
            sources=tuple(sorted(by_source(documents), key=lambda s: -abs(s.influence or 0.0))),
            validation=datamodel_score(evidence.subsets, SEED) if evidence.subsets else None,
            condition=evidence.condition,
            notes=tuple(evidence.notes),
            replays=replays.replays,
            steps_replayed=replays.steps,
            interrupted=evidence.interrupted,
            seconds=time.perf_counter() - self.started,
            created=now(),
        )

    def _documents(self) -> list[DocumentInfluence]:
        documents = by_document(self.replays, self.influences, list(self.influence))
        return sorted(documents, key=lambda document: -abs(document.influence or 0.0))

    def _by_step(self) -> tuple[StepInfluence, ...]:
        sums = dict.fromkeys(range(*self.window), 0.0)
        for row, nats in self.influence.items():
            sums[row.step] += nats
        return tuple(StepInfluence(step, total) for step, total in sums.items())

    def _sequence(self, row: Slot) -> QuerySequence:
        spans = document_spans(self.replays, row)
        main = max(spans, key=lambda span: span.targets, default=None)
        batch = self.replays.stream(row.step)
        return QuerySequence(
            step=row.step,
            slot=row.slot,
            sequence=int(batch.sequence[row.slot]),
            document=main.document if main else None,
            source=main.source if main else None,
            influence=self.influence[row],
        )

    def _candidate(self, row: Slot, sequence: QuerySequence) -> QueryCandidate:
        spans = document_spans(self.replays, row)
        main = max(spans, key=lambda span: span.targets, default=None)
        ids = self.replays.stream(row.step).tokens[row.slot].tolist()
        text = visible(self.run.corpus.decode(ids))
        by_token = self.influences.by_token[row.step - self.influences.first, row.slot]
        tokens = self.options.tokens
        return QueryCandidate(
            step=sequence.step,
            slot=sequence.slot,
            sequence=sequence.sequence,
            document=sequence.document,
            source=sequence.source,
            influence=sequence.influence,
            path=main.path if main else None,
            documents=spans,
            text=text if len(text) <= EXCERPT else text[:EXCERPT] + "…",
            tokens=tuple(ids) if tokens else None,
            token_influence=(None, *by_token.tolist()) if tokens else None,
        )
