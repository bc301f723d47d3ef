"""Documents → shards: train, load or make a tokenizer, and write the token streams.

    corpus = prepare(recipe.data, "runs")  →  Corpus under runs/_data/<content hash>/

The content hash is of the documents' paths and texts and of the tokenizer asked for, so the same
text under another name of folder is the same corpus, and one changed letter makes another.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forensics.data.attributes import Attributes, as_hashed
from forensics.data.corpus import Documents
from forensics.data.document import Document
from forensics.data.encode import LONGEST_RUN, Encoder, batches, pieces, without_long_runs
from forensics.data.intact import hash_file
from forensics.data.repeats import repeat_share_pieces
from forensics.data.shards import Corpus, Shard, Source, open_corpus, write_header
from forensics.errors import ForensicsError
from forensics.interrupt import waiting
from forensics.recipe_conflicts import DEFAULT_VOCABULARY
from forensics.records import DOCUMENTS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from forensics import config

END_OF_TEXT = (
    "<|endoftext|>",
    "</s>",
    "<|end_of_text|>",
    "<eos>",
    "<|im_end|>",
    "[EOS]",
    "<|eot_id|>",
    "[SEP]",
)
SHARD_TOKENS = 1 << 27  # of one file
ATTRIBUTES_MARK = 1 << 63  # in a length: what follows is no path of a next document

Progress = Callable[[int, int | None], None]


def prepare(
    data: config.Data, runs_folder: str | Path, seed: int = 0, progress: Progress | None = None
) -> Corpus:
    """Return the tokenised corpus of a recipe, made where it is not there yet.

    The text is read and hashed each time; `seed` changes nothing: one text, one corpus, whatever
    the run. `progress(done, total)` counts bytes of text: read once for a tokenizer that is
    trained, once for the shards. Errors: data, missing, config (a tokenizer larger than
    data.vocabulary), storage.
    """
    sources = {
        name: Documents(spec, data.text_key)
        for name, spec in (data.sources or {"main": data.source}).items()
    }
    loaded = load_tokenizer(data.tokenizer) if data.tokenizer not in ("train", "bytes") else None
    if loaded and DEFAULT_VOCABULARY != data.vocabulary < vocabulary_of(loaded):
        raise ForensicsError(
            "config",
            f"data.vocabulary: wanted at least the tokenizer's {vocabulary_of(loaded)} ids, "
            f"found {data.vocabulary}",
            f"set data.vocabulary to {vocabulary_of(loaded)}",
        )
    hashes, size, attributes = {}, 0, Attributes()
    for name, documents in sources.items():
        digest = _DocumentHash()
        for document in documents:
            digest.add(document)
            attributes.add(document.attributes)
        hashes[name] = digest.digest.hexdigest()
        size += digest.bytes
        if not digest.bytes:
            raise ForensicsError(
                "data",
                f"source {name!r}: wanted text, found only empty documents",
                f"look at {documents.spec}",
            )
    content_hash = _content_hash(hashes, data, loaded)
    folder = Path(runs_folder) / "_data" / content_hash
    if not (folder / "corpus.json").is_file():
        _write(
            folder,
            content_hash,
            sources,
            hashes,
            attributes,
            loaded,
            data,
            _Bar(progress, size * (1 + (data.tokenizer == "train"))),
        )
    corpus = open_corpus(folder)
    corpus.require_intact()
    corpus.layout(data.cut)  # refuses a source without a sequence
    return corpus


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Train byte-level BPE of at most `vocabulary` ids, `<|endoftext|>` being 0.

    The same texts give the same tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT[0]],
        initial_alphabet=sorted(byte_characters()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def bytes_tokenizer() -> Tokenizer:
    """One id for each byte, its value, and 256 for the end of text; decodes any text to itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(
        models.BPE({character: byte for byte, character in enumerate(byte_characters())}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT[0]])
    return tokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a tokenizer.json. Errors: missing, data."""
    from tokenizers import Tokenizer

    path = Path(path).expanduser()
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise ForensicsError(
            "missing",
            f"data.tokenizer: wanted train, bytes or a file, found none at {path}",
            "paths start at the folder the command runs in",
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as e:  # the library raises a bare Exception
        raise ForensicsError(
            "data",
            f"data.tokenizer: {path.name} is not a tokenizer.json: {str(e).splitlines()[0]}",
            "save one with Tokenizer.save(path)",
        ) from None
    end_of_text(tokenizer)
    return tokenizer


def end_of_text(tokenizer: Tokenizer) -> int:
    """Return the id that ends a document. Errors: data.

    It is the first of END_OF_TEXT that the tokenizer knows.
    """
    for token in END_OF_TEXT:
        if (id := tokenizer.token_to_id(token)) is not None:
            return id
    raise ForensicsError(
        "data",
        "data.tokenizer: wanted an end-of-text token, found none of " + ", ".join(END_OF_TEXT),
        "add <|endoftext|> to its special tokens",
    )


def vocabulary_of(tokenizer: Tokenizer) -> int:
    """Count the ids, holes included: the largest + 1."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def byte_characters() -> list[str]:
    """Return the character that stands for each byte in byte-level BPE.

    Source: Radford et al. 2019, GPT-2's `bytes_to_unicode`.
    """
    shown = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) if byte in shown else chr(256 + hidden.index(byte)) for byte in range(256)]


class _DocumentHash:
    """xxh3_128 over paths, texts and attributes, each with its length before it, and the bytes of
    text. A document without attributes adds none.
    """

    def __init__(self) -> None:
        import xxhash

        self.digest, self.bytes = xxhash.xxh3_128(), 0

    def add(self, document: Document) -> None:
        text = document.text.encode()
        for piece in (document.path.encode(), text):
            self.digest.update(len(piece).to_bytes(8, "little"))
            self.digest.update(piece)
        if document.attributes:
            piece = as_hashed(document.attributes)
            self.digest.update((len(piece) | ATTRIBUTES_MARK).to_bytes(8, "little"))
            self.digest.update(piece)
        self.bytes += len(text)


def _rows(data: config.Data, tokenizer: Tokenizer) -> int:
    """Return the ids that the model has rows for.

    The tokenizer's own, or data.vocabulary where a tokenizer without that many is padded to it; the
    default stands for the tokenizer's own.
    """
    ids = vocabulary_of(tokenizer)
    loaded = data.tokenizer not in ("train", "bytes")
    padded = loaded and data.vocabulary != DEFAULT_VOCABULARY
    return max(ids, data.vocabulary) if padded else ids


def _content_hash(hashes: dict[str, str], data: config.Data, loaded: Tokenizer | None) -> str:
    import xxhash

    tokenizer = f"train {data.vocabulary}" if data.tokenizer == "train" else data.tokenizer
    if data.tokenizer not in ("train", "bytes"):
        path = Path(data.tokenizer).expanduser()
        tokenizer = hash_file(path / "tokenizer.json" if path.is_dir() else path)
    if loaded and _rows(data, loaded) != vocabulary_of(loaded):
        tokenizer = f"{tokenizer} padded {data.vocabulary}"
    return xxhash.xxh3_128_hexdigest(json.dumps([list(hashes.items()), tokenizer]).encode())


class _Bar:
    """Bytes done so far, over all passes."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.done, self.total = progress, 0, total

    def add(self, texts: Iterable[str]) -> None:
        self.done += sum(len(text.encode()) for text in texts)
        if self.progress:
            self.progress(self.done, self.total)


def _write(
    folder: Path,
    content_hash: str,
    sources: dict[str, Documents],
    hashes: dict[str, str],
    attributes: Attributes,
    tokenizer: Tokenizer | None,
    data: config.Data,
    bar: _Bar,
) -> None:
    """All of a corpus's files, under another name until they are complete."""
    temporary = folder.with_name(f".{content_hash}-{os.getpid()}")
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        runs: dict[str, list[str]] = {name: [] for name in sources}  # unbroken ones
        if data.tokenizer == "train":
            tokenizer = waiting(
                lambda: train_tokenizer(_all_texts(sources, bar, runs), data.vocabulary)
            )
        tokenizer = tokenizer or bytes_tokenizer()
        tokenizer.save(str(temporary / "tokenizer.json"))
        vocabulary = _rows(data, tokenizer)
        dtype = np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")
        encoder = Encoder(tokenizer, end_of_text(tokenizer), dtype)
        written: list[Source] = []
        with _Table(temporary / "documents.parquet", attributes) as table:
            for i, (name, documents) in enumerate(sources.items()):
                source = _write_source(temporary, i, name, documents, encoder, table, bar)
                if source.hash != hashes[name]:
                    raise ForensicsError(
                        "data",
                        f"source {name!r} changed while it was read",
                        "try again once it rests",
                    )
                odd = attributes.left_out if not written else []
                written.append(replace(source, notes=(*source.notes, *runs[name], *odd)))
        write_header(temporary, content_hash, vocabulary, end_of_text(tokenizer), dtype, written)
        for path in temporary.iterdir():
            _sync(path)
        try:
            temporary.rename(folder)
        except OSError:
            if not (
                folder / "corpus.json"
            ).is_file():  # else another process was first, with the same bytes
                raise
    except OSError as e:
        raise ForensicsError(
            "storage",
            f"cannot write the tokenised corpus to {folder.parent}: {e.strerror or e}",
            "free space there, or choose another --runs",
        ) from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _all_texts(
    sources: dict[str, Documents], bar: _Bar, runs: dict[str, list[str]]
) -> Iterator[str]:
    """Yield all texts for a tokenizer's training, unbroken runs cut; `runs` lists these."""
    for name, documents in sources.items():
        for document in documents:
            bar.add([document.text])
            cut = False
            for piece in pieces(document.text):
                parts = without_long_runs(piece)
                cut = cut or len(parts) > 1
                yield from parts
            if cut:
                runs[name].append(
                    f"{document.path}: a run of more than {LONGEST_RUN:,} characters of one kind,"
                    " cut for the tokenizer's training"
                )


def _write_source(
    folder: Path,
    index: int,
    name: str,
    documents: Documents,
    encoder: Encoder,
    table: _Table,
    bar: _Bar,
) -> Source:
    first_document, digest, notes = table.rows, _DocumentHash(), list[str]()
    with _Stream(folder, index, encoder.dtype) as stream:
        for batch in batches(documents):
            for document in batch:
                digest.add(document)
                if (count := encoder.pieces_of(document.text)) > 1:
                    notes.append(
                        f"{document.path}: {len(document.text):,} characters, tokenised in {count}"
                        " pieces cut between words"
                    )
            texts = [document.text for document in batch]
            tokens, first = encoder.encode(texts)
            lengths = np.diff(first, append=len(tokens))
            table.append(
                name, batch, stream.tokens + first, lengths, repeat_share_pieces(tokens, first)
            )
            stream.append(tokens)
            bar.add(texts)
    return Source(
        name,
        documents.spec,
        stream.tokens,
        table.rows - first_document,
        first_document,
        digest.digest.hexdigest(),
        tuple(documents.left_out),
        tuple(stream.shards),
        (*documents.notes, *notes),
    )


class _Stream:
    """A source's shards while they are written: a new file whenever one holds SHARD_TOKENS."""

    def __init__(self, folder: Path, index: int, dtype: np.dtype) -> None:
        self.folder, self.index, self.dtype = folder, index, dtype
        self.tokens, self.shards = 0, list[Shard]()
        self._room = 0
        self._file: Any = None

    def __enter__(self) -> _Stream:
        return self

    def append(self, tokens: np.ndarray) -> None:
        while len(tokens):
            if not self._room:
                self._close()
                self._file = (self.folder / f"{self.index}-{len(self.shards)}.bin").open("wb")
                self._room = SHARD_TOKENS
            piece, tokens = tokens[: self._room], tokens[self._room :]
            self._file.write(np.ascontiguousarray(piece, self.dtype).data)
            self._room -= len(piece)
            self.tokens += len(piece)

    def _close(self) -> None:
        if self._file:
            self._file.close()
            path = Path(self._file.name)
            self.shards.append(
                Shard(path.name, path.stat().st_size // self.dtype.itemsize, hash_file(path))
            )
            self._file = None

    def __exit__(self, *_: object) -> None:
        self._close()


class _Table:
    """`documents.parquet` while it is written, one row group for each batch of documents."""

    def __init__(self, path: Path, attributes: Attributes) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.schema = DOCUMENTS.arrow_schema()
        self.attributes = attributes if attributes.kinds else None
        if self.attributes:  # a corpus without metadata has no such column
            assert DOCUMENTS.open_column is not None
            field = (DOCUMENTS.open_column.name, self.attributes.arrow_type())
            self.schema = self.schema.append(pa.field(*field))
        self.rows = 0
        self._writer = pq.ParquetWriter(path, self.schema, compression="zstd")

    def __enter__(self) -> _Table:
        return self

    def append(
        self,
        source: str,
        documents: Sequence[Document],
        first_token: np.ndarray,
        tokens: np.ndarray,
        repeat_share: np.ndarray,
    ) -> None:
        import pyarrow as pa
        import xxhash

        columns: dict[str, Any] = {
            "document": self.rows + np.arange(len(documents)),
            "source": [source] * len(documents),
            "path": [document.path for document in documents],
            "first_token": first_token,
            "tokens": tokens,
            "hash": [xxhash.xxh3_128_hexdigest(document.text.encode()) for document in documents],
            "tags": ["repeats" if share > 0 else "" for share in repeat_share],
            "repeat_share": repeat_share,
        }
        if self.attributes:
            rows = [self.attributes.row(document.attributes) for document in documents]
            columns[self.schema.names[-1]] = pa.array(rows, self.schema.types[-1])
        self._writer.write_table(pa.table(columns, schema=self.schema))
        self.rows += len(documents)

    def __exit__(self, *_: object) -> None:
        self._writer.close()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
