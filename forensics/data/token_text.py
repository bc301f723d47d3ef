"""The bytes that each token spells, so that a stream of tokens is a text with places.

    spelled = token_text(corpus)
    b"".join(spelled.of(ids))              the text of these tokens, as UTF-8
    spelled.lengths[ids].cumsum()          where each of them ends in it

A token's bytes do not depend on its neighbours. Byte-level and byte-fallback tokens are their
bytes; any other is what the tokenizer decodes behind another token. The end-of-text token, and ids
that the tokenizer does not know, spell nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from forensics.data.tokenize import byte_characters

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from forensics.data.shards import Corpus

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
CARRIERS = ("a", "0", ".")  # texts behind which a token is decoded; or, where they are unknown,
OWN_CARRIERS = 8  # of the vocabulary's first tokens
TOGETHER = 1 << 16  # tokens spelled at once: what lies in a processor's cache is 3 times as fast


class TokenText:
    """The bytes of every id of a corpus, one after the other in `flat`."""

    def __init__(self, spelled: list[bytes]) -> None:
        self.flat = np.frombuffer(b"".join(spelled), np.uint8)  # (bytes,)
        self.lengths = np.array([len(each) for each in spelled], np.int64)  # (V,)
        self._counts = self.lengths.astype(np.int32)
        self._first = (np.cumsum(self.lengths) - self.lengths).astype(np.int32)

    def of(self, ids: np.ndarray) -> bytes:
        """Return the text of tokens: (n,) ids → UTF-8, its ends perhaps within a character."""
        return b"".join(
            self._piece(ids[start : start + TOGETHER]) for start in range(0, len(ids), TOGETHER)
        )

    def _piece(self, ids: np.ndarray) -> bytes:
        counts = self._counts[ids]
        ends = counts.cumsum(dtype=np.int32)
        places = np.repeat(self._first[ids] - (ends - counts), counts)
        places += np.arange(len(places), dtype=np.int32)
        return self.flat.take(places).tobytes()


def token_text(corpus: Corpus) -> TokenText:
    """Return what each id of a corpus spells. Errors: integrity, where its tokenizer changed."""
    tokenizer = corpus.tokenizer
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    added = {id: token.content for id, token in tokenizer.get_added_tokens_decoder().items()}
    spelled = [b""] * max(corpus.vocabulary, max(vocabulary.values()) + 1)
    others: list[int] = []
    read = _reader(tokenizer)
    for token, id in vocabulary.items():
        content = read(token)
        if id in added and not BYTE.fullmatch(token):  # stands in the text as it is spelled
            content = added[id].encode()
        if content is None:
            others.append(id)
        else:
            spelled[id] = content
    for id, text in zip(others, _behind_another(tokenizer, others)):
        spelled[id] = text.encode()
    if corpus.eot >= 0:  # token files made elsewhere may have none
        spelled[corpus.eot] = b""
    return TokenText(spelled)


def _reader(tokenizer: Tokenizer) -> Callable[[str], bytes | None]:
    """Return a function from a token as the vocabulary spells it to its bytes; None: not by it."""
    if "ByteLevel" in f"{tokenizer.pre_tokenizer} {tokenizer.decoder}":
        values = {character: byte for byte, character in enumerate(byte_characters())}

        def of_alphabet(token: str) -> bytes | None:
            if all(character in values for character in token):
                return bytes(values[character] for character in token)
            return token.encode()

        return of_alphabet

    def of_fallback(token: str) -> bytes | None:
        match = BYTE.fullmatch(token)
        return bytes([int(match[1], 16)]) if match else None

    return of_fallback if "ByteFallback" in str(tokenizer.decoder) else lambda token: None


def _behind_another(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """Return what each id adds to the text of a token before it."""
    for first in _carriers(tokenizer):
        before = tokenizer.decode(first, skip_special_tokens=False)
        texts = tokenizer.decode_batch([[*first, id] for id in ids], skip_special_tokens=False)
        if before.strip() and all(text.startswith(before) for text in texts):
            return [text.removeprefix(before) for text in texts]
    return tokenizer.decode_batch([[id] for id in ids], skip_special_tokens=False)


def _carriers(tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Yield tokens behind which another can be decoded."""
    for text in CARRIERS:
        yield tokenizer.encode(text, add_special_tokens=False).ids[-1:]
    yield from ([id] for id in sorted(tokenizer.get_vocab().values())[:OWN_CARRIERS])
