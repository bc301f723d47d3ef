"""A corpus of token files that another trainer read: it links to them where they lie.

    tokens = located(TokenFiles(("/gone/part-0.npy",), "bare", "uint16", eot=256), [Path("data")])
    corpus = bring_in_corpus(tokens, 48, "inside", vocabulary=320, runs=Path("runs"))

Nothing is copied but lines of JSON (Amber's), which are written as shards of ours. Every file is
read once, for its documents, its largest id and its hash; where all files together are larger than
READ_WHOLE and an index names their documents, its ids are not read, a sample of its bytes is
hashed, and ids are held against the vocabulary when they are read.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forensics.data import intact, shuffled_documents
from forensics.data.made_elsewhere import ForeignOrder, TokenFiles
from forensics.data.shards import DOCUMENTS as DOCUMENTS_FILE
from forensics.data.shards import TOKENIZER, Corpus, Shard, Source, open_corpus, write_header
from forensics.data.token_files import megatron
from forensics.data.token_files.scan import Scan, refuse_outside, scan
from forensics.data.token_files.token_file import Boundaries, TokenFile, open_all
from forensics.data.token_files.token_lines import as_token_files
from forensics.data.tokenize import bytes_tokenizer, load_tokenizer
from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback, silent
from forensics.records import DOCUMENTS
from forensics.sequence_window import window_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

READ_WHOLE = 1 << 36  # bytes of all files; reading 64 GiB takes minutes
SCANS = ".scans"  # in runs/_data: what was found in each file
CONVERTED = ".tokens"  # in runs/_data: ids that were read from lines of JSON
ROWS = 1 << 18  # documents written at once
PIECES = "pieces.npy"  # of a stream whose documents lie in another order than in their file
NO_EOT = -1  # no id ends a document, as far as is known


@dataclass(frozen=True, eq=False)
class _Source:
    """One source as it is linked: its files, what was found in each, its documents."""

    name: str
    files: tuple[TokenFile, ...]
    digests: tuple[str, ...]
    boundaries: Boundaries
    # (2, P): where each document begins in the stream and in the file, where these differ
    pieces: np.ndarray | None = None
    stream: int = 0  # tokens of the stream, with pieces

    @property
    def tokens(self) -> int:
        return sum(file.tokens for file in self.files) if self.pieces is None else self.stream


def located(tokens: TokenFiles, places: Sequence[Path]) -> TokenFiles:
    """Return the token files where they lie now, in their own order.

    `places` are files, or folders that are searched; a file is known by its name, and by the
    folders above it where several have that name. Without places the files have to lie where the
    configuration says. Errors: missing (each file that was not found).
    """
    candidates = list(_files_in(places))
    by_name: dict[str, list[Path]] = {}
    for path in candidates:
        by_name.setdefault(path.name, []).append(path)
    found: list[str] = []
    lacking: list[str] = []
    for stated in tokens.paths:
        nearest = _nearest(Path(stated), by_name, tokens.kind) if places else _there(Path(stated))
        if nearest is None:
            lacking.append(stated)
        else:
            found.append(str(nearest.absolute()))
    if lacking:
        shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if lacking[3:] else "")
        raise ForensicsError(
            "missing",
            f"wanted {len(tokens.paths)} token files, lacking {len(lacking)}: {shown}",
            "--data PATH says where they lie now: a file, or a folder that is searched",
        )
    return replace(tokens, paths=tuple(found))


def _files_in(places: Sequence[Path]) -> Iterator[Path]:
    for place in places:
        if place.is_dir():
            yield from sorted(path for path in place.rglob("*") if path.is_file())
        elif place.exists():
            yield place
        else:
            raise ForensicsError(
                "missing", f"--data: wanted a file or a folder at {place}, found none", ""
            )


def _there(path: Path) -> Path | None:
    there = path.exists() or Path(f"{path}.bin").is_file()
    return path if there else None


def _nearest(stated: Path, by_name: dict[str, list[Path]], kind: str) -> Path | None:
    """Return the candidate that shares most of its path's end with the stated one."""
    names = [stated.name, f"{stated.name}.bin"] if kind == "megatron" else [stated.name]
    candidates = [path for name in names for path in by_name.get(name, ())]

    def shared(path: Path) -> int:
        pairs = zip(reversed(stated.parent.parts), reversed(path.parent.absolute().parts))
        return next((n for n, (a, b) in enumerate(pairs) if a != b), len(stated.parts))

    return max(candidates, key=shared) if candidates else None


def bring_in_corpus(
    tokens: TokenFiles,
    sequence_length: int,
    window: str,
    vocabulary: int,
    runs: Path,
    tokenizer: Path | None = None,
    progress: ProgressCallback = silent,
    order: ForeignOrder | None = None,
) -> Corpus:
    """Return a corpus under runs/_data that links to token files, made where it is not there yet.

    One source for each file, so that sequence ids run on over the files and each file's tail is
    dropped; joined files are one source. `vocabulary` is the number of rows that the model has:
    an id beyond it is refused with its place. `tokenizer` is a tokenizer.json; without one, and
    where `tokens.tokenizer` is not "bytes", text is shown as ids. `window` and `sequence_length`
    are the recipe's data.window and data.sequence_length. An `order` of Megatron's kind lays the
    documents in the order in which they make its samples. Errors: data, missing, storage, usage.
    """
    started = time.time()
    text = _tokenizer(tokens, tokenizer, vocabulary)
    data = runs / "_data"
    data.mkdir(parents=True, exist_ok=True)
    if tokens.kind == "jsonl":
        files = as_token_files(tokens, vocabulary, data / CONVERTED)
    else:
        files = open_all(tokens)
    files = [replace(file, tokens=file.tokens - file.tokens % tokens.multiple) for file in files]
    sources = _sources(files, tokens, vocabulary, data / SCANS, progress)
    if order is not None and order.rule in shuffled_documents.RULES:
        sources = [_rearranged(sources, order, sequence_length)]
    content_hash = _content_hash(sources, tokens, vocabulary, text.to_str())
    folder = data / content_hash
    entries = _entries(sources, data)
    eot = NO_EOT if tokens.eot is None else tokens.eot
    sampled = any(digest.startswith(intact.SAMPLED) for s in sources for digest in s.digests)
    more: dict[str, Any] = {
        "linked": True,
        "ids_only": tokenizer is None and tokens.tokenizer != "bytes",
        "hashed": "sample" if sampled else "whole",
    }
    dtype = sources[0].files[0].dtype
    header = (content_hash, vocabulary, eot, dtype)
    if not (folder / "corpus.json").is_file():
        _write(folder, text, sources, entries, header, more)
    elif not _links_to(folder, entries):  # the same bytes, elsewhere by now
        write_header(folder, *header, entries, **more)
    intact.remember(folder, {s.file: s.hash for entry in entries for s in entry.shards}, started)
    corpus = open_corpus(folder)
    corpus.layout(window_of(window, sequence_length))  # refuses files without one sequence
    return corpus


def _tokenizer(tokens: TokenFiles, path: Path | None, vocabulary: int) -> Tokenizer:
    """Return the tokenizer by which text is shown. Errors: missing, data."""
    if path is not None:
        return load_tokenizer(path)
    return bytes_tokenizer() if tokens.tokenizer == "bytes" else ids_tokenizer(vocabulary)


def ids_tokenizer(vocabulary: int) -> Tokenizer:
    """Make a tokenizer that shows each id as its number, for data whose own is not at hand."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(
        models.WordLevel({str(token): token for token in range(vocabulary)}, unk_token="0")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def _sources(
    files: list[TokenFile],
    tokens: TokenFiles,
    vocabulary: int,
    folder: Path,
    progress: ProgressCallback,
) -> list[_Source]:
    """Read every file once, and find its documents. Errors: data."""
    total, size = sum(file.tokens for file in files), sum(map(_bytes, files))
    done = 0
    scans: list[Scan] = []
    for file in files:

        def advance(ids: int) -> None:
            nonlocal done
            done += ids
            progress(done, total, "reading token files")

        if size > READ_WHOLE and file.boundaries is not None:
            none = np.empty(0, np.int64)
            scans.append(Scan(intact.sample_hash(file.path), none, none))
            advance(file.tokens)
        else:
            eot = tokens.eot if file.boundaries is None else None
            scans.append(scan(file, eot, vocabulary, folder, advance))
    digests = [
        intact.sample_hash(file.path) if size > READ_WHOLE else _whole(file, found)
        for file, found in zip(files, scans)
    ]
    if tokens.joined:
        firsts = np.cumsum([0, *(file.tokens for file in files)])
        ends = np.concatenate([found.ends + first for found, first in zip(scans, firsts)])
        boundaries = Boundaries(_begins(ends, total))
        return [_Source("data", tuple(files), tuple(digests), boundaries)]
    names = _names([file.path for file in files])
    return [
        _Source(name, (file,), (digest,), _boundaries(file, found))
        for name, file, digest, found in zip(names, files, digests, scans)
    ]


def _rearranged(sources: Sequence[_Source], order: ForeignOrder, sequence_length: int) -> _Source:
    """Lay a Megatron file's documents in the order of its samples. Errors: data, missing."""
    if len(sources) != 1 or len(sources[0].files) != 1:
        raise ForensicsError(
            "data",
            f"wanted one .bin with its .idx, found {len(sources)} of them: how they are blended is"
            " not known",
            "import what was read of one of them",
        )
    (source,) = sources
    index = megatron.read_index(source.files[0].path.with_suffix(".idx"))
    documents = shuffled_documents.index_maps(order, index.lengths, sequence_length).documents
    lengths = np.asarray(index.lengths)[documents].astype(np.int64)
    some = lengths > 0
    documents, lengths = documents[some], lengths[some]
    first = np.cumsum(lengths) - lengths
    places = index.first_tokens()[documents]
    return replace(
        source,
        boundaries=Boundaries(first, [f"{source.files[0].path.name}#{n}" for n in documents]),
        pieces=np.stack([first, places]),
        stream=int(lengths.sum()),
    )


def _whole(file: TokenFile, found: Scan) -> str:
    """Hash the whole file; where it holds ids alone, the pass over them did."""
    alone = file.offset == 0 and file.tokens * file.dtype.itemsize == _bytes(file)
    return found.digest if alone else intact.hash_file(file.path)


def _bytes(file: TokenFile) -> int:
    return file.path.stat().st_size


def _boundaries(file: TokenFile, found: Scan) -> Boundaries:
    if file.boundaries is None:
        return Boundaries(_begins(found.ends, file.tokens))
    boundaries = file.boundaries()
    refuse_outside(boundaries, file)
    within = boundaries.first_token < max(file.tokens, 1)
    paths = boundaries.paths
    return Boundaries(
        boundaries.first_token[within], None if paths is None else paths[: int(within.sum())]
    )


def _begins(ends: np.ndarray, tokens: int) -> np.ndarray:
    """Return where documents begin in a stream: at its start, and after each end but the last."""
    return np.concatenate(([0], ends[ends < tokens - 1] + 1))


def _names(paths: list[Path]) -> list[str]:
    """Name each file's source: by its name, where that is one file's; else by its path's end."""
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.with_suffix("").parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path.stem} {number}" for number, path in enumerate(paths)]


def _content_hash(
    sources: Sequence[_Source], tokens: TokenFiles, vocabulary: int, tokenizer: str
) -> str:
    """Hash what a linked corpus is; not where its files lie."""
    import xxhash

    told = [
        [
            source.name,
            [
                [file.dtype.str, file.offset, file.tokens, digest]
                for file, digest in zip(source.files, source.digests)
            ],
            xxhash.xxh3_128_hexdigest(source.boundaries.first_token.tobytes()),
            *(
                []
                if source.pieces is None
                else [xxhash.xxh3_128_hexdigest(source.pieces.tobytes())]
            ),
        ]
        for source in sources
    ]
    tokenizer_hash = xxhash.xxh3_128_hexdigest(tokenizer.encode())
    parts = ["linked", told, tokens.eot, vocabulary, tokenizer_hash]
    return xxhash.xxh3_128_hexdigest(json.dumps(parts).encode())


def _entries(sources: Sequence[_Source], data: Path) -> list[Source]:
    """Return the sources as a corpus's header holds them."""
    entries, documents = [], 0
    for source in sources:
        shards = tuple(
            Shard(
                _link(file.path, data),
                file.tokens,
                digest,
                bytes=_bytes(file),
                offset=file.offset,
                dtype=file.dtype.str,
            )
            for file, digest in zip(source.files, source.digests)
        )
        count = len(source.boundaries.first_token)
        spec = str(source.files[0].path)
        entries.append(
            Source(
                source.name,
                spec,
                source.tokens,
                count,
                documents,
                source.digests[0],
                (),
                shards,
                pieces="" if source.pieces is None else PIECES,
            )
        )
        documents += count
    return entries


def _link(path: Path, data: Path) -> str:
    """Name a file from a corpus's folder: in full, or where it is one of ours beside it."""
    own = path.is_relative_to(data.absolute())
    return f"../{path.relative_to(data.absolute())}" if own else str(path)


def _links_to(folder: Path, entries: Sequence[Source]) -> bool:
    """Whether a corpus's header names these files."""
    try:
        header = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        named = [shard["file"] for source in header["sources"] for shard in source["shards"]]
    except (ValueError, KeyError, TypeError):
        return False
    return named == [shard.file for source in entries for shard in source.shards]


def _write(
    folder: Path,
    tokenizer: Tokenizer,
    sources: Sequence[_Source],
    entries: Sequence[Source],
    header: tuple[str, int, int, np.dtype],
    more: dict[str, Any],
) -> None:
    """Write a corpus's own files, under another name until they are complete. Errors: storage."""
    temporary = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(temporary / TOKENIZER))
        _write_documents(temporary / DOCUMENTS_FILE, sources, entries)
        for source in sources:
            if source.pieces is not None:
                np.save(temporary / PIECES, source.pieces)
        write_header(temporary, *header, entries, **more)
        temporary.rename(folder)
    except OSError as e:
        if not (folder / "corpus.json").is_file():  # else another process was first
            raise ForensicsError(
                "storage",
                f"cannot write the corpus to {folder.parent}: {e.strerror or e}",
                "free space there, or choose another --runs",
            ) from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_documents(path: Path, sources: Sequence[_Source], entries: Sequence[Source]) -> None:
    """Write the table of documents; a document without a name is its file's, by its number.

    Nobody has read the text: hash and repeat_share stay NULL.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = DOCUMENTS.arrow_schema()
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for source, entry in zip(sources, entries):
            first = source.boundaries.first_token
            lengths = np.diff(first, append=source.tokens)
            for at in range(0, len(first), ROWS):
                number = np.arange(at, min(at + ROWS, len(first)))
                columns = {
                    "document": entry.first_document + number,
                    "source": [entry.name] * len(number),
                    "path": _document_paths(source, number),
                    "first_token": first[number],
                    "tokens": lengths[number],
                    "hash": pa.nulls(len(number), pa.string()),
                    "tags": [""] * len(number),
                    "repeat_share": pa.nulls(len(number), pa.float32()),
                }
                writer.write_table(pa.table(columns, schema=schema))


def _document_paths(source: _Source, number: np.ndarray) -> list[str]:
    """Return where documents come from: what the index says, else their file and number, from 0."""
    paths = source.boundaries.paths
    name = source.files[0].path.name if len(source.files) == 1 else source.name
    if paths is None:
        return [f"{name}#{n}" for n in number.tolist()]
    return [paths[n] or f"{name}#{n}" for n in number.tolist()]
