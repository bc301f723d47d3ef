"""In how many distinct documents each token was met: one pass over the corpus in its order."""

from __future__ import annotations

import numpy as np

from forensics.data.shards import Corpus
from forensics.progress import ProgressCallback
from forensics.sequence_window import SequenceWindow
from forensics.tokens.exposure_tally import Tally


def documents_met(
    corpus: Corpus, cut: SequenceWindow, tally: Tally, progress: ProgressCallback, chunk: int
) -> np.ndarray:
    """Distinct documents that each token was met in, up to each state: (S, V) int64; the corpus is
    read in its order.
    """
    layout, S, V = corpus.layout(cut), tally.states, len(tally.last)
    counts = np.zeros(
        (S + 1, V), np.int64
    )  # by the state that met the pair of token and document first; S: none
    firsts = corpus.documents["first_token"].to_numpy()
    rows, total, scanned = max(1, chunk // cut.stride), sum(layout.n_sequences), 0
    for s, source in enumerate(corpus.sources):
        n, offset = layout.n_sequences[s], layout.first_sequence[s]
        met, met_last = (tallied[offset : offset + n] for tallied in (tally.met, tally.met_last))
        first_D = firsts[source.first_document :][: source.documents]
        pending = _Pending(V, S)
        for a in range(0, n, rows):
            b = min(a + rows, n)
            snap_P = _met_positions(met, met_last, a, b, cut, S)
            if (snap_P < S).any():
                start = a * cut.stride
                tokens_P = corpus.tokens(s, start, start + len(snap_P))
                _count_pairs(tokens_P, snap_P, start, first_D, counts, pending)
            scanned += b - a
            progress(scanned, total, "counting documents")
    return counts[:S].cumsum(0)


def _met_positions(
    met: np.ndarray, met_last: np.ndarray, a: int, b: int, cut: SequenceWindow, never: int
) -> np.ndarray:
    """Return the state that first met each position of sequences a … b−1.

    (P,); where neighbours share a position, it is the earlier of the two.
    """
    snap_P = np.repeat(met[a:b], cut.stride)
    if not cut.shared:
        snap_P[cut.stride - 1 :: cut.stride] = met_last[a:b]
        return snap_P
    before = np.concatenate(
        (met_last[a - 1 : a] if a else np.full(1, never, met.dtype), met_last[a : b - 1])
    )
    np.minimum(snap_P[:: cut.stride], before, out=snap_P[:: cut.stride])
    return np.append(snap_P, met_last[b - 1]) if b == len(met) else snap_P


class _Pending:
    """The document at the end of a stretch, which may go on in the next: the state that first met
    each token in it.
    """

    def __init__(self, vocabulary: int, never: int) -> None:
        self.document, self.never = -1, never
        self.met = np.full(vocabulary, never, np.int64)


def _count_pairs(
    tokens_P: np.ndarray,
    snap_P: np.ndarray,
    start: int,
    first_D: np.ndarray,
    counts: np.ndarray,
    pending: _Pending,
) -> None:
    """Add each pair of token and document among the positions from `start` on, once, at the state
    that met it first.
    """
    low, high = (
        np.searchsorted(first_D, [start, start + len(tokens_P) - 1], side="right") - 1
    ).tolist()
    edges = np.concatenate(([0], first_D[low + 1 : high + 1] - start, [len(tokens_P)]))
    D, S = high - low + 1, pending.never
    document_P = np.repeat(np.arange(D), np.diff(edges))
    keep = snap_P < S
    key = (tokens_P[keep] * D + document_P[keep]) * S + snap_P[keep]
    if len(counts[0]) * D * S < 1 << 32:
        key = key.astype(np.uint32)  # sorts in half the time
    key = np.sort(key)
    pair = key // S if S > 1 else key
    first = np.flatnonzero(
        np.concatenate(([True], pair[1:] != pair[:-1])) if len(pair) else np.zeros(0, bool)
    )
    snap = (key[first] % S).astype(np.int64) if S > 1 else np.zeros(len(first), np.int64)
    token, document = np.divmod(pair[first].astype(np.int64), D)
    going_on = low == pending.document
    if (
        going_on
    ):  # the first document was in the stretch before: what it held there is counted already
        here = np.flatnonzero(document == 0)
        before = pending.met[token[here]]
        np.subtract.at(counts, (before, token[here]), 1)
        np.add.at(counts, (np.minimum(before, snap[here]), token[here]), 1)
        pending.met[token[here]] = np.minimum(before, snap[here])
    new = document > 0 if going_on else slice(None)
    np.add.at(counts, (snap[new], token[new]), 1)
    if not (going_on and D == 1):
        pending.document = high
        pending.met[:] = S
        of_last = document == D - 1
        pending.met[token[of_last]] = snap[of_last]
