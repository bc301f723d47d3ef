"""A study is many small tasks, each run once: an interrupted one goes on where it was.

results = run_tasks(study, {"drop 3": {...}, …}, folder, "null study 1", workers=2, of="forks")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from forensics.cli.progress_bar import bar
from forensics.store.resumable import Kept
from replay.executors import local


def run_tasks(
    study: Callable[[dict[str, Any]], Any],
    tasks: Mapping[str, dict[str, Any]],
    folder: Path,
    version: str,
    *,
    workers: int,
    of: str = "runs",
) -> dict[str, Any]:
    """Run the tasks whose results are not kept yet, in processes; return the result of each key.

    `study` is found again by a worker under its module's own name, so it is imported, never
    `__main__`'s. `version` names study and version: results kept under another are not used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = Kept(folder / "study", version)
    left = [key for key in tasks if key not in results]
    with bar(version.rpartition(" ")[0], of) as progress:
        handed_out = local.spawned(workers)(study, [tasks[key] for key in left])
        for finished, (index, result) in enumerate(handed_out, 1):
            results.put(left[index], result)
            progress(len(tasks) - len(left) + finished, len(tasks), left[index])
    return {key: results.get(key) for key in tasks}
