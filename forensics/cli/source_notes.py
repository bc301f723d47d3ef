"""What a run's text lacks and what is odd about it: files left out, long documents, links."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forensics.visible import visible

if TYPE_CHECKING:
    from forensics.data.shards import Corpus

SHOWN = 5  # notes of a source that are named; the others are counted


def as_json(corpus: Corpus) -> list[dict[str, Any]]:
    """Return what was left out and noted of each source that has any of it."""
    return [
        {"source": source.name, "left_out": source.left_out, "notes": source.notes}
        for source in corpus.sources
        if source.left_out or source.notes
    ]


def lines(corpus: Corpus) -> list[str]:
    """Return the same as sentences, the first of each kind named."""
    sentences = []
    for source in corpus.sources:
        for notes, verb in ((source.left_out, "left out of"), (source.notes, "noted of")):
            if notes:
                named = "; ".join(visible(note) for note in notes[:SHOWN])
                more = f"; and {len(notes) - SHOWN:,} more" if len(notes) > SHOWN else ""
                sentences.append(f"{verb} source {source.name}: {named}{more}")
    return sentences
