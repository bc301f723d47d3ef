"""Progress bars on stderr, for people: none where stderr is no terminal, none under two seconds.

With FORENSICS_PROGRESS=FILE the reports go into that file instead, as JSON, so that the app can
show them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from forensics.progress import ProgressCallback, silent

PATIENCE = 2.0  # seconds before a bar appears


@contextmanager
def bar(label: str, unit: str = "steps") -> Iterator[ProgressCallback]:
    """Draw a bar with rate and time left, fed by the callback that it yields."""
    if file := os.environ.get("FORENSICS_PROGRESS"):
        yield _written(Path(file), label, unit)
        return
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit} {{task.fields[rate]}}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    drawn = Progress(*columns, console=Console(stderr=True), transient=True)
    started, first, task = time.monotonic(), None, None

    def report(done: int, total: int | None, note: str = "") -> None:
        nonlocal first, task
        now = time.monotonic()
        if first is None:
            first = done
        if task is None and now - started >= PATIENCE:
            drawn.start()
            task = drawn.add_task(label, total=total, rate="", note="")
        if task is not None:
            rate = (done - first) / max(now - started, 1e-9)
            drawn.update(task, completed=done, total=total, rate=f"{rate:,.1f}/s", note=note)

    try:
        yield report
    finally:
        if task is not None:
            drawn.stop()


def _written(file: Path, label: str, unit: str) -> ProgressCallback:
    """Return a report into a file, twice a second at most, and at the end of what it counts."""
    last = -PATIENCE

    def report(done: int, total: int | None, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 0.5 or done == total:
            last = now
            temporary = file.with_name(f".{file.name}.{os.getpid()}")
            temporary.write_text(
                json.dumps(
                    {"label": label, "unit": unit, "done": done, "total": total, "note": note}
                )
            )
            os.replace(temporary, file)

    return report
