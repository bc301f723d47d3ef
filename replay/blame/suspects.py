"""What may be to blame as a whole: a document, a source, several documents. The simplest that
suffices is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from replay.blame import candidates
from replay.blame.bisect import document_spans
from replay.blame.candidates import Influences
from replay.blame.deletion import SHARE
from replay.blame.window_replays import Replays
from replay.interventions.rows import Slot

SINGLE = 3  # leading documents that are removed each by itself


@dataclass(frozen=True)
class Suspect:
    """A part of the window, in words and in targets."""

    words: str
    slots: tuple[Slot, ...]


def wholes(replays: Replays, influences: Influences, window: int) -> list[Suspect]:
    """Each of the 3 leading documents, the leading source, the leading 2, 4, 8 documents, by
    influence; none that is more
    than SHARE of the window's sequences.

    Not the first document alone: a derivative can be far from what a removal does, and only the
    replays decide.
    """
    control = replays.control
    rows = replays.rows(range(control.begin, control.last + 1))
    documents = candidates.by_document(replays, influences, rows)
    order = [
        d["document"]
        for d in documents
        if (d["influence"] or 0.0) > 0 and d["document"] is not None
    ]
    spans: dict[int, list[Slot]] = {}
    for row in rows:
        for document, span in document_spans(replays, row):
            spans.setdefault(document, []).append(span)
    named = {d["document"]: f"{d['path']} ({d['source']})" for d in documents}
    found = [Suspect(f"document {named[d]}", tuple(spans[d])) for d in order[:SINGLE]]
    sources = candidates.by_source(documents)
    if (
        len(sources) > 1
        and sources[0]["source"] is not None
        and (sources[0]["influence"] or 0.0) > 0
    ):
        own = [d["document"] for d in documents if d["source"] == sources[0]["source"]]
        words = f"source {sources[0]['source']}" if len(own) > 1 else f"document {named[own[0]]}"
        found.append(Suspect(words, tuple(span for d in own for span in spans[d])))
    for n in (2, 4, 8):
        if n <= len(order):
            several = tuple(span for d in order[:n] for span in spans[d])
            found.append(Suspect(f"{n} documents, the first {named[order[0]]}", several))
    return [s for s in found if len({(x.step, x.slot) for x in s.slots}) <= SHARE * window]


def documents_of(replays: Replays, influences: Influences, removal: Sequence[Slot]) -> str:
    """The documents of a set, in words, those with the most targets first."""
    documents = [
        d for d in candidates.by_document(replays, influences, removal) if d["document"] is not None
    ]
    documents.sort(key=lambda d: -d["targets"])
    named = [f"{d['path']} ({d['source']})" for d in documents[:2]]
    more = len(documents) - len(named)
    return " and ".join(named) + (f" and {more} other document{'s' * (more != 1)}" if more else "")
