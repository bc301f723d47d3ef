"""Find a text in a tokenised corpus: every place where it begins, exactly, by a filter of n-grams.

    index = build(corpus)                     # once; kept in the corpus's folder
    index.find("import os")                   # Occurrences: source, first and last token, document

The corpus's text is what its tokens spell (`token_text`), so it does not matter how the text was
cut into tokens: the search is over bytes, and a place is the tokens that hold its first and its
last byte. Overlapping places all count. No place reaches from one document into the next.

The filter: the stream is cut into blocks of BLOCK tokens. For each block one bit says of each of
HASHES hashed sequences of GRAM bytes whether one begins there. Bits of GROUP blocks lie together by
hash, so a search reads a row for each sequence of the text that is looked for, and then only the
tokens of blocks that may hold it. A text shorter than GRAM bytes is looked for in every block.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from forensics.data import intact
from forensics.data.shards import Corpus
from forensics.data.token_text import TokenText, token_text
from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback, silent
from forensics.store.writer import write_atomic

VERSION = 1
FOLDER, HEADER = "text-index", "index.json"
# Measured on 5.6 M tokens of the standard library: blocks of 16,384 tokens take 7 times as long
# where a text stands in few of them; blocks of 2,048 twice the disk, and hardly less time.
BLOCK = 1 << 12  # tokens: 8 to 16 kB of text, in which a fifth of the hashes is met
GROUP = 2048  # blocks whose bits lie in one file: 4 MB for 8 M tokens
GRAM = 4  # bytes: of common texts most sequences of 3 are met in every block
HASHES = 1 << 14
SPREAD = np.uint32(2654435761)  # Knuth's multiplicative hash: 2³² over the golden ratio
LONGEST = 1 << 16  # bytes of a text that is looked for
MOST = 1_000_000  # places
TOGETHER = 64  # neighbouring blocks read at once: some 4 MB with the text that they spell
FILTERED = 1 << 11  # bytes of the text whose sequences are asked of the filter


@dataclass(frozen=True)
class Occurrences:
    """Every place where a text stands: (n,) each, by source, then by place."""

    source: np.ndarray  # index in the recipe
    first: np.ndarray  # offset in the source's stream of the token that holds its first byte
    last: np.ndarray  # of the one that holds its last byte
    document: np.ndarray

    def __len__(self) -> int:
        return len(self.first)


class TextIndex:
    """A corpus whose text can be searched; `build` makes it."""

    def __init__(self, corpus: Corpus, groups: list[list[np.ndarray]]) -> None:
        self.corpus = corpus
        self._groups = groups  # by source: (HASHES, blocks / 8) uint8 each

    @cached_property
    def spelled(self) -> TokenText:
        """What each token spells."""
        return token_text(self.corpus)

    def find(self, text: str) -> Occurrences:
        """Find every place where a text begins. Errors: usage, where it is empty, too long or
        stands there too often.
        """
        needle = _needle(text)
        pieces, count = [], 0
        for source in range(len(self.corpus.sources)):
            for first, last in _runs(self.candidates(source, needle)):
                found = self._in_blocks(source, first, last, needle)
                count += len(found)
                if count > MOST:
                    raise ForensicsError(
                        "usage",
                        f"{text[:40]!r} stands there more than {MOST:,} times",
                        "look for a longer text",
                    )
                pieces.append(found)
        columns = zip(*(vars(piece).values() for piece in [NOWHERE, *pieces]))
        return Occurrences(*(np.concatenate(column) for column in columns))

    def candidates(self, source: int, needle: bytes) -> np.ndarray:
        """Find the blocks of a source in which the text may begin: (n,) ascending."""
        blocks = _blocks(self.corpus.sources[source].tokens)
        hashes = np.unique(_hashes(np.frombuffer(needle[:FILTERED], np.uint8)))
        first = _hashes(np.frombuffer(needle[:GRAM], np.uint8))
        may = np.ones(blocks, bool)
        if len(hashes):
            here = self._bits(source, hashes)
            # all but the first sequence may begin in the next block: it holds FILTERED bytes,
            # or what follows is asked of the tokens
            short = np.append(self._is_short(source)[1:], True)
            after = np.concatenate([here[:, 1:], np.zeros((len(hashes), 1), bool)], axis=1)
            may = (here | after | short).all(0) & self._bits(source, first).all(0)
        return np.flatnonzero(may)

    def _bits(self, source: int, hashes: np.ndarray) -> np.ndarray:
        """Return whether each hash is met in each block of a source: (n, blocks) bool."""
        rows = [np.unpackbits(group[hashes], axis=1) for group in self._groups[source]]
        return np.concatenate(rows, axis=1)[:, : _blocks(self.corpus.sources[source].tokens)] > 0

    def _is_short(self, source: int) -> np.ndarray:
        """Return whether a block spells so little that a text may reach beyond it: (blocks,).

        Tokens spell a byte or more but for those that spell nothing, which a document seldom holds;
        only a block of many documents, or of ids without text, can be short.
        """
        rows = [group[HASHES] for group in self._groups[source]]
        blocks = _blocks(self.corpus.sources[source].tokens)
        return np.unpackbits(np.concatenate(rows))[:blocks] > 0

    def _in_blocks(self, source: int, low: int, high: int, needle: bytes) -> Occurrences:
        """Find the places that begin in blocks low … high−1."""
        total = self.corpus.sources[source].tokens
        start, stop = low * BLOCK, min(high * BLOCK, total)
        ids = self.corpus.tokens(source, start, stop)
        text = self.spelled.of(ids)
        own_bytes, more = len(text), [ids]
        while len(text) - own_bytes < len(needle) - 1 and stop < total:
            beyond = self.corpus.tokens(source, stop, min(stop + len(needle), total))
            more.append(beyond)
            text += self.spelled.of(beyond)
            stop += len(beyond)
        begins = np.array(list(_places(text, needle, own_bytes)), np.int64)
        if not len(begins):
            return NOWHERE
        ends = self.spelled.lengths[np.concatenate(more)].cumsum()
        first = start + np.searchsorted(ends, begins, side="right")
        last = start + np.searchsorted(ends, begins + len(needle) - 1, side="right")
        document = self.corpus.document_at(source, first)
        within = document == self.corpus.document_at(source, last)
        source_n = np.full(int(within.sum()), source, np.int64)
        return Occurrences(source_n, first[within], last[within], document[within])


NOWHERE = Occurrences(*(np.empty(0, np.int64) for _ in range(4)))


def _runs(blocks: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield ascending blocks as runs first … last−1 of neighbours, TOGETHER at most."""
    start = 0
    for i in range(1, len(blocks) + 1):
        if i == len(blocks) or blocks[i] != blocks[i - 1] + 1 or i - start == TOGETHER:
            yield int(blocks[start]), int(blocks[i - 1]) + 1
            start = i


def _places(text: bytes, needle: bytes, before: int) -> Iterator[int]:
    """Yield where the needle begins in a text below `before`, overlapping ones too."""
    place = text.find(needle)
    while 0 <= place < before:
        yield place
        place = text.find(needle, place + 1)


def _needle(text: str) -> bytes:
    try:
        needle = text.encode("utf-8")
    except UnicodeEncodeError:
        raise ForensicsError(
            "usage", "wanted a text, found half of a surrogate pair in it", "leave it out"
        ) from None
    if not 0 < len(needle) <= LONGEST:
        raise ForensicsError(
            "usage",
            f"wanted a text of 1 to {LONGEST:,} bytes, found {len(needle):,}",
            "a part of it finds the same place",
        )
    return needle


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK)


def _hashes(text: np.ndarray) -> np.ndarray:
    """Return the hash of each sequence of GRAM bytes: (n,) uint8 → (n − GRAM + 1,) below HASHES."""
    if len(text) < GRAM:
        return np.empty(0, np.uint32)
    wide = text.astype(np.uint32)
    grams = wide[:-3] | wide[1:-2] << 8 | wide[2:-1] << 16 | wide[3:] << 24
    return (grams * SPREAD) >> np.uint32(33 - HASHES.bit_length())


def build(corpus: Corpus, progress: ProgressCallback = silent) -> TextIndex:
    """Open the index of a corpus, and make what of it is not there yet.

    A group of blocks is a file; an index that was interrupted goes on after its last one. Files of
    another corpus, another version or other bytes are made again. Errors: storage, integrity.
    """
    folder = corpus.folder / FOLDER
    names = [
        [f"{source}-{group}.bin" for group in range(-(-_blocks(each.tokens) // GROUP))]
        for source, each in enumerate(corpus.sources)
    ]
    if not _is_whole(folder, corpus, [name for row in names for name in row]):
        _write(folder, corpus, names, progress)
    groups = [
        [_opened(folder / name, _width(each.tokens, group)) for group, name in enumerate(row)]
        for row, each in zip(names, corpus.sources)
    ]
    return TextIndex(corpus, groups)


def is_built(corpus: Corpus) -> bool:
    """Return whether a corpus has an index of this version."""
    return _header(corpus.folder / FOLDER).get("of") == _identity(corpus)


def _identity(corpus: Corpus) -> list[object]:
    return [VERSION, corpus.hash, BLOCK, GROUP, GRAM, HASHES]


def _header(folder: Path) -> dict:
    try:
        header = json.loads((folder / HEADER).read_bytes())
    except (OSError, ValueError):
        return {}
    return header if isinstance(header, dict) else {}


def _is_whole(folder: Path, corpus: Corpus, names: list[str]) -> bool:
    """Return whether all files of the index are there and hold what was written."""
    header = _header(folder)
    if header.get("of") != _identity(corpus) or sorted(header.get("files", {})) != sorted(names):
        return False
    try:
        intact.require(folder, header["files"])
    except ForensicsError:
        (folder / HEADER).unlink(missing_ok=True)
        for name in names:  # whichever was changed: all are made again
            (folder / name).unlink(missing_ok=True)
        return False
    return True


def _write(
    folder: Path, corpus: Corpus, names: list[list[str]], progress: ProgressCallback
) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as e:
        raise ForensicsError(
            "storage", f"cannot write the index of the text to {folder}: {e.strerror}", "free space"
        ) from None
    begun = folder / "begun.json"  # whose files these are
    identity = json.dumps(_identity(corpus)).encode()
    if not begun.is_file() or begun.read_bytes() != identity:
        for path in folder.glob("*.bin"):
            path.unlink()
        write_atomic(begun, identity)
    spelled, done, total = token_text(corpus), 0, corpus.tokens_in_all
    for source, row in enumerate(names):
        for group, name in enumerate(row):
            if not (folder / name).is_file():
                write_atomic(folder / name, _group(corpus, spelled, source, group).tobytes())
            done += min(GROUP * BLOCK, corpus.sources[source].tokens - group * GROUP * BLOCK)
            progress(done, total, "tokens")
    files = {name: intact.hash_file(folder / name) for row in names for name in row}
    header = {"of": _identity(corpus), "files": files}
    write_atomic(folder / HEADER, json.dumps(header).encode())


def _group(corpus: Corpus, spelled: TokenText, source: int, group: int) -> np.ndarray:
    """Return the bits of a group of blocks: (HASHES + 1, blocks / 8) uint8.

    The last row tells blocks that spell fewer than FILTERED bytes.
    """
    total = corpus.sources[source].tokens
    met = np.zeros((8 * _width(total, group), HASHES + 1), bool)
    for row in range(len(met)):
        start = (group * GROUP + row) * BLOCK
        if start >= total:
            break
        ids = corpus.tokens(source, start, min(start + BLOCK, total))
        text = spelled.of(ids)
        tail = _tail(corpus, spelled, source, start + len(ids), total)
        met[row, _hashes(np.frombuffer(text + tail, np.uint8))] = True
        met[row, HASHES] = len(text) < FILTERED
    return np.ascontiguousarray(np.packbits(met, axis=0).T)


def _tail(corpus: Corpus, spelled: TokenText, source: int, start: int, total: int) -> bytes:
    """Return the GRAM − 1 bytes that follow a block."""
    tail = b""
    while len(tail) < GRAM - 1 and start < total:
        stop = min(start + GRAM, total)
        tail += spelled.of(corpus.tokens(source, start, stop))
        start = stop
    return tail[: GRAM - 1]


def _width(tokens: int, group: int) -> int:
    """Return the bytes of a row of a group: a bit for each of its blocks; the last has fewer."""
    return -(-min(GROUP, _blocks(tokens) - group * GROUP) // 8)


def _opened(path: Path, width: int) -> np.ndarray:
    return np.memmap(path, np.uint8, "r").reshape(HASHES + 1, width)
