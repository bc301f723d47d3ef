"""Sources → documents: where text comes from, in an order that is the same on every reading.

Documents("stdlib/json")  →  Document("json/__init__.py", '…'), Document("json/decoder.py", '…'), …
"""

from __future__ import annotations

import json
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import starmap
from pathlib import Path

from forensics.data.document import Document
from forensics.data.planted import invented, planted
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

FORMS = "stdlib, stdlib/PACKAGE, a folder of text, a .jsonl, a .parquet, hf:NAME or shuffled:SOURCE"


@dataclass
class Documents:
    """The documents of one source; iterating again reads again, in the same order.

    `spec` is a source of the recipe: `stdlib`, `stdlib/PACKAGE`, a text file or a folder of them
    (hidden names are passed over), `.jsonl` (path `NAME:LINE`, from 1), `.parquet` (path
    `NAME:ROW`, from 0), `hf:NAME[:split]`, or `shuffled:` or `planted:` before any of these;
    `invented` and `planted:` are those of forensics/data/planted.py. Nothing but the document at
    hand is held in memory. Errors: data, missing.
    """

    spec: str
    text_key: str = "text"
    left_out: list[str] = field(
        default_factory=list, init=False
    )  # "path: why", after a complete reading

    def __iter__(self) -> Iterator[Document]:
        self.left_out = []
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
            return (Document(document.path, shuffled(document)) for document in self._read(inner))
        if colon and kind == "planted":
            number = sum(1 for _ in self._read(inner))
            self.left_out = []  # they are met again
            return starmap(Document, planted(self._read(inner), number))
        if spec == "invented":
            return starmap(Document, invented())
        if colon and kind == "hf":
            return self._hugging_face(inner)
        if spec == "stdlib" or spec.startswith("stdlib/"):
            return self._files(*_standard_library(spec))
        path = Path(spec).expanduser()
        if path.is_dir():
            return self._files(path, _text_files(path))
        if not path.is_file():
            raise ForensicsError(
                "missing",
                f"source {spec!r}: wanted a file or folder, found nothing there",
                f"a source is {FORMS}; paths start at the folder the command runs in",
            )
        if path.suffix == ".jsonl":
            return self._jsonl(path)
        if path.suffix == ".parquet":
            return self._parquet(path)
        return self._files(path.parent, [path.name])

    def _files(self, root: Path, names: list[str]) -> Iterator[Document]:
        for file in names:
            name = os.fsencode(file).decode("utf-8", "replace")  # a file's name may be any bytes
            try:
                text = (root / file).read_bytes().decode("utf-8")
            except UnicodeDecodeError:
                self.left_out.append(f"{name}: not UTF-8")
                continue
            except OSError as e:
                self.left_out.append(f"{name}: {e.strerror}")
                continue
            if "\0" in text:
                self.left_out.append(f"{name}: binary")
            else:
                yield Document(name, text)

    def _jsonl(self, path: Path) -> Iterator[Document]:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line.decode("utf-8"))
                except UnicodeDecodeError:
                    self.left_out.append(f"{path.name}:{number}: not UTF-8")
                    continue
                except json.JSONDecodeError as e:
                    raise ForensicsError(
                        "data",
                        f"{path.name}:{number}: wanted one JSON object a line, found {e.msg}",
                        "mend or remove the line",
                    ) from None
                if not isinstance(record, dict):
                    raise ForensicsError(
                        "data",
                        f"{path.name}:{number}: wanted a JSON object, found "
                        f"{type(record).__name__}",
                        f'e.g. {{"{self.text_key}": "…"}}',
                    )
                yield from self._record(f"{path.name}:{number}", record)

    def _parquet(self, path: Path) -> Iterator[Document]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(path)
        except (pa.ArrowInvalid, OSError) as e:
            raise ForensicsError(
                "data",
                f"{path.name} is not Parquet: {str(e).splitlines()[0]}",
                f"a source is {FORMS}",
            ) from None
        with file:
            if self.text_key not in file.schema_arrow.names:
                raise _no_text(path.name, self.text_key, file.schema_arrow.names)
            row = 0
            for batch in file.iter_batches(batch_size=1024, columns=[self.text_key]):
                for text in batch.column(0).to_pylist():
                    yield from self._record(f"{path.name}:{row}", {self.text_key: text})
                    row += 1

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
        for row, record in records:
            yield from self._record(f"{name}:{split}:{row}", record)

    def _record(self, path: str, record: dict) -> Iterator[Document]:
        if self.text_key not in record:
            raise _no_text(path, self.text_key, record)
        text = record[self.text_key]
        if text is None:
            self.left_out.append(f"{path}: no text")
        elif not isinstance(text, str):
            raise ForensicsError(
                "data",
                f"{path}: wanted text at {self.text_key!r}, found {type(text).__name__}",
                "set data.text_key to the field that holds the text",
            )
        elif not _is_unicode(text):
            self.left_out.append(f"{path}: half of a surrogate pair, which is not UTF-8")
        else:
            yield Document(path, text)


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


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _no_text(where: str, key: str, found) -> ForensicsError:
    return ForensicsError(
        "data",
        f"{where}: wanted text at {key!r}, found no such field",
        f"set data.text_key; {nearest(key, map(str, found))}",
    )


def _text_files(root: Path) -> list[str]:
    names = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [
            (Path(folder) / name).relative_to(root).as_posix()
            for name in files
            if not name.startswith(".")
        ]
    return sorted(names)


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
