"""Text into sequences: text packed to length, and sequences whose text was edited.

An edited sequence keeps its length. Its text is cut where a document ends; every piece that
an edit changed is tokenised again, every other piece keeps its tokens. What is then too long is cut
at its end; what is too short goes on in its source's stream after the sequence (and from the
stream's start where that ends). The whole text, uncut, stays with the row until the batch is
trained on, so a later edit alters that text and not what was left of it: an edit and its inverse
give back the row, bit for bit, wherever the text itself comes back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from forensics.errors import ForensicsError
from forensics.step.batch import MADE, Batch

if TYPE_CHECKING:
    from torch import Tensor

    from forensics.train.run import Run

LONGEST_CHARACTER = 4  # bytes of UTF-8, and so tokens at most
BROKEN = "\ufffd"  # what the bytes of a cut character decode to


@dataclass(frozen=True)
class Piece:
    """A stretch of a sequence: the tokens it had, the text they spelled and the text it has now."""

    tokens: tuple[int, ...]
    # empty for what no edit reaches: end-of-text tokens, and characters that the sequence's ends
    # cut in two
    was: str
    now: str


@dataclass(frozen=True, eq=False)
class Edited:
    """A row whose text was edited: what it was, and its pieces."""

    tokens: Tensor  # of one sequence, as the stream had them
    sequence: int
    pieces: tuple[Piece, ...]

    @property
    def unchanged(self) -> bool:
        """Whether its text is what it was."""
        return all(piece.was == piece.now for piece in self.pieces)


@dataclass(frozen=True, eq=False)
class EditedBatch(Batch):
    """A batch that remembers the whole text of the rows that were edited."""

    edited: Mapping[int, Edited] = field(default_factory=dict)


def edited_rows(batch: Batch) -> dict[int, Edited]:
    """Return the rows of the batch whose text was edited."""
    return dict(batch.edited) if isinstance(batch, EditedBatch) else {}


def encode(run: Run, text: str) -> list[int]:
    """Encode a text, in which no special token is recognised. Errors: data."""
    tokenizer = run.corpus.tokenizer
    tokenizer.encode_special_tokens = True  # as when the corpus was made
    try:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    except Exception as e:  # the library raises a bare Exception
        raise ForensicsError(
            "data",
            f"the run's tokenizer cannot encode the text: {str(e).splitlines()[0]}",
            "use characters that its vocabulary has",
        ) from None
    return ids


def packed(run: Run, text: str, n: int | None = None) -> Tensor:
    """Pack a text and its end-of-text token into sequences, from the start again where it ends.

    They are (n, tokens of a sequence), cut as the corpus is. n left out: as many as hold the
    whole text once.
    """
    import torch

    cut = run.recipe.data.cut
    ids = np.array([*encode(run, text), run.corpus.eot], np.int64)
    rows = max(1, -(-(len(ids) - cut.shared) // cut.stride)) if n is None else n
    positions = np.arange(rows)[:, None] * cut.stride + np.arange(cut.length)
    return torch.from_numpy(ids[positions % len(ids)])


def edit(batch: Batch, run: Run, find: str, replacement: str) -> Batch:
    """Replace every occurrence in the batch; a row without one is untouched."""
    before = edited_rows(batch)
    rows: dict[int, Edited] = {}
    for slot, sequence in enumerate(batch.sequence.tolist()):
        if slot not in before and find not in run.corpus.decode(batch.tokens[slot].numpy()):
            continue
        row = before.get(slot) or Edited(
            batch.tokens[slot], sequence, _pieces(run, batch.tokens[slot].tolist())
        )
        pieces = tuple(
            replace(piece, now=piece.now.replace(find, replacement)) for piece in row.pieces
        )
        if pieces != row.pieces:
            rows[slot] = replace(row, pieces=pieces)
    if not rows:
        return batch
    tokens, sequence = batch.tokens.clone(), batch.sequence.clone()
    for slot, row in rows.items():
        tokens[slot] = row.tokens if row.unchanged else _rendered(run, row)
        sequence[slot] = row.sequence if row.unchanged else MADE
    edited = {slot: row for slot, row in (before | rows).items() if not row.unchanged}
    if edited:
        parts = (batch.weight, batch.denominator, sequence, batch.origin, batch.own_row)
        return EditedBatch(tokens, *parts, edited)
    return Batch(tokens, batch.weight, batch.denominator, sequence, batch.origin, batch.own_row)


def _pieces(run: Run, ids: Sequence[int]) -> tuple[Piece, ...]:
    eot, pieces, piece = run.corpus.eot, list[Piece](), list[int]()
    for i, id in enumerate([*ids, eot]):
        if id != eot:
            piece.append(id)
            continue
        pieces += _whole_characters(run, piece)
        if i < len(ids):
            pieces.append(Piece((eot,), "", ""))
        piece = []
    return tuple(pieces)


def _whole_characters(run: Run, ids: list[int]) -> list[Piece]:
    """Split a piece from the halves of characters at its ends, which stay as they are."""
    low, high = 0, len(ids)
    for cut in range(min(LONGEST_CHARACTER, len(ids))):
        if not run.corpus.decode(ids[cut:]).startswith(BROKEN):
            low = cut
            break
    for cut in range(min(LONGEST_CHARACTER, len(ids) - low)):
        if not run.corpus.decode(ids[low : len(ids) - cut]).endswith(BROKEN):
            high = len(ids) - cut
            break
    text = run.corpus.decode(ids[low:high])
    pieces = [
        Piece(tuple(ids[:low]), "", ""),
        Piece(tuple(ids[low:high]), text, text),
        Piece(tuple(ids[high:]), "", ""),
    ]
    return [piece for piece in pieces if piece.tokens]


def _rendered(run: Run, row: Edited) -> Tensor:
    """Its pieces as the tokens of one sequence."""
    import torch

    ids: list[int] = []
    for piece in row.pieces:
        ids += piece.tokens if piece.was == piece.now else encode(run, piece.now)
    length = len(row.tokens)
    if len(ids) < length:
        ids += _continuation(run, row.sequence, ids, length - len(ids))
    return torch.tensor(ids[:length])


def _continuation(run: Run, sequence: int, ids: list[int], n: int) -> list[int]:
    """n tokens that follow a sequence in its source's stream; a sequence that was made begins
    again.
    """
    if sequence < 0:
        again = ids or [run.corpus.eot]
        return (again * -(-n // len(again)))[:n]
    cut = run.recipe.data.cut
    source = int(run.batches.order.source_of(np.array([sequence]))[0])
    total = run.corpus.sources[source].tokens
    number = sequence - run.corpus.layout(cut).first_sequence[source]
    start = number * cut.stride + cut.length
    following = run.corpus.tokens(source, min(start, total), min(start + n, total)).tolist()
    while len(following) < n:
        following += run.corpus.tokens(source, 0, min(n - len(following), total)).tolist()
    return following
