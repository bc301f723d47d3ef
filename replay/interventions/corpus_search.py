"""Search the corpus: which sequences hold a token, a document or a stretch of tokens, which
documents hold a text, and how often each token stands there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from forensics.train.run import Run

CHUNK = 1 << 22  # tokens of the corpus looked at together


def holding(run: Run, token: int) -> np.ndarray:
    """Find all sequences that have the token as a target, held-out ones left out: (n,) int64
    sorted ids.
    """
    cut = run.recipe.data.cut
    layout = run.corpus.layout(cut)
    sequences = [np.empty(0, np.int64)]
    for index, offset, ids in _scan(run):
        # target p of the stream belongs to the sequence (p − 1) // stride; the stream's first token
        # is nobody's target, nor is a sequence's first that no other sequence ends with
        positions = offset + np.flatnonzero(ids == token)
        numbers, places = np.divmod(positions[positions > 0] - 1, cut.stride)
        numbers = np.unique(numbers[places < cut.targets])
        sequences.append(
            layout.first_sequence[index] + numbers[numbers < layout.n_sequences[index]]
        )
    return np.setdiff1d(np.concatenate(sequences), run.batches.order.held_out)


def token_counts(run: Run) -> np.ndarray:
    """Count how often each token id stands in the corpus: (V,)."""
    counts = np.zeros(run.corpus.vocabulary, np.int64)
    for _, _, ids in _scan(run):
        counts += np.bincount(ids, minlength=len(counts))
    return counts


def _scan(run: Run) -> Iterator[tuple[int, int, np.ndarray]]:
    """(source, offset, tokens) of the whole corpus, through its memory maps in pieces."""
    for index, source in enumerate(run.corpus.sources):
        for offset in range(0, source.tokens, CHUNK):
            yield (
                index,
                offset,
                run.corpus.tokens(index, offset, min(offset + CHUNK, source.tokens)),
            )


def sequences_of(run: Run, documents: frozenset[int]) -> np.ndarray:
    """Find all sequences that hold a token of these documents: (n,) sorted ids."""
    table = run.corpus.documents
    first_token, tokens = table["first_token"].to_numpy(), table["tokens"].to_numpy()
    sequences = [np.empty(0, np.int64)]
    for index, source in enumerate(run.corpus.sources):
        ids = np.array(
            [
                document
                for document in documents
                if source.first_document <= document < source.first_document + source.documents
            ],
            np.int64,
        )
        stretches = sequences_over(run, index, first_token[ids], first_token[ids] + tokens[ids])
        sequences.append(stretches.sequence)
    return np.unique(np.concatenate(sequences))


class Stretches(NamedTuple):
    """Which sequences hold a token of which stretch of a source's stream: (n,) each."""

    stretch: np.ndarray  # number of the stretch
    sequence: np.ndarray  # id


def sequences_over(run: Run, source: int, first: np.ndarray, stop: np.ndarray) -> Stretches:
    """Find the sequences that hold a token of first … stop−1 of a source's stream.

    The stretches are (m,) each and not empty; a tail that no sequence holds gives none.
    """
    cut = run.recipe.data.cut
    layout = run.corpus.layout(cut)
    low = np.maximum(-(-(first - cut.targets) // cut.stride), 0)
    high = np.minimum((stop - 1) // cut.stride, layout.n_sequences[source] - 1)
    counts = np.maximum(high - low + 1, 0)
    stretch = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(stretch)) - np.repeat(np.cumsum(counts) - counts, counts)
    return Stretches(stretch, layout.first_sequence[source] + low[stretch] + within)


def documents_holding(run: Run, text: str) -> list[int]:
    """Find all documents that hold a text, sorted. Errors: usage."""
    from forensics.data.text_index import build

    return np.unique(build(run.corpus).find(text).document).tolist()
