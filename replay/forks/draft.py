"""A fork being made: what each intervention is given by those before it, and what all of them
share.

    draft = Draft(run, 400, 440)
    draft.add(intervention.resolved(run, draft))

A sequence that comes in the place of one that goes is its source's next draw of the run's order.
One fork has one cursor over these draws: it begins past every batch that the run it descends from,
the forks between them and the fork itself read to their ends, and past what those forks put in; no
two removals of one fork draw the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from replay.interventions.base import Intervention
from replay.interventions.registry import from_dict
from replay.interventions.removal import Draws, RemoveDocuments, Removing
from replay.interventions.rows import followed
from replay.lineage import ancestors

if TYPE_CHECKING:
    from forensics.step.batch import BatchStream
    from forensics.train.run import Run


class Draft:
    """The fork first:last of `run` as far as its interventions are written down.

    `listed`: all interventions that it will have.
    """

    def __init__(
        self, run: Run, first: int, last: int, listed: Sequence[Intervention] = ()
    ) -> None:
        self.run, self.first, self.last = run, first, last
        self.moved = False  # whether an intervention so far alters the stream
        self._stream: BatchStream = followed(run.stream)
        self._listed = listed
        self._added: list[Intervention] = []  # that the stream does not hold yet: it may cost
        self._past: Draws | None = None
        self._drawing: list[tuple[Removing, BatchStream]] = []  # removals that are not counted yet

    def add(self, intervention: Intervention) -> None:
        """Go on with the stream that the intervention makes."""
        self._added.append(intervention)
        self.moved = self.moved or intervention.alters() == "stream"

    @property
    def stream(self) -> BatchStream:
        """Return what the next intervention is given; its rows are numbered as the parent has
        them.
        """
        for intervention in self._added:
            if isinstance(intervention, Removing) and intervention.how == "replace":
                self._drawing.append((intervention, self._stream))
            self._stream = intervention.stream(self._stream, self.run)
        self._added.clear()
        return self._stream

    @property
    def removed_documents(self) -> frozenset[int]:
        """Return the documents that the fork and those that it descends from take out."""
        documents = {d for intervention in self._listed for d in _documents_of(intervention)}
        for fork in ancestors(self.run):
            for document in fork.header.interventions or []:
                documents |= set(_documents_of(from_dict(document)))
        return frozenset(documents)

    def next_draws(self) -> Draws | None:
        """Return where the next removal begins to draw; None: at the parent's end, as where nothing
        goes past it. Errors: usage.
        """
        if self._past is None:
            self._past = _past(self.run, self.last, self._listed)
        _ = self.stream  # which counts the removals
        for removal, stream in self._drawing:
            self._past = _later(self._past, removal.draws_end(self.run, stream))
        self._drawing.clear()
        at_the_end = _drawn(self.run, self.run.header.steps)
        return None if self._past == at_the_end else self._past


def settled(
    interventions: Sequence[Intervention], run: Run, first: int, last: int
) -> tuple[Intervention, ...]:
    """Write down all that interventions depend on in the fork first:last of `run`. Errors: usage,
    missing.
    """
    draft = Draft(run, first, last, interventions)
    resolved = []
    for intervention in interventions:
        resolved.append(intervention.resolved(run, draft))
        draft.add(resolved[-1])
    return tuple(resolved)


def _documents_of(intervention: Intervention) -> Collection[int]:
    return intervention.documents if isinstance(intervention, RemoveDocuments) else ()


def _drawn(run: Run, end: int) -> Draws:
    order = run.batches.order
    return tuple(order.drawn(source, end) for source in range(len(order.n_sequences)))


def _later(one: Draws, other: Draws) -> Draws:
    return tuple(max(pair) for pair in zip(one, other))


def _past(run: Run, last: int, interventions: Sequence[Intervention]) -> Draws:
    """Return the draws past all that is read by the fork, its ancestors and the run itself, and
    past what ancestors put in.
    """
    end = last
    for intervention in reversed(interventions):
        end = intervention.reach(end, run)
    put_in: list[Draws] = []
    fork: Run = run
    while fork.parent is not None:
        end = max(end, fork.header.steps)
        inherited = [from_dict(document) for document in fork.header.interventions or []]
        stream = fork.parent.stream
        for intervention in inherited:
            if isinstance(intervention, Removing) and intervention.how == "replace":
                put_in.append(intervention.draws_end(fork.parent, stream))
            stream = intervention.stream(stream, fork.parent)
        for intervention in reversed(inherited):
            end = intervention.reach(end, fork.parent)
        fork = fork.parent
    past = _drawn(run, max(end, fork.header.steps))
    for draws in put_in:
        past = _later(past, draws)
    return past
