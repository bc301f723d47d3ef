"""Keep finished results in a run's folder, whole, for those who come later: the app above all.

keep_result(run.folder, "sweep", "all that it depends on", result)   # sweep-<hash>.json
kept_results(folder, "sweep", SweepResult).results   # [(its name, its document)], newest first
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple, cast

from forensics.errors import ForensicsError, first_line
from forensics.result_records import ResultRecord
from forensics.store import result_cache

LARGEST = 64 << 20  # bytes of a document that is read whole


class KeptResult(NamedTuple):
    """A result's file name, without its ending, and what it holds."""

    name: str
    document: dict[str, Any]


def keep_result(folder: Path, kind: str, identity: str, result: ResultRecord) -> Path:
    """Write a result as `<kind>-<hash of identity>.json`, atomically. Errors: storage."""
    path = result_cache.path_of(folder, f"{kind}-", identity, ".json")
    result_cache.write(path, result.to_json())
    return path


class KeptResults(NamedTuple):
    """The results of a folder that this version reads, newest first, and why others cannot be."""

    results: list[KeptResult]
    unreadable: list[ForensicsError]  # each names the file and what makes it anew


def kept_results(folder: Path, kind: str, record: type[ResultRecord]) -> KeptResults:
    """List the results `<kind>-<hash or step>.json` of a folder, each a document of `record`."""
    pattern = re.compile(rf"{re.escape(kind)}-([0-9a-f]{{16}}|[0-9]{{1,16}})\.json")
    paths = [path for path in folder.glob(f"{kind}-*.json") if pattern.fullmatch(path.name)]
    results = KeptResults([], [])
    for path in sorted(paths, key=_age_and_name):
        try:
            results.results.append(KeptResult(path.stem, _document(path, record)))
        except ForensicsError as error:
            results.unreadable.append(error)
    return results


def _document(path: Path, record: type[ResultRecord]) -> dict[str, Any]:
    """Read a document of this version. Errors: integrity, where it is damaged or of another."""
    try:
        large = path.stat().st_size > LARGEST
        document = None if large else json.loads(path.read_bytes())
    except (OSError, ValueError) as e:
        raise ForensicsError(
            "integrity", f"{path.name} is damaged: {first_line(e)}", record.AGAIN
        ) from None
    if large:
        raise ForensicsError(
            "integrity",
            f"{path.name}: wanted at most {LARGEST >> 20} MiB, found {path.stat().st_size >> 20}",
            record.AGAIN,
        )
    if not isinstance(document, dict) or document.get("version") != record.VERSION:
        record.from_document(document, path.name)  # which says what is wrong
    return cast(dict[str, Any], document)


def _age_and_name(path: Path) -> tuple[int, str]:
    try:
        return -path.stat().st_mtime_ns, path.name
    except OSError:  # it went meanwhile
        return 0, path.name
