"""A tokenised corpus on disk: memory-mapped shards of tokens, a documents table, a tokenizer.

`<runs>/_data/<content hash>/`: `corpus.json`, `tokenizer.json`, `documents.parquet` and, for each
source, the shards `<source index>-<k>.bin`: its stream of token ids, little-endian, an end-of-text
token after every document. Nothing on disk depends on how it is cut into sequences; a
`SequenceWindow` says that, and no sequence reaches from one source into the next.
"""

from __future__ import annotations

import json
import resource
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forensics import records
from forensics.data import intact
from forensics.data.token_files.scan import beyond_table
from forensics.errors import ForensicsError
from forensics.sequence_window import SequenceWindow

if TYPE_CHECKING:
    import pyarrow
    from tokenizers import Tokenizer

FORMAT = 1
AGAIN = "delete the folder and prepare the corpus again"
MOVED = "put it back, or import the run again, with --data where its files lie now"
# files held open by a corpus, of those that this process may open (1,024 where nobody raised that)
MAPS = max(64, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
TOKENIZER, DOCUMENTS = "tokenizer.json", "documents.parquet"


@dataclass(frozen=True)
class Shard:
    """Name one file of a source's stream."""

    file: str  # in the corpus's folder, or in full where it lies elsewhere
    tokens: int
    hash: str  # xxh3_128 of its bytes, or of a sample of them (`intact.sample_hash`)
    # of a file made elsewhere:
    bytes: int | None = None  # its size; None: that of its tokens
    offset: int = 0  # bytes before its first token
    dtype: str = ""  # of its ids; empty: the corpus's


@dataclass(frozen=True)
class Source:
    """One source's stream."""

    name: str  # in the recipe
    spec: str  # what it was read from
    tokens: int  # end-of-text tokens included
    documents: int
    first_document: int  # documents are counted over all sources
    hash: str  # xxh3_128 of its documents' paths and texts
    left_out: tuple[str, ...]  # documents that could not be read: "path: why"
    shards: tuple[Shard, ...]
    notes: tuple[str, ...] = ()  # what is odd about documents that were read: "path: what"
    # a .npy of (2, P): where each document begins in the stream and in the one shard, for a stream
    # that lays the shard's documents in another order; empty: the stream is the shards as they lie
    pieces: str = ""


@dataclass(frozen=True)
class Layout:
    """Say how the sequences of one window lie over the sources.

    Ids are counted over all sources, in the recipe's order.
    """

    n_sequences: tuple[int, ...]  # of each source
    first_sequence: tuple[int, ...]  # id of each source's first
    tail: tuple[int, ...]  # tokens at each source's end that no sequence holds


@dataclass(frozen=True)
class Span:
    """Hold a stretch of a sequence that comes from one document.

    It is positions start … stop−1 of the sequence's tokens.
    """

    document: int
    source: str
    path: str
    offset: int  # of the first of these tokens within the document, in tokens
    start: int
    stop: int


class Corpus:
    """Read an open corpus; `open_corpus` makes it.

    Token ids lie below `vocabulary`; `eot` ends every document. A file is read only while it holds
    the bytes that were written (`forensics.data.intact`): reading anything else raises integrity.
    """

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        self.folder = folder
        self.hash: str = header["hash"]
        self.vocabulary: int = header["vocabulary"]
        self.eot: int = header["eot"]
        self.sources: tuple[Source, ...] = tuple(
            Source(
                **{
                    **entry,
                    "left_out": tuple(entry["left_out"]),
                    "notes": tuple(entry.get("notes", ())),
                    "shards": tuple(Shard(**shard) for shard in entry["shards"]),
                }
            )
            for entry in header["sources"]
        )
        # its tokens lie in files that another trainer read, where they are
        self.linked: bool = header.get("linked", False)
        self.ids_only: bool = header.get("ids_only", False)  # no tokenizer: text is shown as ids
        self._dtype = np.dtype(header["dtype"])
        self._layouts: dict[SequenceWindow, Layout] = {}
        # by source and shard, the last used last; each holds a file open
        self._pieces: dict[int, np.ndarray] = {}  # by source
        self._maps: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self.hashes: dict[str, str] = {  # by file
            shard.file: shard.hash for source in self.sources for shard in source.shards
        } | header["files"]

    @property
    def sampled(self) -> int:
        """Count the files of which a sample is hashed, and not every byte."""
        return sum(digest.startswith(intact.SAMPLED) for digest in self.hashes.values())

    @property
    def tokens_in_all(self) -> int:
        """Count the tokens of all sources."""
        return sum(source.tokens for source in self.sources)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, as `tokenizer.json` holds it."""
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.tokenizer_file))

    @property
    def tokenizer_file(self) -> Path:
        """Return the path of `tokenizer.json`. Errors: integrity."""
        return self._intact(TOKENIZER)

    @property
    def documents_file(self) -> Path:
        """Return the path of `documents.parquet`. Errors: integrity."""
        return self._intact(DOCUMENTS)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of token ids, special tokens written out.

        Bytes that are no whole character give U+FFFD.
        """
        return self.tokenizer.decode([int(token) for token in ids], skip_special_tokens=False)

    def layout(self, cut: SequenceWindow) -> Layout:
        """Where the sequences lie. Errors: data, where a source has none."""
        if cut not in self._layouts:
            counts = [cut.count(source.tokens) for source in self.sources]
            for source, count in zip(self.sources, counts):
                if count < 1 and not (self.linked and any(counts)):
                    raise ForensicsError(
                        "data",
                        f"source {source.name!r}: wanted at least {cut.length} tokens for one "
                        f"sequence, found {source.tokens}",
                        "lower data.sequence_length, or give the source more text",
                    )
            firsts = [0, *accumulate(counts[:-1])]
            tails = [
                source.tokens - (count * cut.stride + cut.shared)
                for source, count in zip(self.sources, counts)
            ]
            self._layouts[cut] = Layout(tuple(counts), tuple(firsts), tuple(tails))
        return self._layouts[cut]

    def tokens(self, source: int, start: int, stop: int) -> np.ndarray:
        """Tokens start … stop−1 of a source's stream: (stop − start,) int64."""
        total = self.sources[source].tokens
        assert 0 <= start <= stop <= total, f"tokens {start}:{stop} of a stream of {total}"
        if self.sources[source].pieces:
            return self._of_pieces(source, start, stop)
        first_K = self._first_tokens[source]
        pieces = [np.empty(0, np.int64)]
        shard = int(np.searchsorted(first_K, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(first_K[shard + 1]))
            pieces.append(
                self._map(source, shard)[start - first_K[shard] : end - first_K[shard]].astype(
                    np.int64
                )
            )
            start, shard = end, shard + 1
        return np.concatenate(pieces)

    def sequences(self, ids: np.ndarray, cut: SequenceWindow) -> np.ndarray:
        """Return the tokens of sequences: (n,) ids → (n, cut.length) int64.

        Errors: missing, for an id out of range.
        """
        source_n, start_n = self._starts(np.asarray(ids, np.int64), cut)
        out = np.empty((len(source_n), cut.length), np.int64)
        sources = np.unique(source_n)
        if self.linked:  # files that are met for the first time are looked at together
            shards = (self.sources[source].shards[0] for source in sources)
            intact.require(self.folder, {shard.file: shard.hash for shard in shards})
        for source in sources:
            rows = np.flatnonzero(source_n == source)
            if self.sources[source].pieces:
                for row in rows:
                    start = int(start_n[row])
                    out[row] = self._of_pieces(int(source), start, start + cut.length)
                continue
            first_K = self._first_tokens[source]
            shard_n = np.searchsorted(first_K, start_n[rows], side="right") - 1
            whole_n = start_n[rows] + cut.length <= first_K[shard_n + 1]
            for shard in np.unique(shard_n[whole_n]):
                chosen = rows[whole_n & (shard_n == shard)]
                windows = np.lib.stride_tricks.sliding_window_view(
                    self._map(int(source), int(shard)), cut.length
                )
                out[chosen] = windows[start_n[chosen] - first_K[shard]]
            for row in rows[~whole_n]:  # few: one at each border between shards
                start = int(start_n[row])
                out[row] = self.tokens(int(source), start, start + cut.length)
        if self.linked and len(out) and int(out.max()) >= self.vocabulary:
            first = int(np.flatnonzero((out >= self.vocabulary).any(1))[0])
            file = self.sources[source_n[first]].spec
            raise beyond_table(Path(file), out[first], self.vocabulary, int(start_n[first]))
        return out

    def document_at(self, source: int, token_offset: np.ndarray) -> np.ndarray:
        """Return the documents that hold the tokens at these offsets in a source's stream.

        Document ids, of the offsets' shape.
        """
        first_D = self._first_tokens_of_documents[source]
        return (
            np.searchsorted(first_D, token_offset, side="right")
            - 1
            + self.sources[source].first_document
        )

    def spans(self, ids: np.ndarray, cut: SequenceWindow) -> list[list[Span]]:
        """Return where each sequence's tokens come from, in order of position.

        Id −1 (made by an intervention) has no span.
        """
        ids = np.asarray(ids, np.int64)
        out: list[list[Span]] = [[] for _ in ids]
        real = np.flatnonzero(ids != -1)
        source_n, start_n = self._starts(ids[real], cut)
        low_n, high_n = np.empty_like(start_n), np.empty_like(start_n)
        for source in np.unique(source_n):
            rows = source_n == source
            low_n[rows] = self.document_at(source, start_n[rows])
            high_n[rows] = self.document_at(source, start_n[rows] + cut.length - 1)
        places = zip(*(each.tolist() for each in (real, source_n, start_n, low_n, high_n)))
        for row, source, start, low, high in places:
            firsts = self._first_tokens_of_documents[source][
                low - self.sources[source].first_document :
            ][: high - low + 1]
            edges = [start, *firsts[1:].tolist(), start + cut.length]
            for i, first in enumerate(firsts.tolist()):
                document = low + i
                out[row].append(
                    Span(
                        document,
                        self.sources[source].name,
                        self.documents["path"][document].as_py(),
                        edges[i] - first,
                        edges[i] - start,
                        edges[i + 1] - start,
                    )
                )
        return out

    @cached_property
    def documents(self) -> pyarrow.Table:
        """The documents table, row = document id; its columns are those of `records.DOCUMENTS`."""
        import pyarrow.parquet as pq

        names = [column.name for column in records.DOCUMENTS.columns]
        return pq.read_table(self.documents_file, columns=names, memory_map=True)

    @cached_property
    def attributes(self) -> pyarrow.StructArray | None:
        """The documents' attributes, row = document id; None where no document has any."""
        import pyarrow.parquet as pq

        column = records.DOCUMENTS.open_column
        assert column is not None
        with pq.ParquetFile(self.documents_file) as file:
            if column.name not in file.schema_arrow.names:
                return None
            return file.read([column.name]).column(0).combine_chunks()

    def require_intact(self) -> None:
        """Refuse a corpus of which any file changed on disk. Errors: integrity."""
        intact.require(self.folder, self.hashes)

    def verify(self) -> list[str]:
        """List what on disk is not what was written, every byte read; empty when all is well."""
        problems = []
        for name, digest in self.hashes.items():
            try:
                actual = intact.hash_as(self.folder / name, digest)
            except OSError as e:
                problems.append(f"{name}: cannot be read: {e.strerror}")
                continue
            if actual != digest:
                problems.append(f"{name}: wanted hash {digest}, found {actual}")
        return problems

    def _starts(self, ids_n: np.ndarray, cut: SequenceWindow) -> tuple[np.ndarray, np.ndarray]:
        """Return each id's source and its first token's place in the source's stream: (n,)."""
        layout = self.layout(cut)
        total = sum(layout.n_sequences)
        if len(ids_n) and not (ids_n.min() >= 0 and ids_n.max() < total):
            bad = int(ids_n[(ids_n < 0) | (ids_n >= total)][0])
            raise ForensicsError(
                "missing",
                f"wanted sequence {bad}, found 0 to {total - 1} of {cut.length} tokens",
                "ids count over all sources in the recipe's order",
            )
        first_S = np.array(layout.first_sequence, np.int64)
        source_n = np.searchsorted(first_S, ids_n, side="right") - 1
        return source_n, (ids_n - first_S[source_n]) * cut.stride

    def _intact(self, file: str) -> Path:
        """Return the path of a file that is as it was written. Errors: integrity."""
        intact.require(self.folder, {file: self.hashes[file]})
        return self.folder / file

    def _map(self, source: int, shard: int) -> np.ndarray:
        """Map one shard of a source; it is checked when it is opened. Errors: integrity."""
        if (source, shard) in self._maps:
            self._maps.move_to_end((source, shard))
        else:
            entry = self.sources[source].shards[shard]
            dtype = np.dtype(entry.dtype) if entry.dtype else self._dtype
            path = self._intact(entry.file)
            while len(self._maps) >= MAPS:
                self._maps.popitem(last=False)
            self._maps[source, shard] = np.memmap(path, dtype, "r", entry.offset, (entry.tokens,))
        return self._maps[source, shard]

    def _of_pieces(self, source: int, start: int, stop: int) -> np.ndarray:
        """Tokens start … stop−1 of a stream whose documents lie in another order: (n,) int64."""
        if source not in self._pieces:
            path = self._intact(self.sources[source].pieces)
            self._pieces[source] = np.load(path, mmap_mode="r", allow_pickle=False)
        (first_P, place_P), ids = self._pieces[source], self._map(source, 0)
        piece = int(np.searchsorted(first_P, start, side="right")) - 1
        out = [np.empty(0, np.int64)]
        while start < stop:
            follows = piece + 1 < len(first_P)
            end = min(stop, int(first_P[piece + 1])) if follows else stop
            at = int(place_P[piece]) + start - int(first_P[piece])
            out.append(ids[at : at + end - start].astype(np.int64))
            start, piece = end, piece + 1
        return np.concatenate(out)

    @cached_property
    def _first_tokens(self) -> list[np.ndarray]:
        """Return each shard's first offset and the stream's length, by source: (K+1,) each."""
        return [
            np.cumsum([0, *(shard.tokens for shard in source.shards)]) for source in self.sources
        ]

    @cached_property
    def _first_tokens_of_documents(self) -> list[np.ndarray]:
        import pyarrow.parquet as pq

        table = pq.read_table(self.documents_file, columns=["first_token"], memory_map=True)
        first_D = table["first_token"].to_numpy()
        return [first_D[source.first_document :][: source.documents] for source in self.sources]


def write_header(
    folder: Path,
    content_hash: str,
    vocabulary: int,
    eot: int,
    dtype: np.dtype,
    sources: Sequence[Source],
    **more: Any,
) -> None:
    """Write `corpus.json` beside the shards, the table and the tokenizer.

    These must be there and complete. `more` is what only corpora made elsewhere say of themselves.
    """
    own = (TOKENIZER, DOCUMENTS, *(source.pieces for source in sources if source.pieces))
    header = {
        "format": FORMAT,
        "hash": content_hash,
        "vocabulary": vocabulary,
        "eot": eot,
        "dtype": dtype.str,
        "sources": [_entry(source) for source in sources],
        "files": {name: intact.hash_file(folder / name) for name in own},
        **more,
    }
    (folder / "corpus.json").write_text(
        json.dumps(header, indent=1, ensure_ascii=False), encoding="utf-8"
    )


def _entry(source: Source) -> dict[str, Any]:
    """Return a source as the header holds it: without notes and pieces where there are none."""
    optional = ("notes", "pieces")
    return {key: value for key, value in asdict(source).items() if value or key not in optional}


def open_corpus(folder: str | Path) -> Corpus:
    """Open a prepared corpus; sizes are checked here, a file's bytes when it is first read.

    Errors: missing, integrity.
    """
    folder = Path(folder)
    if not (folder / "corpus.json").is_file():
        raise ForensicsError(
            "missing",
            f"wanted a tokenised corpus in {folder}, found no corpus.json",
            "`forensics train` prepares it",
        )
    try:
        header = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        assert header["format"] == FORMAT
        corpus = Corpus(folder, header)
    except (ValueError, KeyError, TypeError, AssertionError):
        raise ForensicsError(
            "integrity", f"{folder / 'corpus.json'} is damaged, or of another version", AGAIN
        ) from None
    itemsize = corpus._dtype.itemsize
    for shard in (shard for source in corpus.sources for shard in source.shards):
        path = folder / shard.file
        size = path.stat().st_size if path.is_file() else 0
        wanted = shard.tokens * itemsize if shard.bytes is None else shard.bytes
        if size != wanted:
            raise ForensicsError(
                "integrity",
                f"{path}: wanted {wanted} bytes, found {size}",
                AGAIN if shard.bytes is None else MOVED,
            )
    for name in (TOKENIZER, DOCUMENTS):
        if not (folder / name).is_file():
            raise ForensicsError("integrity", f"wanted {folder / name}, found no such file", AGAIN)
    return corpus
