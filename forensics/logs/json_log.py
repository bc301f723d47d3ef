"""Logs in JSON: a line a row, a list of rows, a Trainer's state, comet's lists of values.

OLMo-core's JSON lists and trackers' JSONL are the same thing: rows with a step among their names.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forensics.errors import ForensicsError
from forensics.logs.logged_rows import LoggedRows, RowCollector, as_number

RUN_NAMES = ("run_name", "run_id", "run")  # texts that say whose a row is
COMET = ("metricName", "metricValue")  # of comet's lists of values


def read_json(path: Path) -> list[LoggedRows]:
    """Read one JSON document, or JSON Lines. Errors: data."""
    with _text(path) as file:
        start = _first_sign(file.read(4096))
    if start == "[":
        return _rows_of(path, "json", _document(path))
    notes: list[str] = []
    lines = _lines(path, notes)
    first = next(lines, None)
    if first is None:  # no line is a document by itself
        document = _document(path)
        return _state(path, document)
    second = next(lines, None)
    if second is None and not _is_row(first):
        return _state(path, first)

    def rows() -> Iterator[Any]:
        yield first
        if second is not None:
            yield second
        yield from lines

    return _rows_of(path, "jsonl", rows(), notes)


def _text(path: Path) -> Any:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    if packed:
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="replace")
    return path.open(encoding="utf-8-sig", errors="replace")


def _first_sign(text: str) -> str:
    return text.lstrip()[:1]


def _is_row(document: Any) -> bool:
    """Whether a document by itself is a row: it holds numbers and no list of rows."""
    return isinstance(document, dict) and not any(
        isinstance(value, list) and value for value in document.values()
    )


def _document(path: Path) -> Any:
    """Read a whole document. Errors: data."""
    with _text(path) as file:
        try:
            return json.load(file)
        except (ValueError, RecursionError, EOFError, OSError) as e:
            raise ForensicsError(
                "data",
                f"wanted JSON in {path.name}, found: {str(e)[:120]}",
                "is it cut short? export it again",
            ) from None


def _lines(path: Path, notes: list[str]) -> Iterator[Any]:
    """Yield the document of each line; a last line that is cut is noted. Errors: data."""
    broken = None
    with _text(path) as file:
        for number, line in enumerate(_whole_lines(path, file), 1):
            if not line.strip():
                continue
            if broken is not None:
                if broken == 1:  # the document is not one a line
                    return
                raise ForensicsError(
                    "data",
                    f"{path.name}:{broken}: wanted a JSON document a line, found another line",
                    "are two logs in one file?",
                )
            try:
                document = json.loads(line)
            except (ValueError, RecursionError):
                broken = number
                continue
            yield document
    if broken is not None and broken > 1:
        notes.append(f"{path.name}: its last line is cut short, and left out")


def _whole_lines(path: Path, file: Any) -> Iterator[str]:
    try:
        yield from file
    except (EOFError, OSError) as e:  # gzip's own way to say that it is cut
        raise ForensicsError(
            "data", f"wanted a whole file, found {path.name}: {e}", "copy it again"
        ) from None


def _state(path: Path, document: Any) -> list[LoggedRows]:
    """Read a Trainer's state, or a document of columns. Errors: data."""
    if isinstance(document, dict) and isinstance(document.get("log_history"), list):
        return _rows_of(path, "trainer_state", document["log_history"], trainer="transformers")
    columns = document if isinstance(document, dict) else {}
    lists = {name: items for name, items in columns.items() if isinstance(items, list)}
    lengths = {len(items) for items in lists.values()}
    if len(lists) > 1 and len(lengths) == 1:
        rows = (dict(zip(lists, items)) for items in zip(*lists.values()))
        return _rows_of(path, "json", rows)
    raise ForensicsError(
        "data",
        f"wanted rows of a log in {path.name}, found a document of"
        f" {', '.join(map(str, list(columns)[:6])) or type(document).__name__}",
        "a list of rows, a row a line, or a Trainer's log_history",
    )


def _rows_of(
    path: Path, kind: str, rows: Any, notes: list[str] | None = None, trainer: str = ""
) -> list[LoggedRows]:
    """Gather rows by the run that they name. Errors: data, for what is no row."""
    if not hasattr(rows, "__iter__") or isinstance(rows, dict):
        raise ForensicsError(
            "data", f"wanted rows in {path.name}, found {type(rows).__name__}", "a list of rows"
        )
    runs: dict[str, RowCollector] = {}
    for number, row in enumerate(rows, 1):
        if isinstance(row, list) and all(isinstance(each, dict) for each in row):
            inner = row  # comet gives a list for each metric
        elif isinstance(row, dict):
            inner = [row]
        else:
            raise ForensicsError(
                "data",
                f"{path.name}: wanted an object in row {number}, found {str(row)[:60]}",
                "a row is names with their values",
            )
        for each in inner:
            kind, values = (
                ("comet", _comet(each)) if all(k in each for k in COMET) else (kind, each)
            )
            run = next(
                (str(each[name]) for name in RUN_NAMES if isinstance(each.get(name), str)), ""
            )
            runs.setdefault(run, RowCollector(kind, run)).add(values)
    if not any(collector.filled for collector in runs.values()):
        raise ForensicsError(
            "data", f"wanted rows with numbers in {path.name}, found none", "is this the whole log?"
        )
    return [
        collector.collected(notes=tuple(notes or ()), trainer=trainer)
        for collector in runs.values()
    ]


def _comet(row: dict[str, Any]) -> dict[str, Any]:
    """Return one of comet's values as a row."""
    return {"step": as_number(row.get("step")), str(row["metricName"]): row["metricValue"]}
