"""Finished parts of a long measurement, one JSON line each, appended as they come: what is cut off
goes on.

kept = Kept(run.folder / "scans", "all that the values depend on")
value = kept.get("401")
kept.put("401", value)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from forensics.store.result_cache import path_of


class Kept:
    """Key → JSON value in a file of `folder` that is named by the hash of `identity`; without a
    folder, in no file.
    """

    def __init__(self, folder: Path | None, identity: str) -> None:
        self.path = path_of(folder, "", identity, ".jsonl") if folder else None
        self.values: dict[str, Any] = {}
        self._torn = False  # whether the file ends in the middle of a line
        if self.path is not None and self.path.is_file():
            text = self.path.read_text(encoding="utf-8", errors="replace")
            self._torn = bool(text) and not text.endswith("\n")
            for line in text.splitlines():
                try:
                    document = json.loads(line)
                    self.values[document["key"]] = document["value"]
                except (ValueError, KeyError, TypeError):
                    continue  # the line that was being written when it was cut off

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def get(self, key: str) -> Any:
        """Return the value of a finished part; None where it is not."""
        return self.values.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep the value of a finished part."""
        self.values[key] = value
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(
                ("\n" if self._torn else "") + json.dumps({"key": key, "value": value}) + "\n"
            )
        self._torn = False
