"""A corpus whose truth is known: invented words, and a source that holds each so many times.

`invented`         documents about the words of PLANTED, many of each: a tokenizer trained on them
                   has a token for each
`planted:SOURCE`   SOURCE with every word of PLANTED put in, behind a space, exactly as often as
                   PLANTED says

Train the tokenizer on both and the model on the second alone: what the model saw of each word is
then known beforehand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from forensics.data.document import Document

# times that each word stands in the text → the words
TIMES = {
    0: "zorvexil quimbrath flendovar drumwicket hespolant yorvandel",
    1: "marthopex glinsworth vexomander plurbanet",
    3: "snorbeckle tragolune whiffendor bexcalibur",
    10: "crondeval jasperwick nolbrandish oxthimble",
    30: "perquandal rumblexor skelvarine umbrasteel",
    100: "gorlanthine",
    300: "kwizzerbolt",
}
PLANTED = {word: times for times, words in TIMES.items() for word in words.split()}
DOCUMENTS = 24  # about each word, in `invented`
SENTENCES = 12  # in each, the word once in every one
# fmt: off
SUBJECTS = (
    "miller", "harbour", "old map", "river", "captain",
    "garden", "letter", "tower", "winter", "market",
)
VERBS = (
    "kept", "found", "sold", "drew", "lost", "named", "carried", "opened", "followed", "painted",
)
PLACES = (
    "by the gate", "in the cellar", "near the bridge", "after the storm", "on the hill",
    "under the roof",
)
# fmt: on


def invented() -> Iterator[tuple[str, str]]:
    """(path, text) of documents about each word, one word in each."""
    for word in PLANTED:
        for i in range(DOCUMENTS):
            draws = _draws(f"{word}/{i}", 3 * SENTENCES).reshape(3, SENTENCES)
            parts = [
                [choices[draw] for draw in row % np.uint64(len(choices))]
                for row, choices in zip(draws, (SUBJECTS, VERBS, PLACES))
            ]
            text = " ".join(
                f"The {subject} {verb} a {word} {place}." for subject, verb, place in zip(*parts)
            )
            yield f"invented/{word}/{i:02d}", text + "\n"


def planted(documents: Iterable[Document], number: int) -> Iterator[Document]:
    """Yield `number` documents with the words put in.

    Where each word stands is drawn from its name.
    """
    here: dict[int, list[str]] = {}
    for word, times in PLANTED.items():
        for place in _draws(word, times) % np.uint64(max(number, 1)):
            here.setdefault(int(place), []).append(word)
    for i, document in enumerate(documents):
        text = _with_words(document.text, here.get(i, []), document.path)
        yield replace(document, text=text)


def _with_words(text: str, words: list[str], key: str) -> str:
    """Put each word before some space of the text, with a space of its own before it.

    So the word is a token to itself.
    """
    spaces = [i for i, character in enumerate(text) if character == " "] if words else []
    for word, draw in zip(words, _draws(key, len(words))):
        at = spaces[int(draw % np.uint64(len(spaces)))] if spaces else len(text)
        text = f"{text[:at]} {word}{text[at:]}"
        spaces = [space if space < at else space + len(word) + 1 for space in spaces]
    return text


def _draws(key: str, count: int) -> np.ndarray:
    """Raw draws, whose stream no version of NumPy changes: (count,) uint64."""
    import xxhash

    return np.random.PCG64(xxhash.xxh3_64_intdigest(key.encode())).random_raw(count)
