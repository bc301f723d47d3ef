"""Finished documents in a run's folder, whole, for those who come later: the app above all.

keep(run.folder, "sweep", "all that it depends on", document)     # sweep-<hash>.json
kept(folder, "sweep")                                             # [(its name, the document)], newest first
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import xxhash

from forensics.json_documents import dumps
from forensics.store.writer import write_atomic

LARGEST = 64 << 20  # bytes of a document that is read whole


def keep(folder: Path, what: str, identity: str, document: dict[str, Any]) -> Path:
    """Write it as `<what>-<hash of identity>.json`, atomically. Errors:
    storage.
    """
    path = folder / f"{what}-{xxhash.xxh3_64_hexdigest(identity.encode())}.json"
    write_atomic(path, (dumps(document) + "\n").encode())
    return path


def kept(folder: Path, what: str) -> list[tuple[str, dict[str, Any]]]:
    """The documents `<what>-<hash or step>.json` of a folder, newest first; damaged and oversized
    ones are left out.
    """
    name = re.compile(rf"{re.escape(what)}-([0-9a-f]{{16}}|[0-9]{{1,16}})\.json")
    found = []
    for path in folder.iterdir() if folder.is_dir() else []:
        if name.fullmatch(path.name):
            try:
                stat = path.stat()
                document = json.loads(path.read_bytes()) if stat.st_size <= LARGEST else None
            except (OSError, ValueError):
                continue
            if isinstance(document, dict):
                found.append((stat.st_mtime_ns, path.stem, document))
    return [(stem, document) for _, stem, document in sorted(found, key=lambda f: (-f[0], f[1]))]
