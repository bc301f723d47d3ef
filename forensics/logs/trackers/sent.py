"""How far a run was sent to a tracker, so that a resumed run sends no step twice.

A resumed run repeats its steps bit for bit: what was sent before it was interrupted stands.
"""

from __future__ import annotations

import os
from pathlib import Path

import xxhash

FOLDER = "trackers"
WIDTH = 20  # digits: a number is overwritten in place, whole


class Sent:
    """Remembers in the run's folder the step after the last that was sent."""

    def __init__(self, run_folder: Path, kind: str, where: str) -> None:
        place = run_folder / FOLDER
        place.mkdir(exist_ok=True)
        path = place / f"{kind}-{xxhash.xxh3_64_hexdigest(where.encode())}.txt"
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        written = os.pread(self._file, WIDTH, 0)
        self.next = int(written) if written.strip().isdigit() else 0

    def begin(self, step: int) -> bool:
        """Note a step before it is sent; False: it was sent already."""
        if step < self.next:
            return False
        self.next = step + 1
        os.pwrite(self._file, b"%0*d\n" % (WIDTH, self.next), 0)
        return True

    def close(self) -> None:
        """Close the file. May be called again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
