"""Keep finished results in a run's folder, whole, for those who come later: the app above all.

keep_result(run.folder, "sweep", "all that it depends on", result)   # sweep-<hash>.json
kept_results(folder, "sweep")                        # [(its name, its document)], newest first
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

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


def kept_results(folder: Path, kind: str) -> list[KeptResult]:
    """List the results `<kind>-<hash or step>.json` of a folder, newest first.

    Damaged and oversized ones are left out.
    """
    pattern = re.compile(rf"{re.escape(kind)}-([0-9a-f]{{16}}|[0-9]{{1,16}})\.json")
    results = []
    for path in folder.iterdir() if folder.is_dir() else []:
        if pattern.fullmatch(path.name):
            try:
                stat = path.stat()
                document = json.loads(path.read_bytes()) if stat.st_size <= LARGEST else None
            except (OSError, ValueError):
                continue
            if isinstance(document, dict):
                results.append((-stat.st_mtime_ns, path.stem, document))
    return [KeptResult(name, document) for _, name, document in sorted(results, key=_age_and_name)]


def _age_and_name(result: tuple[int, str, dict[str, Any]]) -> tuple[int, str]:
    return result[:2]
