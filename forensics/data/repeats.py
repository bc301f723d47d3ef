"""repeat_share: the share of tokens inside an n-gram that repeats 32 or more times in a row.

n = 1 … 13, as OLMo 2 has it (arXiv 2501.00656).

An n-gram that repeats r times in a row is a stretch where token i equals token i+n for at least
(r−1)·n tokens in a row; all of the stretch and the n tokens after it are inside it, a last copy cut
short included, because the n-gram that starts a little later repeats as often.
"""

from __future__ import annotations

import numpy as np

LONGEST = 13  # n of the longest n-gram looked for
TIMES = 32  # how often it must repeat in a row
BLOCK = 1 << 20  # tokens looked at together, so that a long document takes a byte or two a token


def repeat_share(tokens_T: np.ndarray) -> float:
    """Return the share of one stretch of tokens, (T,), that lies inside a repeated n-gram.

    It is 0 where there are no tokens.
    """
    tokens_T = np.asarray(tokens_T)
    return float(repeat_share_rows(tokens_T[None])[0]) if tokens_T.size else 0.0


def repeat_share_rows(tokens_BT: np.ndarray) -> np.ndarray:
    """Compute `repeat_share` of each row of a batch: (B, T) → (B,) float32.

    No n-gram reaches from one row into the next.
    """
    B, T = tokens_BT.shape
    if not B * T:
        return np.zeros(B, np.float32)
    return repeat_share_pieces(np.ascontiguousarray(tokens_BT).reshape(-1), np.arange(B) * T)


def repeat_share_pieces(tokens_N: np.ndarray, first_P: np.ndarray) -> np.ndarray:
    """Compute `repeat_share` of each piece of a stream → (P,) float32.

    Piece p is tokens first_P[p] … first_P[p+1]−1, never empty.
    """
    inside_N = _inside(tokens_N, first_P[1:])
    lengths_P = np.diff(first_P, append=len(tokens_N))
    if not inside_N.any():
        return np.zeros(len(first_P), np.float32)
    return (np.add.reduceat(inside_N, first_P, dtype=np.int64) / lengths_P).astype(np.float32)


def _inside(tokens_N: np.ndarray, boundaries: np.ndarray) -> np.ndarray:
    """Mark the tokens that lie inside a repeated n-gram: (N,) bool.

    No n-gram reaches across a boundary.
    """
    N = len(tokens_N)
    # +1 where a repeated stretch begins, −1 where it ends; at most 2 of each n overlap
    depth_N = np.zeros(N + 1, np.int8)
    for n in range(1, LONGEST + 1):
        if n * TIMES > N:
            break
        begin, end = _stretches(tokens_N, boundaries, n)
        np.add.at(depth_N, begin, 1)
        np.add.at(depth_N, end + n, -1)
    inside_N = depth_N[:-1]
    np.cumsum(inside_N, dtype=np.int8, out=inside_N)
    return np.greater(inside_N, 0, out=inside_N.view(bool))  # in place: a byte a token


def _stretches(
    tokens_N: np.ndarray, boundaries: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return begin and end of the stretches in which token i equals token i+n at least
    (TIMES − 1)·n times in a row: (S,) each.
    """
    last = len(tokens_N) - n
    crossing = (boundaries[:, None] - np.arange(1, n + 1)).reshape(-1)
    begins, ends, begin = [], [], 0
    for low in range(0, last, BLOCK):
        high = min(low + BLOCK, last)
        differs = tokens_N[low + n : high + n] != tokens_N[low:high]
        differs[crossing[(crossing >= low) & (crossing < high)] - low] = True
        breaks = low + np.flatnonzero(differs)
        begin_here = np.concatenate(([begin], breaks + 1))
        long = breaks - begin_here[:-1] >= (TIMES - 1) * n
        begins.append(begin_here[:-1][long])
        ends.append(breaks[long])
        begin = int(begin_here[-1])
    if last - begin >= (TIMES - 1) * n:
        begins.append(np.array([begin]))
        ends.append(np.array([last]))
    return np.concatenate(begins), np.concatenate(ends)
