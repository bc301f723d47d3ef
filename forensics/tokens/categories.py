"""What a tokenizer can reach: each id decoded, encoded again, and put into a category (Land &
Bartolo 2024).

categorise(tokenizer).counts()      {"OK": 48868, "UNDECODEABLE": 137, …}

Where the tokenizer puts a space before a text, or its decoder takes one away, the texts go through
behind «, or » where « grows together with what follows, and the sign is taken off again: else every
word would look unreachable.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from forensics.data.tokenize import byte_characters
from forensics.errors import ForensicsError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CATEGORIES = (
    "OK",
    "OK_SPECIAL",
    "UNREACHABLE_SPECIAL",
    "UNDECODEABLE",
    "UNREACHABLE_SINGLE_TOKEN",
    "UNREACHABLE_MULTI_TOKEN",
)
SIGNS = ("«", "»")
OWN_SIGNS = 16  # characters of the vocabulary that stand for these, where it has neither
SPACES = " ▁_Ġ"  # a first character that stands for a space in front
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, eq=False)
class Categories:
    """Every id the tokenizer has, in order; the lists are as long as `ids`."""

    ids: np.ndarray
    raw: list[str]  # as the vocabulary spells it
    text: list[str]  # as it decodes alone
    category: list[str]  # one of CATEGORIES
    again: list[list[int]]  # what its text is encoded as
    byte: list[
        str | None
    ]  # ascii | utf8 | unused_utf8 (C0, C1, F5–FF: in no UTF-8 text), of tokens of one byte
    special: np.ndarray  # bool: a special id, or spelled like one: <…> or […]

    def counts(self) -> dict[str, int]:
        """Tokens of each category, over the whole vocabulary."""
        counted = Counter(self.category)
        return {category: counted[category] for category in CATEGORIES if counted[category]}

    def summary(self) -> dict[str, int]:
        """Bytes by their kind, specials, and the unreachable and partial ones that are neither."""
        aside = np.array([kind is not None for kind in self.byte], bool) | self.special
        remaining = Counter(c for c, left_out in zip(self.category, aside) if not left_out)
        bytes_ = Counter(kind for kind in self.byte if kind)
        return {
            "unreachable": sum(
                n for category, n in remaining.items() if category.startswith("UNREACHABLE")
            ),
            "partial_utf8": remaining["UNDECODEABLE"],
            "special": int(self.special.sum()),
            **{f"bytes_{kind}": bytes_[kind] for kind in ("ascii", "utf8", "unused_utf8")},
        }

    @cached_property
    def position(self) -> dict[int, int]:
        """id → its place in the lists."""
        return {int(id): place for place, id in enumerate(self.ids)}

    @cached_property
    def reachable(self) -> np.ndarray:
        """bool: the category starts with OK."""
        return np.array([category.startswith("OK") for category in self.category], bool)


def categorise(tokenizer: Tokenizer, special: Sequence[int] | frozenset[int] = ()) -> Categories:
    """Return the category of every id, first match wins; `special` ids beside those that the
    tokenizer marks so.

    1. its text encodes to itself: OK, or OK_SPECIAL; 2. bracketed like a special token:
       UNREACHABLE_SPECIAL; 3. it holds U+FFFD, a part of a character: UNDECODEABLE; 4. UNREACHABLE,
       by whether one token or several come back. Source: arXiv 2405.05417. Errors: data, where the
       tokenizer cannot encode some text of its own.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    spelled = {id: raw for raw, id in vocabulary.items()}
    ids = sorted(spelled)
    raw = [spelled[id] for id in ids]
    specials = {
        id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special
    } | set(special)
    trip = RoundTrip(tokenizer)
    text = trip.decode([[id] for id in ids])
    again = trip.encode(text)
    _read_behind_a_letter(tokenizer, ids, raw, text, again)
    category = [_category(id, s, t, specials) for id, s, t in zip(ids, text, again)]
    bytes_ = _byte_kinds(tokenizer, raw)
    marked = [id in specials or _bracketed(r) for id, r in zip(ids, raw)]
    return Categories(
        np.array(ids, np.int64), raw, text, category, again, bytes_, np.array(marked, bool)
    )


def _read_behind_a_letter(
    tokenizer: Tokenizer, ids: list[int], raw: list[str], text: list[str], again: list[list[int]]
) -> None:
    """Replace text and encoding of a WordPiece's continuations (`##ing`), which stand inside words
    only.
    """
    prefix = getattr(tokenizer.model, "continuing_subword_prefix", None) or ""
    if type(tokenizer.model).__name__ != "WordPiece" or not prefix:
        return
    places = [
        i for i, spelled in enumerate(raw) if spelled.startswith(prefix) and spelled != prefix
    ]
    trip = RoundTrip(tokenizer, behind=True)
    texts = trip.decode([[ids[i]] for i in places])
    for i, piece, encoded in zip(places, texts, trip.encode(texts)):
        text[i], again[i] = piece, encoded


def _category(id: int, s: str, t: list[int], specials: set[int]) -> str:
    if t == [id]:
        return "OK_SPECIAL" if id in specials else "OK"
    if len(s) >= 3 and s[0] in "[<" and s[-1] in "]>" and any(c.isalpha() for c in s):
        return "UNREACHABLE_SPECIAL"
    if "\ufffd" in s:
        return "UNDECODEABLE"
    return "UNREACHABLE_SINGLE_TOKEN" if len(t) == 1 else "UNREACHABLE_MULTI_TOKEN"


def _bracketed(raw: str) -> bool:
    return (
        len(raw) >= 3
        and raw[0] in "[<"
        and raw[-1] in "]>"
        and not raw.startswith("<0x")
        and any(c.isascii() and c.isalpha() for c in raw)
    )


class RoundTrip:
    """Decoding and encoding that neither adds nor loses a space in front.

    `behind`: each is read behind a letter, in one word with it, though no space moves.
    """

    def __init__(self, tokenizer: Tokenizer, behind: bool = False) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = tokenizer = Tokenizer.from_str(
            tokenizer.to_str()
        )  # its switches are others' too
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = False  # a text that spells a special token is that token
        self.signs: list[tuple[str, list[int]]] = []
        if behind:
            letters = [c for c in self._own_characters() if c.isalnum()]
            self.signs = self._signs(letters)[:OWN_SIGNS]
        elif self._moves_spaces():
            self.signs = self._signs(SIGNS) or self._signs(self._own_characters())[:OWN_SIGNS]

    def _signs(self, characters: Sequence[str]) -> list[tuple[str, list[int]]]:
        """Return the characters that the tokenizer gives back, with their ids."""
        encoded = zip(characters, self._encode(list(characters)))
        return [
            (sign, ids)
            for sign, ids in encoded
            if self.tokenizer.decode(ids, skip_special_tokens=False).strip() == sign
        ]

    def _own_characters(self) -> list[str]:
        """Return the vocabulary's letters, digits and signs of one character, by id."""
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        return [
            token
            for token, _ in vocabulary
            if len(token) == 1 and token not in SPACES and token.isprintable()
        ]

    def decode(self, sequences: Sequence[list[int]]) -> list[str]:
        """Return the text of each sequence of ids."""
        texts: dict[int, str] = {}
        for sign, ids in self.signs:
            left = [i for i in range(len(sequences)) if i not in texts]
            for i, text in zip(left, self._decode([[*ids, *sequences[i]] for i in left])):
                text = text.removeprefix(" ")
                if text.startswith(sign):
                    texts[i] = text.removeprefix(sign)
        left = [i for i in range(len(sequences)) if i not in texts]
        texts |= zip(left, self._decode([sequences[i] for i in left]))
        return [texts[i] for i in range(len(sequences))]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text.

        Of one that grows together with every sign, the sign included.
        """
        encodings: dict[int, list[int]] = {}
        joined: dict[int, list[int]] = {}
        for sign, ids in self.signs:
            left = [i for i in range(len(texts)) if i not in encodings]
            for i, encoded in zip(left, self._encode([sign + texts[i] for i in left])):
                if encoded[: len(ids)] == ids:
                    encodings[i] = encoded[len(ids) :]
                else:
                    joined.setdefault(i, encoded)
        encodings = joined | encodings
        left = [i for i in range(len(texts)) if i not in encodings]
        encodings |= zip(left, self._encode([texts[i] for i in left]))
        return [encodings[i] for i in range(len(texts))]

    def _moves_spaces(self) -> bool:
        """Whether a space comes in front of a text, or the decoder takes away the one that was
        there.
        """
        plain, spaced = (ids[0] if ids else None for ids in self._encode(["test", " test"]))
        if plain is not None and (self.tokenizer.id_to_token(plain) or "t")[0] in SPACES:
            return True
        if spaced is None or (self.tokenizer.id_to_token(spaced) or "t")[0] not in SPACES:
            return False
        return not self.tokenizer.decode([spaced], skip_special_tokens=False).startswith(" ")

    def _decode(self, sequences: list[list[int]]) -> list[str]:
        return self.tokenizer.decode_batch(sequences, skip_special_tokens=False)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        try:
            return [
                e.ids for e in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            ]
        except Exception as e:  # the library raises a bare Exception
            raise ForensicsError(
                "data",
                f"the tokenizer cannot encode its own tokens: {str(e).splitlines()[0]}",
                "does its model name an unknown token that it holds?",
            ) from None


def _byte_kinds(tokenizer: Tokenizer, raw: list[str]) -> list[str | None]:
    """Which tokens are one byte: of GPT-2's alphabet, or <0xNN> and the ASCII characters."""
    parts = f"{tokenizer.normalizer} {tokenizer.pre_tokenizer} {tokenizer.decoder}"
    alphabet = (
        {character: byte for byte, character in enumerate(byte_characters())}
        if "ByteLevel" in parts
        else {}
    )

    def value(token: str) -> int | None:
        if alphabet:
            return alphabet.get(token)
        if match := BYTE.fullmatch(token):
            return int(match[1], 16)
        return ord(token) if len(token) == 1 and token.isascii() else None

    return [_byte_kind(value(token)) for token in raw]


def _byte_kind(byte: int | None) -> str | None:
    if byte is None:
        return None
    if byte < 0x80:
        return "ascii"
    return "unused_utf8" if byte in (0xC0, 0xC1) or byte >= 0xF5 else "utf8"
