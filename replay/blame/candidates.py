"""Who it was: influence by sequence, document and source, and the text of the suspects coloured by
it.

Influence in nats: how much of the excess goes, to first order, when a target is removed. Red raises
it, blue lowers it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from forensics.visible import visible
from replay.blame.bisect import document_spans
from replay.blame.window_replays import Replays
from replay.interventions.rows import Slot

EXCERPT = 200  # characters of a candidate's text in the document


@dataclass
class Influences:
    """by_token (W+1, B, T), nats, of batches first … S; `known` (W+1, B) where a method looked at
    the sequence.
    """

    first: int
    by_token: np.ndarray
    known: np.ndarray

    @cached_property
    def by_sequence(self) -> np.ndarray:
        """(W+1, B)."""
        return self.by_token.sum(2)

    def of(self, row: Slot) -> float | None:
        """Of a row, or of a stretch of it; None where it is not known."""
        k = row.step - self.first
        return (
            float(self.by_token[k, row.slot, row.first : row.last].sum())
            if self.known[k, row.slot]
            else None
        )

    def ranked(self, replays: Replays) -> list[Slot]:
        """The sequences that raise the excess, strongest first; ties in order of step and slot."""
        S = self.first + len(self.by_token) - 1
        rows = [
            r
            for r in replays.rows(range(self.first, S + 1))
            if (self.of(r) or 0.0) > 0 and math.isfinite(self.of(r) or 0.0)
        ]
        return sorted(rows, key=lambda r: (-(self.of(r) or 0.0), r.step, r.slot))


def candidate(
    replays: Replays, influences: Influences, row: Slot, effect: float | None, tokens: bool
) -> dict[str, Any]:
    """One sequence as the result shows it."""
    run, batch = replays.run, replays.run.stream(row.step)
    ids = batch.tokens[row.slot].tolist()
    documents = _documents_of(replays, row)
    main = max(documents, key=lambda d: d["targets"], default=None)
    text = visible(run.corpus.decode(ids))
    found: dict[str, Any] = {
        "step": row.step,
        "slot": row.slot,
        "sequence": int(batch.sequence[row.slot]),
        "document": main["document"] if main else None,
        "source": main["source"] if main else None,
        "path": main["path"] if main else None,
        "documents": documents,
        "part": "data" if row.step == replays.control.last else "state",
        "influence": influences.of(row),
        "replayed_effect": effect,
        "text": text if len(text) <= EXCERPT else text[:EXCERPT] + "…",
    }
    if tokens and found["influence"] is not None:
        k = row.step - influences.first
        found["tokens"] = ids
        found["token_influence"] = [
            None,
            *influences.by_token[k, row.slot].tolist(),
        ]  # the first token is no target
    return found


def _documents_of(replays: Replays, row: Slot) -> list[dict[str, Any]]:
    table = replays.run.corpus.documents
    found = []
    for document, span in document_spans(replays, row):
        if document >= 0:
            found.append(
                {
                    "document": document,
                    "source": table["source"][document].as_py(),
                    "path": table["path"][document].as_py(),
                    "first": span.first,
                    "targets": span.last - span.first,
                }
            )
    return found


def by_document(
    replays: Replays, influences: Influences, rows: Sequence[Slot]
) -> list[dict[str, Any]]:
    """Influence summed over each document's targets in these rows, strongest first."""
    table = replays.run.corpus.documents
    sums: dict[int, list[Any]] = {}
    for row in rows:
        for document, span in document_spans(replays, row):
            own = sums.setdefault(document, [0.0, set(), 0, False])
            value = influences.of(span)
            own[0] += value or 0.0
            own[1].add((row.step, row.slot))
            own[2] += span.last - span.first
            own[3] |= value is not None
    found = [
        {
            "document": d if d >= 0 else None,
            "source": table["source"][d].as_py() if d >= 0 else None,
            "path": table["path"][d].as_py() if d >= 0 else None,
            "influence": value if known else None,
            "sequences": len(places),
            "targets": targets,
        }
        for d, (value, places, targets, known) in sums.items()
    ]
    return sorted(found, key=lambda d: (-(d["influence"] or 0.0), -d["targets"]))


def by_source(documents: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same, summed over each source's documents."""
    sums: dict[str | None, dict[str, Any]] = {}
    for each in documents:
        own = sums.setdefault(
            each["source"],
            {"source": each["source"], "influence": None, "documents": 0, "targets": 0},
        )
        if each["influence"] is not None:
            own["influence"] = (own["influence"] or 0.0) + each["influence"]
        own["documents"] += 1
        own["targets"] += each["targets"]
    return sorted(sums.values(), key=lambda s: (-(s["influence"] or 0.0), -s["targets"]))
