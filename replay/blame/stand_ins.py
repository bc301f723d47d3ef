"""What stands in for what is removed: other sequences, or the level of an ordinary batch.

Neither comes from the suspect itself: not from a removed document, and not from its source where
that is one of the lesser ones of the batches before the window. Removing junk puts no junk of the
same source in its place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from forensics.errors import ForensicsError
from forensics.step.batch import Batch
from replay.blame.excess import WindowControl
from replay.blame.rules import BEFORE, HALF, OTHERS
from replay.interventions.rows import put
from replay.lineage import root

FURTHER = 64  # batches looked through for rows that may stand in


@dataclass(frozen=True)
class Avoided:
    """Documents and sources that may not stand in for what is removed."""

    documents: frozenset[int] = frozenset()
    sources: frozenset[str] = frozenset()


NOTHING = Avoided()


class StandIns:
    """What may come in the place of the targets of one window."""

    def __init__(self, control: WindowControl) -> None:
        """Stand in for what is removed from the window of `control`."""
        self.control, self.run = control, control.run
        self._sources: dict[int, str] = {}
        self._gaps: dict[Avoided, float] = {}

    def source(self, document: int) -> str:
        """Return the name of a document's source."""
        if document not in self._sources:
            self._sources[document] = str(self.run.corpus.documents["source"][document].as_py())
        return self._sources[document]

    def avoiding(self, documents: Iterable[int]) -> Avoided:
        """Return what may not stand in where these documents are removed."""
        removed = frozenset(document for document in documents if document >= 0)
        sources = {self.source(document) for document in removed}
        return Avoided(removed, frozenset(s for s in sources if self._share(s) <= HALF))

    def batch(self, step: int, draw: int = 0, avoided: Avoided = NOTHING) -> Batch:
        """Return a batch that stands in for that of `step`.

        It is drawn after the run's end or, where the order ends there, comes from before the
        window. Errors: missing.
        """
        batch = self._drawn(step, draw)
        refused = np.flatnonzero(~self._permitted(batch, avoided)).tolist()
        for further in range(OTHERS, OTHERS + FURTHER):
            if not refused:
                break
            fresh = self._drawn(step, draw + further)
            permitted = np.flatnonzero(self._permitted(fresh, avoided)).tolist()[: len(refused)]
            places, refused = refused[: len(permitted)], refused[len(permitted) :]
            batch = put(batch, places, _rows(fresh, permitted)) if places else batch
        if refused:
            raise ForensicsError(
                "missing",
                f"wanted other sequences for batch {step} of {self.run.name}, found too few that"
                " are not the suspect's own",
                "none can stand in",
            )
        return batch

    def ordinary(self, params: dict[str, Tensor], probe: float, avoided: Avoided) -> float:
        """Return the loss of an ordinary target at these parameters, nats; `probe` is ℓ(P; θ).

        Sequences of P and of the batches before the window that are of an avoided source are left
        out of it.
        """
        avoided = Avoided(sources=avoided.sources)
        if not avoided.sources:
            return probe + self.control.excess.usual_gap
        batch = self.control.probes.batch
        permitted = self._permitted(batch, avoided)
        if permitted.any() and not permitted.all():
            probe = float(self.control.token_losses(params, batch)[permitted].mean())
        return probe + self._gap(avoided)

    def _gap(self, avoided: Avoided) -> float:
        """Return the usual gap between batches and P, both without what is avoided."""
        if avoided not in self._gaps:
            self._gaps[avoided] = self._measured_gap(avoided)
        return self._gaps[avoided]

    def _measured_gap(self, avoided: Avoided) -> float:
        control, P = self.control, self.control.probes.batch
        rows = {step: self._permitted(self.run.stream(step), avoided) for step in self._calm}
        in_P = self._permitted(P, avoided)
        if in_P.all() and all(permitted.all() for permitted in rows.values()):
            return control.excess.usual_gap
        in_P = in_P if in_P.any() else ~in_P
        gaps = []
        for step, permitted in rows.items():
            params = control.state(step).params
            losses = control.token_losses(params, self.run.stream(step)).mean(1).numpy()
            probe = control.token_losses(params, P).mean(1).numpy()
            if permitted.any():
                gaps.append(float(losses[permitted].mean() - probe[in_P].mean()))
        return float(np.median(gaps)) if gaps else control.excess.usual_gap

    def _drawn(self, step: int, draw: int) -> Batch:
        control = self.control
        length = control.last + 1 - control.first
        end = root(self.run).header.steps
        try:
            return self.run.stream(end + step - control.first + draw * length)
        except ForensicsError:
            return self.run.stream(step - (draw + 1) * length)

    def _permitted(self, batch: Batch, avoided: Avoided) -> np.ndarray:
        """Mark the rows (B,) that hold nothing of what is avoided."""
        if not avoided.documents and not avoided.sources:
            return np.ones(len(batch.sequence), bool)
        return np.array(
            [
                not any(
                    span.document in avoided.documents
                    or self.source(span.document) in avoided.sources
                    for span in spans
                )
                for spans in self.run.batches.provenance(batch)
            ],
            bool,
        )

    @property
    def _calm(self) -> range:
        """The steps before the window that tell an ordinary batch."""
        control = self.control
        return range(max(control.start, control.first - BEFORE), control.first)

    @cached_property
    def _shares(self) -> dict[str, float]:
        """Share of each source in the batches before the window, by stretches of documents."""
        counted: Counter[str] = Counter()
        for step in self._calm:
            for spans in self.run.batches.provenance(self.run.stream(step)):
                counted.update(self.source(span.document) for span in spans)
        return {source: count / counted.total() for source, count in counted.items()}

    def _share(self, source: str) -> float:
        """Return a source's share before the window; 1 where nothing lies before it."""
        return self._shares.get(source, 0.0) if self._shares else 1.0


def _rows(batch: Batch, rows: list[int]) -> Batch:
    index = torch.tensor(rows)
    return Batch(batch.tokens[index], batch.weight[index], batch.denominator, batch.sequence[index])
