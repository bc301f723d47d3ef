"""Who may be the cause: influence by sequence, document and source, and the suspects they make.

Influence in nats: how much of the excess goes, to first order, when a target is removed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from forensics.errors import ForensicsError, nearest
from forensics.train.run import Run
from forensics.visible import visible
from replay.blame.deletion import Suspect
from replay.blame.result import (
    Candidate,
    DocumentInfluence,
    DocumentSpan,
    GroupInfluence,
    SourceInfluence,
)
from replay.blame.rules import SHARE, SINGLE, TOGETHER
from replay.blame.window_replays import DocumentStretch, WindowReplays
from replay.interventions.rows import Slot

EXCERPT = 200  # characters of a candidate's text in the result


class WindowRows(Protocol):
    """A window whose rows can be cut into documents."""

    @property
    def run(self) -> Run:
        """Return the run whose window it is."""

    def document_stretches(self, row: Slot) -> list[DocumentStretch]:
        """Cut a row, or a stretch of it, at the bounds of its documents."""


@dataclass
class Influences:
    """Influence of every target of batches first … S."""

    first: int
    by_token: np.ndarray  # (W+1, B, T), nats
    known: np.ndarray  # (W+1, B), whether a method looked at the sequence

    @functools.cached_property
    def by_sequence(self) -> np.ndarray:
        """(W+1, B), nats."""
        return self.by_token.sum(2)

    def of(self, row: Slot) -> float | None:
        """Return the influence of a row, or of a stretch of it; None where it is not known."""
        k = row.step - self.first
        if not self.known[k, row.slot]:
            return None
        return float(self.by_token[k, row.slot, row.first : row.last].sum())

    def ranked(self, replays: WindowReplays) -> list[Slot]:
        """List the sequences that raise the excess, strongest first; ties by step and slot."""
        S = self.first + len(self.by_token) - 1
        influence = {row: self.of(row) or 0.0 for row in replays.rows(range(self.first, S + 1))}
        raising = [row for row, nats in influence.items() if nats > 0 and math.isfinite(nats)]
        return sorted(raising, key=lambda row: (-influence[row], row.step, row.slot))


def candidate(
    replays: WindowReplays, influences: Influences, row: Slot, effect: float | None, tokens: bool
) -> Candidate:
    """Describe one sequence; `tokens`: with the influence of each of its tokens."""
    run, batch = replays.run, replays.run.stream(row.step)
    ids = batch.tokens[row.slot].tolist()
    documents = document_spans(replays, row)
    main = max(documents, key=lambda span: span.targets, default=None)
    text = visible(run.corpus.decode(ids))
    influence = influences.of(row)
    with_tokens = tokens and influence is not None
    by_token = influences.by_token[row.step - influences.first, row.slot].tolist()
    return Candidate(
        step=row.step,
        slot=row.slot,
        sequence=int(batch.sequence[row.slot]),
        document=main.document if main else None,
        source=main.source if main else None,
        path=main.path if main else None,
        documents=documents,
        part="data" if row.step == replays.control.last else "state",
        influence=influence,
        replayed_effect=effect,
        text=text if len(text) <= EXCERPT else text[:EXCERPT] + "…",
        tokens=tuple(ids) if with_tokens else None,
        # the first token is no target
        token_influence=(None, *by_token) if with_tokens else None,
    )


def document_spans(replays: WindowRows, row: Slot) -> tuple[DocumentSpan, ...]:
    """List where a row holds text of which document."""
    return tuple(
        DocumentSpan(
            stretch.document,
            _source(replays.run, stretch.document),
            _path(replays.run, stretch.document),
            stretch.slot.first,
            stretch.slot.last - stretch.slot.first,
        )
        for stretch in replays.document_stretches(row)
        if stretch.document >= 0
    )


def _source(run: Run, document: int) -> str:
    return str(run.corpus.documents["source"][document].as_py())


def _path(run: Run, document: int) -> str:
    return str(run.corpus.documents["path"][document].as_py())


@dataclass
class _DocumentSum:
    influence: float = 0.0
    known: bool = False
    places: set[tuple[int, int]] = field(default_factory=set)
    targets: int = 0


def by_document(
    replays: WindowRows, influences: Influences, rows: Sequence[Slot]
) -> list[DocumentInfluence]:
    """Sum influence over each document's targets in these rows, strongest first."""
    sums: dict[int, _DocumentSum] = {}
    for row in rows:
        for stretch in replays.document_stretches(row):
            document_sum = sums.setdefault(stretch.document, _DocumentSum())
            influence = influences.of(stretch.slot)
            document_sum.influence += influence or 0.0
            document_sum.known |= influence is not None
            document_sum.places.add((row.step, row.slot))
            document_sum.targets += stretch.slot.last - stretch.slot.first
    documents = [
        DocumentInfluence(
            document=document if document >= 0 else None,
            source=_source(replays.run, document) if document >= 0 else None,
            path=_path(replays.run, document) if document >= 0 else None,
            influence=total.influence if total.known else None,
            sequences=len(total.places),
            targets=total.targets,
        )
        for document, total in sums.items()
    ]
    return sorted(documents, key=lambda d: (-(d.influence or 0.0), -d.targets))


def by_source(documents: Sequence[DocumentInfluence]) -> list[SourceInfluence]:
    """Sum the same over each source's documents."""
    sources = []
    for source in dict.fromkeys(document.source for document in documents):
        members = [document for document in documents if document.source == source]
        influences = [d.influence for d in members if d.influence is not None]
        targets = sum(document.targets for document in members)
        total = functools.reduce(operator.add, influences) if influences else None
        sources.append(SourceInfluence(source, total, len(members), targets))
    return sorted(sources, key=lambda s: (-(s.influence or 0.0), -s.targets))


def by_attribute(
    run: Run, documents: Sequence[DocumentInfluence], attribute: str
) -> list[GroupInfluence]:
    """Sum influence over the documents of each value of an attribute, strongest first.

    A document whose value is a list belongs to each of its entries; one without any, to none.
    """
    members: dict[str, list[DocumentInfluence]] = {}
    for document in documents:
        for value in _values_of(run, document.document, attribute):
            members.setdefault(value, []).append(document)
    groups = []
    for value, of_value in members.items():
        (total,) = by_source([dataclasses.replace(each, source=value) for each in of_value])
        ids = tuple(each.document for each in of_value if each.document is not None)
        groups.append(
            GroupInfluence(attribute, value, total.influence, len(ids), total.targets, ids)
        )
    return sorted(groups, key=lambda group: (-(group.influence or 0.0), -group.targets))


def _values_of(run: Run, document: int | None, attribute: str) -> list[str]:
    """Return the groups that a document belongs to. Errors: missing, for no such attribute."""
    attributes = run.corpus.attributes
    names = [] if attributes is None else [field.name for field in attributes.type]
    if attributes is None or attribute not in names:
        raise ForensicsError(
            "missing",
            f"wanted an attribute of {run.name}'s documents, found no {attribute!r}",
            nearest(attribute, names) if names else "its text came without metadata",
        )
    if document is None:
        return []
    value = (attributes[document].as_py() or {}).get(attribute)
    values = value if isinstance(value, list) else [value]
    return list(dict.fromkeys(str(each) for each in values if each is not None))


def suspects(
    replays: WindowReplays, influences: Influences, window: int, group: str | None = None
) -> list[Suspect]:
    """Name what may be to blame as a whole: a document, a source, several documents.

    Each of the 3 leading documents, the leading source, the leading value of the attribute `group`,
    the leading 2, 4, 8 documents, by influence; none that is more than SHARE of the window's
    sequences. Not the first document alone: a derivative can be far from what a removal does, and
    only the replays decide.
    """
    control = replays.control
    rows = replays.rows(range(control.begin, control.last + 1))
    documents = by_document(replays, influences, rows)
    leading = [d for d in documents if (d.influence or 0.0) > 0 and d.document is not None]
    spans: dict[int | None, list[Slot]] = {}
    for row in rows:
        for stretch in replays.document_stretches(row):
            spans.setdefault(stretch.document, []).append(stretch.slot)

    def together(kind: str, members: Sequence[DocumentInfluence]) -> Suspect:
        slots = tuple(slot for member in members for slot in spans[member.document])
        first = members[0]
        if kind == "source":
            return Suspect("source", slots, str(first.source), count=len(members))
        name, source = str(first.path), str(first.source)
        several = kind == "documents"
        return Suspect("documents" if several else "document", slots, name, source, len(members))

    suspect_list = [together("document", [document]) for document in leading[:SINGLE]]
    sources = by_source(documents)
    if len(sources) > 1 and sources[0].source is not None and (sources[0].influence or 0.0) > 0:
        members = [d for d in documents if d.source == sources[0].source]
        suspect_list.append(together("source" if len(members) > 1 else "document", members))
    groups = by_attribute(replays.run, documents, group) if group else []
    if groups and (groups[0].influence or 0.0) > 0:
        ids = set(groups[0].members)
        slots = tuple(slot for d in documents if d.document in ids for slot in spans[d.document])
        name = f"{group} = {groups[0].value}"
        suspect_list.append(Suspect("attribute", slots, name, count=groups[0].documents))
    suspect_list += [
        together("documents", leading[:count]) for count in TOGETHER if count <= len(leading)
    ]
    return [suspect for suspect in suspect_list if suspect.sequences <= SHARE * window]


def documents_in(
    replays: WindowReplays, influences: Influences, removal: Sequence[Slot]
) -> list[DocumentInfluence]:
    """List the documents of a set, those with the most targets first."""
    documents = by_document(replays, influences, removal)
    return sorted((d for d in documents if d.document is not None), key=lambda d: -d.targets)
