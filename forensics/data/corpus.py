"""Sources → documents: where text comes from, in an order that is the same on every reading.

Documents("stdlib/json")  →  Document("json/__init__.py", '…'), Document("json/decoder.py", '…'), …
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import starmap
from pathlib import Path

from forensics.data.document import Document
from forensics.data.planted import invented, planted
from forensics.data.record_files import BOM, RecordFiles
from forensics.data.source_files import format_of, listed, no_file, unpacked
from forensics.errors import ForensicsError, nearest

NOT_THE_LIBRARY = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
}

FORMS = (
    "stdlib, stdlib/PACKAGE, a folder, a text file, .jsonl, .json or .parquet (.gz, .zst, .bz2, .xz"
    " too), hf:NAME or shuffled:SOURCE"
)


@dataclass
class Documents:
    """The documents of one source; iterating again reads again, in the same order.

    `spec` is a source of the recipe: `stdlib`, `stdlib/PACKAGE`, a file, a folder (each file by
    what it holds, hidden names are passed over), `hf:NAME[:split]`, or `shuffled:` or `planted:`
    before any of these; `invented` and `planted:` are those of forensics/data/planted.py. A file is
    text, JSON lines (path `NAME:LINE`, from 1), JSON records or Parquet (path `NAME:ROW`, from 0);
    text and JSON may be packed by gzip, zstd, bzip2 or xz. Nothing but the document at hand is held
    in memory. Errors: data, missing.
    """

    spec: str
    text_key: str = "text"
    left_out: list[str] = field(
        default_factory=list, init=False
    )  # "path: why", after a complete reading
    notes: list[str] = field(default_factory=list, init=False)  # "path: what is odd", likewise

    def __iter__(self) -> Iterator[Document]:
        self.left_out, self.notes = [], []
        any_document = False
        for document in self._read(self.spec):
            any_document = True
            yield document
        if not any_document:
            why = (
                f"all {len(self.left_out)} were left out ({self.left_out[0]})"
                if self.left_out
                else "found none"
            )
            raise ForensicsError(
                "data",
                f"source {self.spec!r}: wanted documents of UTF-8 text, {why}",
                f"a source is {FORMS}",
            )

    def _read(self, spec: str) -> Iterator[Document]:
        kind, colon, inner = spec.partition(":")
        if colon and kind == "shuffled":
            return (replace(each, text=shuffled(each)) for each in self._read(inner))
        if colon and kind == "planted":
            number = sum(1 for _ in self._read(inner))
            self.left_out, self.notes = [], []  # they are met again
            return planted(self._read(inner), number)
        if spec == "invented":
            return starmap(Document, invented())
        if colon and kind == "hf":
            return self._hugging_face(inner)
        if spec == "stdlib" or spec.startswith("stdlib/"):
            return self._files(*_standard_library(spec))
        path = Path(spec).expanduser()
        if path.is_dir():
            return self._folder(path)
        if not path.is_file():
            raise ForensicsError(
                "missing",
                f"source {spec!r}: wanted a file or folder, found {no_file(path) or 'nothing'}"
                " there",
                f"a source is {FORMS}; paths start at the folder the command runs in",
            )
        return self._file(path, path.name)

    def _files(self, root: Path, names: list[str]) -> Iterator[Document]:
        """Read files as text, whatever their names."""
        for file in names:
            yield from self._text(root / file, file, None)

    def _folder(self, root: Path) -> Iterator[Document]:
        """Read a folder: each file by what it holds."""
        listing = listed(root)
        self.left_out += listing.left_out
        self.notes += listing.notes
        for file in listing.names:
            yield from self._file(root / file, os.fsencode(file).decode("utf-8", "replace"))

    def _file(self, path: Path, name: str) -> Iterator[Document]:
        """Read one file by what it holds; one that cannot be opened is left out."""
        any_document = False
        try:
            for document in self._by_format(path, name):
                any_document = True
                yield document
        except OSError as e:
            if any_document:
                raise ForensicsError(
                    "data", f"{name}: cannot be read to its end: {e.strerror or e}", "try again"
                ) from None
            self.left_out.append(f"{name}: {e.strerror or e}")

    def _by_format(self, path: Path, name: str) -> Iterator[Document]:
        records, form = RecordFiles(self.text_key, self.left_out), format_of(path)
        if form.holds == "jsonl":
            return records.lines(path, name, form.packed)
        if form.holds == "parquet":
            return records.parquet(path, name)
        if form.holds == "json" and records.holds_records(path, form.packed):
            return records.json(path, name, form.packed)
        return self._text(path, name, form.packed)

    def _text(self, path: Path, file: str, packed: str | None) -> Iterator[Document]:
        """Read a file as one document, unless it is not UTF-8; a byte-order mark is no text."""
        name = os.fsencode(file).decode("utf-8", "replace")  # a file's name may be any bytes
        try:
            with unpacked(path, packed) as stream:
                text = stream.read().removeprefix(BOM).decode("utf-8")
        except UnicodeDecodeError:
            self.left_out.append(f"{name}: not UTF-8")
            return
        except OSError as e:
            self.left_out.append(f"{name}: {e.strerror}")
            return
        if "\0" in text:
            self.left_out.append(f"{name}: binary")
        else:
            yield Document(name, text)

    def _hugging_face(self, name: str) -> Iterator[Document]:
        try:
            from datasets import load_dataset
        except ImportError:
            raise ForensicsError(
                "data",
                f"source hf:{name}: wanted the package `datasets`, found none",
                "pip install 'forensics-workbench[datasets]'",
            ) from None
        name, _, split = name.partition(":")
        split = split or "train"
        try:
            records = enumerate(load_dataset(name, split=split, streaming=True))
        except Exception as e:  # whatever the network or the hub raises, the user is told one line
            reason = (str(e) or type(e).__name__).splitlines()[0]
            raise ForensicsError(
                "data",
                f"source hf:{name}: cannot open split {split!r}: {reason}",
                "check the name, the split (hf:NAME:split) and the network",
            ) from None
        reader = RecordFiles(self.text_key, self.left_out)
        for row, record in records:
            yield from reader.record(f"{name}:{split}:{row}", record)


def shuffled(document: Document) -> str:
    """Return the document's characters in an order drawn from its path alone.

    The counts are the same, no structure is left.
    """
    import numpy as np
    import xxhash

    characters_C = np.frombuffer(document.text.encode("utf-32-le"), dtype="<u4")
    # Sorting raw draws, not Generator.permutation, whose stream NumPy may change between versions.
    draws_C = np.random.PCG64(xxhash.xxh3_64_intdigest(document.path.encode())).random_raw(
        len(characters_C)
    )
    return characters_C[np.argsort(draws_C, kind="stable")].tobytes().decode("utf-32-le")


def _standard_library(spec: str) -> tuple[Path, list[str]]:
    """Return the library's folder and its modules' paths, all or those of one package."""
    root = Path(sysconfig.get_path("stdlib"))
    names = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in NOT_THE_LIBRARY]
        names += [
            (Path(folder) / name).relative_to(root).as_posix()
            for name in files
            if name.endswith(".py")
        ]
    names.sort()
    package = spec.removeprefix("stdlib").strip("/")
    chosen = [
        module
        for module in names
        if not package or module == f"{package}.py" or module.startswith(f"{package}/")
    ]
    if not chosen:
        packages = {module.partition("/")[0].removesuffix(".py") for module in names}
        raise ForensicsError(
            "missing",
            f"source {spec!r}: the standard library here has no such package",
            nearest(package, packages) if packages and package else "e.g. stdlib/json",
        )
    return root, chosen
