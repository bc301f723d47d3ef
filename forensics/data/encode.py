"""Texts → token ids, in memory that is bounded whatever one document holds.

    Encoder(tokenizer, eot, dtype).encode(texts)    all texts' tokens, and where each begins

A tokenizer's memory and, while it is trained, its time grow faster than a text without a break. So
a text of more than LONGEST_TEXT characters is encoded in pieces, cut between words; and a run of
more than LONGEST_RUN characters of one kind is cut for the training of a tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from forensics.data.document import Document
from forensics.errors import ForensicsError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH_CHARACTERS = 1 << 20  # encoded at once, or
BATCH_DOCUMENTS = 1024
LONGEST_TEXT = 1 << 21  # characters encoded at once: some 200 bytes of memory each
LONGEST_RUN = 1 << 10  # characters of one kind, while a tokenizer is trained: their pairs' squares
LOOK_BACK = (
    1 << 14
)  # characters before a cut's place in which a space between letters is looked for

# letters, digits, spaces, or signs: what byte-level pre-tokenizers take for one word
RUNS = re.compile(r"[^\W\d_]++|\d++|\s++|(?:[^\w\s]|_)++")
LONG_SPACE = re.compile(rf"\s{{{LONGEST_RUN + 1}}}")
BETWEEN_WORDS = re.compile(r"[^\W\d_](?= [^\W\d_])")


def without_long_runs(text: str) -> list[str]:
    """Return a text in pieces: one, where no run of one kind is longer than LONGEST_RUN."""
    longest = max(map(len, text.split()), default=0)
    if longest <= LONGEST_RUN and not LONG_SPACE.search(text):
        return [text]
    cuts = [0]
    for run in RUNS.finditer(text):
        cuts += range(run.start() + LONGEST_RUN, run.end(), LONGEST_RUN)
    return [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)])]


def pieces(text: str) -> list[str]:
    """Return a text in pieces of at most LONGEST_TEXT characters, cut before a space that stands
    between two letters; where none is near, before any space, else anywhere.
    """
    out, start = [], 0
    while len(text) - start > LONGEST_TEXT:
        end = start + LONGEST_TEXT
        near = text[end - LOOK_BACK : end + 1]
        between = [match.end() for match in BETWEEN_WORDS.finditer(near)]
        cut = between[-1] if between else near.rfind(" ")
        stop = end - LOOK_BACK + cut if cut > 0 else end
        out.append(text[start:stop])
        start = stop
    return [*out, text[start:]]


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Gather documents that are encoded together."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class Encoder:
    """Encode texts with a tokenizer, an end-of-text token after each."""

    def __init__(self, tokenizer: Tokenizer, eot: int, dtype: np.dtype) -> None:
        self.tokenizer, self.eot, self.dtype = tokenizer, eot, dtype
        tokenizer.no_padding()
        tokenizer.no_truncation()
        # a text that spells <|endoftext|> does not end the document
        tokenizer.encode_special_tokens = True

    def pieces_of(self, text: str) -> int:
        """Count the pieces in which a text is encoded."""
        return 1 if len(text) <= LONGEST_TEXT else len(pieces(text))

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of all texts in a row, and the place of each text's first.

        Errors: data, for a text that the tokenizer cannot encode.
        """
        short = [text for text in texts if len(text) <= LONGEST_TEXT]
        ids = iter(self._ids(short))
        rows = []
        for text in texts:
            whole = [next(ids)] if len(text) <= LONGEST_TEXT else map(self._alone, pieces(text))
            rows.append(np.concatenate([*whole, np.array([self.eot], self.dtype)]))
        lengths = [len(row) for row in rows]
        tokens = np.concatenate(rows) if len(rows) > 1 else rows[0]  # a long one is not copied
        return tokens, np.cumsum([0, *lengths[:-1]])

    def _alone(self, piece: str) -> np.ndarray:
        return self._ids([piece])[0]

    def _ids(self, texts: list[str]) -> list[np.ndarray]:
        if not texts:
            return []
        try:
            encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as e:  # the library raises a bare Exception, e.g. without an unknown token
            raise ForensicsError(
                "data",
                f"data.tokenizer cannot encode the text: {str(e).splitlines()[0]}",
                "use a byte-level tokenizer, or one with an unknown token",
            ) from None
        return [np.array(encoding.ids, self.dtype) for encoding in encodings]
