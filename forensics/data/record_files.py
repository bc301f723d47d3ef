"""Files of records → documents: JSON lines, an array of JSON objects, Parquet.

The text stands in one field of a record; its other fields are the document's attributes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from forensics.data.attributes import flattened
from forensics.data.document import Document, is_unicode
from forensics.data.source_files import unpacked
from forensics.errors import ForensicsError, nearest

LONGEST_LINE = 1 << 30  # bytes of a line, and of a file that is one array: it is read whole
FIRST_BYTES = 1 << 16  # in which the first line of a .json file is looked for
ROWS = 1024  # of a Parquet file read together
BOM = b"\xef\xbb\xbf"


@dataclass
class RecordFiles:
    """Read the records of one source; what is left out is listed in `left_out`."""

    text_key: str
    left_out: list[str]  # "path: why"

    def holds_records(self, path: Path, packed: str | None) -> bool:
        """Tell whether a .json file is records: its first line is one, or it is an array of them.

        Any other JSON (a configuration, a notebook) is text as it stands. Errors: data.
        """
        with unpacked(path, packed) as file:
            first = file.read(FIRST_BYTES).removeprefix(BOM).lstrip()
        if first.startswith(b"["):
            return first[1:].lstrip().startswith(b"{") and self._array_has_texts(path, packed)
        line, newline, _ = first.partition(b"\n")
        if not newline and len(first) >= FIRST_BYTES - len(BOM):
            return line.startswith(b"{") and _names(self.text_key) in line  # one long line
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return False
        return isinstance(record, dict) and self.text_key in record

    def _array_has_texts(self, path: Path, packed: str | None) -> bool:
        try:
            records = _array(path, packed, path.name)
        except ForensicsError:
            return False
        return all(isinstance(each, dict) and self.text_key in each for each in records)

    def json(self, path: Path, name: str, packed: str | None) -> Iterator[Document]:
        """Read a .json file of records: one a line, or one array. Errors: data."""
        with unpacked(path, packed) as file:
            is_array = file.read(FIRST_BYTES).removeprefix(BOM).lstrip().startswith(b"[")
        if not is_array:
            yield from self.lines(path, name, packed)
            return
        for number, record in enumerate(_array(path, packed, name), 1):
            yield from self.record(f"{name}:{number}", record)

    def lines(self, path: Path, name: str, packed: str | None) -> Iterator[Document]:
        """Read one JSON object a line; a document's path is NAME:LINE, from 1. Errors: data."""
        with unpacked(path, packed) as file:
            number = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                where = f"{name}:{number}"
                if len(line) > LONGEST_LINE:
                    raise ForensicsError(
                        "data",
                        f"{where}: wanted a line of at most {LONGEST_LINE:,} bytes, found more",
                        "split the record, or give the text as files of its own",
                    )
                line = line.removeprefix(BOM) if number == 1 else line
                if not line.strip():
                    continue
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError:
                    self.left_out.append(f"{where}: not UTF-8")
                    continue
                del line  # a long one is not held beside its text
                yield from self.record(where, _object(text, where, self.text_key))

    def parquet(self, path: Path, name: str) -> Iterator[Document]:
        """Read a Parquet file's rows; the path of a document is NAME:ROW, from 0. Errors: data."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        row = 0
        try:
            with pq.ParquetFile(path) as file:
                if self.text_key not in file.schema_arrow.names:
                    raise no_text(name, self.text_key, file.schema_arrow.names)
                for batch in file.iter_batches(batch_size=ROWS):
                    for record in self._rows(batch, name, row):
                        yield from self.record(f"{name}:{row}", record)
                        row += 1
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as e:
            if isinstance(e, OSError) and e.errno is not None and not row:
                raise  # it cannot be opened
            if row:
                raise ForensicsError(
                    "data",
                    f"{name}: wanted its rows from {row} on, found {str(e).splitlines()[0]}",
                    "fetch or write the file again",
                ) from None
            raise ForensicsError(
                "data",
                f"{name} is not Parquet: {str(e).splitlines()[0]}",
                "a .parquet file holds one document a row",
            ) from None

    def _rows(self, batch: Any, name: str, first: int) -> Iterator[dict[str, Any]]:
        """Yield the rows of a batch; a text that is no UTF-8 is left out as NULL."""
        try:
            yield from batch.to_pylist()
            return
        except UnicodeDecodeError:
            pass
        for i in range(batch.num_rows):
            record = {}
            for column, values in zip(batch.schema.names, batch.columns):
                value = values[i]
                try:
                    record[column] = value.as_py()
                except UnicodeDecodeError:
                    record[column] = None
                    if column == self.text_key:
                        self.left_out.append(f"{name}:{first + i}: not UTF-8")
            yield record

    def record(self, path: str, record: Any) -> Iterator[Document]:
        """Yield the document of one record; none where its text is NULL. Errors: data."""
        if not isinstance(record, Mapping):
            raise ForensicsError(
                "data",
                f"{path}: wanted a JSON object, found {type(record).__name__}",
                f'e.g. {{"{self.text_key}": "…"}}',
            )
        if self.text_key not in record:
            raise no_text(path, self.text_key, record)
        text = record[self.text_key]
        if text is None:
            self.left_out.append(f"{path}: no text")
        elif not isinstance(text, str):
            raise ForensicsError(
                "data",
                f"{path}: wanted text at {self.text_key!r}, found {type(text).__name__}",
                "set data.text_key to the field that holds the text",
            )
        elif not is_unicode(text):
            self.left_out.append(f"{path}: half of a surrogate pair, which is not UTF-8")
        else:
            yield Document(path, text, flattened(record, self.text_key))


def _names(key: str) -> bytes:
    return json.dumps(key).encode()


def _object(text: str, where: str, text_key: str) -> Any:
    """Read one line of JSON. Errors: data."""
    try:
        return _loads(text)
    except json.JSONDecodeError as e:
        raise ForensicsError(
            "data",
            f"{where}: wanted one JSON object a line, found {e.msg}",
            "mend or remove the line",
        ) from None
    except RecursionError:
        raise ForensicsError(
            "data",
            f"{where}: wanted a JSON object, found one that is nested too deep to be read",
            f"remove the nested field, or the line; the text stands at {text_key!r}",
        ) from None


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # more digits than Python makes a whole number of
        return json.loads(text, parse_int=float)


def _array(path: Path, packed: str | None, name: str) -> list[Any]:
    """Read a file that is one JSON array. Errors: data."""
    with unpacked(path, packed) as file:
        content = _all(file, name)
    try:
        records = _loads(content.removeprefix(BOM).decode("utf-8"))
    except (ValueError, RecursionError) as e:
        raise ForensicsError(
            "data", f"{name}: wanted a JSON array of objects, found {e}", "write one object a line"
        ) from None
    return records if isinstance(records, list) else [records]


def _all(file: IO[bytes], name: str) -> bytes:
    content = file.read(LONGEST_LINE + 1)
    if len(content) > LONGEST_LINE:
        raise ForensicsError(
            "data",
            f"{name}: wanted an array of at most {LONGEST_LINE:,} bytes, found more",
            "write one object a line",
        )
    return content


def no_text(where: str, key: str, found: Any) -> ForensicsError:
    """Say that a record lacks the field of the text."""
    return ForensicsError(
        "data",
        f"{where}: wanted text at {key!r}, found no such field",
        f"set data.text_key; {nearest(key, map(str, found))}",
    )
