"""What commands kept in a run's folder, read again when a file changes: records, and documents.

read(ForkResult, folder / "fork.json")            # the record; None where there is none
results("demo", "sweep", SweepResult)             # [(its name, the record)], newest first
documents("demo", "blame")                        # the same as plain documents
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from app import data, safe_html
from app.controls import pick
from app.selection import Selection, goto
from forensics.errors import ForensicsError
from forensics.json_documents import NONFINITE
from forensics.result_records import ResultRecord
from replay.blame.nonfinite.result import NonFiniteResult
from replay.blame.norm.result import NormBlameResult
from replay.blame.query.result import InfluenceResult
from replay.blame.result import BlameResult
from replay.experiments.results import KEPT
from replay.result_files import kept_results

R = TypeVar("R", bound=ResultRecord)
C = TypeVar("C")
RECORDS: dict[str, type[ResultRecord]] = {
    **KEPT,
    "blame": BlameResult,
    "influence": InfluenceResult,
    "norm": NormBlameResult,
    "nonfinite": NonFiniteResult,
}
# fields that hold text, in which "NaN" is a word and no number
TEXTS = {"text", "path", "source", "tensor", "name", "event", "document", "what", "does", "run"}


class Document(NamedTuple):
    """A document and the name of its file, without its ending."""

    name: str
    content: dict[str, Any]


def read(kind: type[R], path: Path) -> R | None:
    """Read a result; None where there is none. Errors: integrity, with what makes it anew."""
    try:
        stamp = path.stat().st_mtime_ns
    except OSError:
        return None
    return _read(kind, path, stamp)  # type: ignore[return-value, arg-type]


@functools.lru_cache(64)
def _read(kind: type[ResultRecord], path: Path, stamp: int) -> ResultRecord:
    return kind.read(path)


class Result(NamedTuple, Generic[R]):
    """A result and the name of its file, without its ending."""

    name: str
    content: R


def results(run: str, kind: str, record: type[R]) -> list[Result[R]]:
    """Return the results that a command kept in the run's folder as records, newest first."""
    folder = data.runs_folder() / data.require(run)
    return [
        Result(document.name, content)
        for document in documents(run, kind)
        if (content := read(record, folder / f"{document.name}.json")) is not None
    ]


def documents(run: str, kind: str) -> list[Document]:
    """Return what a command kept in the run's folder and this version reads, newest first."""
    return _results(run, kind).documents


def draw_unreadable(run: str, kind: str) -> None:
    """Say of each result of another version, or damaged, what makes it anew."""
    for error in _results(run, kind).unreadable:
        safe_html.nothing(
            ["A result is not shown. ", *safe_html.spoken(f"{error.message}.")], hint=error.hint
        )


class Results(NamedTuple):
    """What a command kept: the documents that can be read, and why the others cannot."""

    documents: list[Document]
    unreadable: list[ForensicsError]


def _results(run: str, kind: str) -> Results:
    folder = data.runs_folder() / data.require(run)
    stamp = tuple(sorted((p.name, p.stat().st_mtime_ns) for p in folder.glob(f"{kind}-*.json")))
    return _read_results(str(folder), kind, stamp)


@functools.lru_cache(32)
def _read_results(folder: str, kind: str, stamp: tuple[Any, ...]) -> Results:
    results = kept_results(Path(folder), kind, RECORDS[kind])
    documents = [Document(name, with_numbers(content)) for name, content in results.results]
    return Results(documents, results.unreadable)


def of_this_version(
    kind: type[ResultRecord], content: dict[str, Any], where: str
) -> dict[str, Any]:
    """Return a document with its numbers. Errors: integrity, where it is of another version."""
    if content.get("version") != kind.VERSION:
        kind.from_document(content, where)  # which says so, and what makes it anew
    return with_numbers(content)


def written(run: str, name: str) -> float:
    """Return when such a document was written, in seconds since 1970; 0 where it has gone."""
    try:
        return (data.runs_folder() / run / f"{name}.json").stat().st_mtime
    except OSError:
        return 0.0


def with_numbers(value: Any) -> Any:
    """Return a document with "NaN", "Infinity" and "-Infinity" as the numbers that they are."""
    if isinstance(value, dict):
        return {
            key: item if key in TEXTS and isinstance(item, str) else with_numbers(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [with_numbers(item) for item in value]
    return NONFINITE.get(value, value) if isinstance(value, str) else value


def is_finite(value: float | None) -> bool:
    """Return whether there is a value, and it is neither NaN nor infinite."""
    return value is not None and math.isfinite(value)


def choose(
    run: str,
    listed: Sequence[tuple[str, C]],
    selection: Selection,
    label: Callable[[C], str],
) -> C:
    """Return the content of the URL, or the newest, under a list to pick another from."""
    by_name = dict(listed)
    names = list(by_name)
    name = selection.query if selection.query in by_name else names[0]
    if len(names) > 1:
        pick(
            "Measured",
            names,
            name,
            key="measured",
            choose=lambda picked_name: goto(run=run, query=picked_name),
            name=lambda option: label(by_name[option]),
        )
    return by_name[name]
